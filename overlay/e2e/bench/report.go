//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Keys of what is measured, in files and in code.
const (
	keyTCP1    = "tcp_1_mbit_s"
	keyTCP1R   = "tcp_1_back_mbit_s"
	keyTCP4    = "tcp_4_mbit_s"
	keyTCP4R   = "tcp_4_back_mbit_s"
	keyCPU     = "cpu_s_per_gb"
	keyUDP64   = "udp_64_kpps"
	keyFlows   = "udp_64_flows_kpps"
	keyUDPMTU  = "udp_mtu_mbit_s"
	keyRTT50   = "rtt_p50_us"
	keyRTT99   = "rtt_p99_us"
	keyLoad50  = "rtt_loaded_p50_us"
	keyLoad99  = "rtt_loaded_p99_us"
	keyRSS     = "rss_mb"
	keyPeak    = "rss_peak_mb"
	fileFormat = 1
)

func tcpKey(streams int, reverse bool) string {
	switch {
	case streams == 1 && !reverse:
		return keyTCP1
	case streams == 1:
		return keyTCP1R
	case !reverse:
		return keyTCP4
	}
	return keyTCP4R
}

// metric is a column.
type metric struct {
	key, title string
	daemon     bool // not measured where the kernel does it all
}

// metrics are all columns; "|" ends a line of a title. GB and MB are powers of ten.
var metrics = []metric{
	{keyTCP1, "TCP|Mbit/s", false},
	{keyTCP1R, "back", false},
	{keyTCP4, "4|streams", false},
	{keyTCP4R, "back", false},
	{keyCPU, "CPU s|per GB", true},
	{keyUDP64, "64 B UDP|kpps", false},
	{keyFlows, "1000 flows|kpps", false},
	{keyUDPMTU, "MTU UDP|Mbit/s", false},
	{keyRTT50, "RTT us|p50", false},
	{keyRTT99, "|p99", false},
	{keyLoad50, "beside TCP|p50", false},
	{keyLoad99, "|p99", false},
	{keyRSS, "RSS MB|end", true},
	{keyPeak, "|peak", true},
}

// columns are those of a layout's table.
func columns(layout string) []metric {
	switch layout {
	case twoHosts:
		return hostsMetrics
	case crowd:
		return crowdMetrics
	}
	return metrics
}

// values are measured at one time, by key.
type values map[string]float64

// String is for progress.
func (v values) String() string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(v)) {
		out = append(out, key+" "+number(v[key]))
	}
	return strings.Join(out, ", ")
}

// Report is what a run has found. It is what latest.json and containers.json hold.
type Report struct {
	Format  int       `json:"format"`
	Kind    string    `json:"kind,omitempty"` // containers, or empty
	Date    time.Time `json:"date"`
	Commit  string    `json:"commit"`
	Command string    `json:"command"`
	Machine Machine   `json:"machine"`
	Rounds  int       `json:"rounds"`
	Seconds float64   `json:"seconds"`
	Crowd   int       `json:"crowd,omitempty"` // containers that are there when one more comes
	// StealLimit is the part of the time that the hypervisor may take; Dropped is
	// how many measurements were repeated for that.
	StealLimit float64      `json:"steal_limit"`
	Dropped    int          `json:"dropped"`
	Systems    []SystemInfo `json:"systems"`
	Layouts    []Layout     `json:"layouts"`
	Bars       []Bar        `json:"bars"`
}

// SystemInfo says what was measured.
type SystemInfo struct {
	Name        string `json:"name"`
	Title       string `json:"title"`
	Version     string `json:"version,omitempty"`
	NotMeasured string `json:"not_measured,omitempty"` // why
	Layout      string `json:"layout,omitempty"`       // the only one that has it
}

// Layout is what was measured on one underlay.
type Layout struct {
	Name string `json:"name"`
	Rows []Row  `json:"rows"`
}

// Row is a system's results.
type Row struct {
	System string           `json:"system"`
	MTU    int              `json:"mtu"` // inside
	Values map[string]Value `json:"values"`
	Errors []string         `json:"errors,omitempty"`
	Failed []string         `json:"failed,omitempty"` // keys that some round has not given
}

// Value is one thing measured in all rounds.
type Value struct {
	Median float64   `json:"median"`
	Rounds []float64 `json:"rounds"` // as measured, one after the other
}

