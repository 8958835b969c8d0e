//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// report is what a run has found. Times are in seconds.
type report struct {
	Seed       uint64             `json:"seed"`
	Nodes      int                `json:"nodes"`
	Date       string             `json:"date"`
	Kernel     string             `json:"kernel"`
	CPUs       int                `json:"cpus"`
	Seconds    float64            `json:"seconds"`
	AllPairs   float64            `json:"all_pairs"` // after a cold start
	Steps      int                `json:"steps"`
	Faults     map[string]*figure `json:"faults"`  // by name; two at once are "a + b"
	Healthy    pings              `json:"healthy"` // of pairs that no fault was between
	Frames     int64              `json:"frames"`  // looked at on the underlay
	Before     demand             `json:"before"`  // the most of any daemon
	After      demand             `json:"after"`
	Skipped    map[string]string  `json:"skipped"`
	Violations []violation        `json:"violations"`

	frames *atomic.Int64
	mu     sync.Mutex // guards Healthy
}

// figure is about one kind of fault.
type figure struct {
	Count   int    `json:"count"`
	Traffic spread `json:"traffic"` // from the fault's end until pings flow again for good
	Table   spread `json:"table"`   // until all are ready and see the same owners
	Pings   pings  `json:"pings"`   // of the pairs that it may hurt, from its begin until all is well

	traffic, table []time.Duration
}

type pings struct {
	Lost int `json:"lost"`
	Sent int `json:"sent"`
}

type spread struct {
	Median float64 `json:"p50"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
}

func spreadOf(all []time.Duration) spread {
	if len(all) == 0 {
		return spread{}
	}
	slices.Sort(all)
	at := func(share float64) float64 {
		return all[min(len(all)-1, int(share*float64(len(all))))].Round(time.Millisecond).Seconds()
	}
	return spread{at(0.5), at(0.99), at(1)}
}

func newReport(o options) *report {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return &report{
		Seed: o.seed, Nodes: o.nodes, Date: time.Now().UTC().Format(time.DateOnly), Kernel: strings.TrimSpace(string(kernel)),
		CPUs: runtime.NumCPU(), Faults: map[string]*figure{}, Skipped: skipped, Violations: []violation{},
	}
}

// note counts a step.
func (r *report) note(acts []act, traffic, table time.Duration, lost, sent int) {
	var names []string
	for _, a := range acts {
		names = append(names, a.name)
	}
	slices.Sort(names)
	name := strings.Join(names, " + ")
	f := r.Faults[name]
	if f == nil {
		f = &figure{}
		r.Faults[name] = f
	}
	r.Steps++
	f.Count++
	f.Pings.Lost += lost
	f.Pings.Sent += sent
	f.traffic, f.table = append(f.traffic, traffic), append(f.table, table)
	f.Traffic, f.Table = spreadOf(f.traffic), spreadOf(f.table)
}

// healthy counts pings of pairs that no fault is between.
func (r *report) healthy(lost, sent int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Healthy.Lost += lost
	r.Healthy.Sent += sent
}

func (r *report) finish(c *chaos) {
	r.Seconds = time.Since(c.begin).Seconds()
	r.Violations = append(r.Violations, c.violations()...)
	if r.frames != nil {
		r.Frames = r.frames.Load()
	}
}

// String is the report for people.
func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d nodes, seed %d, %d steps in %.0f s, on %d CPUs, kernel %s, %s\n\n", r.Nodes, r.Seed, r.Steps, r.Seconds, r.CPUs, r.Kernel, r.Date)
	fmt.Fprintf(&b, "%-24s %5s   %-23s   %-23s   %s\n", "", "", "traffic again, s", "one table again, s", "pings between whom it may hurt")
	fmt.Fprintf(&b, "%-24s %5s   %7s %7s %7s   %7s %7s %7s   %7s %7s\n", "fault", "times", "p50", "p99", "max", "p50", "p99", "max", "lost", "sent")
	row := func(name string, f *figure) {
		fmt.Fprintf(&b, "%-24s %5d   %7.2f %7.2f %7.2f   %7.2f %7.2f %7.2f   %7d %7d\n", name, f.Count,
			f.Traffic.Median, f.Traffic.P99, f.Traffic.Max, f.Table.Median, f.Table.P99, f.Table.Max, f.Pings.Lost, f.Pings.Sent)
	}
	all := &figure{}
	for _, name := range slices.Sorted(maps.Keys(r.Faults)) {
		f := r.Faults[name]
		row(name, f)
		all.Count += f.Count
		all.Pings.Lost += f.Pings.Lost
		all.Pings.Sent += f.Pings.Sent
		all.traffic, all.table = append(all.traffic, f.traffic...), append(all.table, f.table...)
	}
	all.Traffic, all.Table = spreadOf(all.traffic), spreadOf(all.table)
	row("all", all)
	fmt.Fprintf(&b, "\n%-34s %d of %d\n", "pings lost where no fault was", r.Healthy.Lost, r.Healthy.Sent)
	fmt.Fprintf(&b, "%-34s %d\n", "frames looked at, none clear text", r.Frames)
	fmt.Fprintf(&b, "%-34s %8s  %8s\n", "the most of any daemon", "before", "after")
	fmt.Fprintf(&b, "%-34s %8.1f  %8.1f\n", "  resident memory, MiB", float64(r.Before.RSS)/(1<<20), float64(r.After.RSS)/(1<<20))
	fmt.Fprintf(&b, "%-34s %8d  %8d\n", "  descriptors", r.Before.Descriptors, r.After.Descriptors)
	fmt.Fprintf(&b, "%-34s %8d  %8d\n", "  goroutines", r.Before.Goroutines, r.After.Goroutines)
	fmt.Fprintf(&b, "%-34s %8s  %8d\n", "  log, KiB", "", r.After.Log>>10)
	for _, name := range slices.Sorted(maps.Keys(r.Skipped)) {
		fmt.Fprintf(&b, "not done: %s: %s\n", name, r.Skipped[name])
	}
	fmt.Fprintf(&b, "\n%d violations\n", len(r.Violations))
	for _, v := range r.Violations {
		fmt.Fprintf(&b, "%7.1f  step %d  %s\n         again: %s\n", v.At, v.Step, v.Text, v.Again)
	}
	return b.String()
}

// write writes the report for programs.
func (r *report) write(path string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