func newReport(o options) *Report {
	r := &Report{
		Format: fileFormat, Date: time.Now().UTC().Truncate(time.Second), Commit: o.Commit, Machine: thisMachine(),
		Rounds: o.Rounds, Seconds: o.Seconds, StealLimit: o.Steal, Command: command(o),
	}
	if o.Containers {
		r.Kind, r.Crowd = kindContainers, o.Crowd
	}
	for _, l := range o.Layouts {
		r.Layouts = append(r.Layouts, Layout{Name: l})
	}
	return r
}

// command is how to measure the same again.
func command(o options) string {
	layout, all := "both", systems
	if len(o.Layouts) == 1 {
		layout = o.Layouts[0]
	}
	c := fmt.Sprintf("make bench ROUNDS=%d SECONDS=%g LAYOUT=%s", o.Rounds, o.Seconds, layout)
	if o.Containers {
		c, all = fmt.Sprintf("make bench-containers ROUNDS=%d SECONDS=%g", o.Rounds, o.Seconds), containerSystems
	}
	if !slices.Equal(o.Systems, names(all)) {
		c += " SYSTEMS=" + strings.Join(o.Systems, ",")
	}
	if o.Only != nil {
		c += " ONLY='" + o.Only.String() + "'"
	}
	return c
}

func (r *Report) addSystem(s system, version string, err error) {
	i := SystemInfo{Name: s.name, Title: s.title, Version: version, Layout: s.layout}
	if err != nil {
		i.NotMeasured = err.Error()
	}
	for j := range r.Layouts {
		if err == nil && i.on(r.Layouts[j].Name) {
			r.Layouts[j].Rows = append(r.Layouts[j].Rows, Row{System: s.name, Values: map[string]Value{}})
		}
	}
	r.Systems = append(r.Systems, i)
}

// on tells whether a layout has the system.
func (s SystemInfo) on(layout string) bool { return s.Layout == "" || s.Layout == layout }

// row finds a system's results; nil if it was not measured.
func (r *Report) row(layout, system string) *Row {
	for i, l := range r.Layouts {
		for j, row := range l.Rows {
			if l.Name == layout && row.System == system {
				return &r.Layouts[i].Rows[j]
			}
		}
	}
	return nil
}

func (r *Report) add(layout, system string, v values) {
	row := r.row(layout, system)
	for key, x := range v {
		have := row.Values[key]
		have.Rounds = append(have.Rounds, x)
		have.Median = median(have.Rounds)
		row.Values[key] = have
	}
}

// fail says that a measurement has not given the values of these keys.
func (r *Report) fail(layout, system, what string, err error, keys ...string) {
	row := r.row(layout, system)
	row.Errors = append(row.Errors, what+": "+err.Error())
	row.Failed = slices.Compact(slices.Sorted(slices.Values(append(row.Failed, keys...))))
}

// missing is how many figures no round has given.
func (r *Report) missing() int {
	n := 0
	for _, l := range r.Layouts {
		for _, row := range l.Rows {
			for _, key := range row.Failed {
				if _, ok := row.Values[key]; !ok {
					n++
				}
			}
		}
	}
	return n
}

// finish compares.
func (r *Report) finish() { r.Bars = judge(r) }

// median of numbers, of which there is at least one.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// number writes three digits that count, or the whole.
func number(x float64) string {
	switch a := math.Abs(x); {
	case a >= 10000:
		return group(int64(math.Round(x/10)) * 10)
	case a >= 100:
		return group(int64(math.Round(x)))
	case a >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// group separates thousands.
func group(x int64) string {
	s := strconv.FormatInt(x, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}

func readReport(path string) (*Report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if r.Format != fileFormat {
		return nil, fmt.Errorf("read %s: format %d, not %d", path, r.Format, fileFormat)
	}
	return &r, nil
}

// page is what distinguishes what is written of a kind of report.
type page struct {
	name        string // of files
	title, lead string
	chart       bool
}

var pages = map[string]page{
	"": {"latest", "Benchmarks",
		"[How it is measured](README.md). `make bench OUT=docs/benchmarks` writes this page.\n\n![The same as a chart](latest.svg)", true},
	kindContainers: {"containers", "Benchmarks of containers",
		"[How it is measured](README.md#containers). `make bench-containers OUT=docs/benchmarks` writes this page.", false},
}

// write makes latest.json, latest.svg and latest.md, or the same of containers
// without a chart.
func (r *Report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	p := pages[r.Kind]
	files := map[string]string{".json": string(text) + "\n", ".md": r.Markdown()}
	if p.chart {
		files[".svg"] = r.SVG()
	}
	for suffix, text := range files {
		if err := os.WriteFile(filepath.Join(dir, p.name+suffix), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
