//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	if isAgent() {
		agentMain()
		return
	}
	cluster.Main(m)
}

// needIperf skips where there is no iperf3; in CI that is a failure.
func needIperf(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("iperf3")
	switch {
	case err == nil:
	case os.Getenv("MESHD_REQUIRE_ROOT") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// One tiny round on the lab: every field is filled, and what is written can be
// read.
func TestRun(t *testing.T) {
	t.Parallel()
	bin := cluster.Programs(t)
	needIperf(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, missing := t.TempDir(), filepath.Join(t.TempDir(), "none")
	var stdout, progress bytes.Buffer
	err := run(ctx, []string{
		"-rounds", "1", "-seconds", "0.1", "-layout", "nic", "-systems", "raw,nebula-aes,meshd-chacha", "-steal", "1",
		"-bin", filepath.Dir(bin.Meshd), "-peers", missing, "-out", out, "-commit", "test",
	}, &stdout, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	r, err := readReport(filepath.Join(out, "latest.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{sysRaw, sysMeshC} {
		row := r.row(nicLike, name)
		if row == nil {
			t.Errorf("%s has no row", name)
			continue
		}
		for _, m := range metrics {
			v := row.Values[m.key]
			want := !m.daemon || name != sysRaw
			// So little CPU time may have passed that the kernel counts none.
			if have := len(v.Rounds) == 1 && (v.Median > 0 || m.key == keyCPU); have != want {
				t.Errorf("%s of %s is %v", m.key, name, v)
			}
		}
	}
	if row := r.row(nicLike, sysNebula); row != nil {
		t.Errorf("nebula, which is not there, has %v", row)
	}
	if i := slices.IndexFunc(r.Systems, func(s SystemInfo) bool { return s.Name == sysNebula }); !strings.Contains(r.Systems[i].NotMeasured, missing) {
		t.Errorf("nebula is not measured because of %q", r.Systems[i].NotMeasured)
	}
	if !strings.Contains(stdout.String(), "meshd, ChaCha20-Poly1305") {
		t.Errorf("the table lacks what was measured:\n%s", &stdout)
	}
	for _, name := range []string{"latest.md", "latest.svg"} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
}

// The same of containers, on what every machine that runs the lab has.
func TestContainers(t *testing.T) {
	t.Parallel()
	bin := cluster.Programs(t)
	needIperf(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out := t.TempDir()
	var stdout, progress bytes.Buffer
	err := run(ctx, []string{
		"-containers", "-rounds", "1", "-seconds", "0.1", "-steal", "1", "-crowd", "2", "-systems", "mesh-hosts,mesh-containers,control-socket,mesh-cni",
		"-bin", filepath.Dir(bin.Meshd), "-out", out, "-commit", "test",
	}, &stdout, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	r, err := readReport(filepath.Join(out, "containers.json"))
	if err != nil {
		t.Fatal(err)
	}
	ends := []string{keyMTU, keyTCP1, keyTCP1R, keyRTT50, keyRTT99}
	ways := []string{keyAttach50, keyAttach95, keyDetach50, keyDetach95}
	for name, want := range map[string][]string{
		sysHosts: ends, sysContainers: append(ends, keyOfHosts, keyOfHostsR), sysSocket: ways, sysCNI: ways,
	} {
		layout := crowd
		if name == sysHosts || name == sysContainers {
			layout = twoHosts
		}
		row := r.row(layout, name)
		if row == nil || len(row.Values) != len(want) {
			t.Errorf("%s has %v, want %q", name, row, want)
			continue
		}
		for _, key := range want {
			if v := row.Values[key]; len(v.Rounds) != 1 || v.Median <= 0 {
				t.Errorf("%s of %s is %v", key, name, v)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(out, "containers.md")); err != nil {
		t.Error(err)
	}
}

// An interrupt ends the run soon, and nothing is left behind.
func TestInterrupt(t *testing.T) {
	bin := cluster.Programs(t)
	needIperf(t)
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var progress writerFunc = func(b []byte) (int, error) {
		if bytes.Contains(b, []byte("RTT")) { // daemons run, and so do agents
			cancel()
		}
		return len(b), nil
	}
	start := time.Now()
	err := run(ctx, []string{"-rounds", "1", "-systems", sysMeshWG, "-layout", plain, "-bin", filepath.Dir(bin.Meshd)}, io.Discard, progress)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the run ended with %v", err)
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("it took %v", took)
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestParse(t *testing.T) {
	o, err := parse([]string{"-systems", "raw, meshd-aes", "-layout", "nic"}, io.Discard)
	if err != nil || !slices.Equal(o.Systems, []string{sysRaw, sysMesh}) || !slices.Equal(o.Layouts, []string{nicLike}) || o.Steal != stealLimit {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := parse(nil, io.Discard); err != nil || len(o.Systems) != len(systems) || len(o.Layouts) != 2 {
		t.Errorf("by default: %+v, %v", o, err)
	}
	if o, err := parse([]string{"-containers", "-systems", "mesh-cni"}, io.Discard); err != nil || !slices.Equal(o.Layouts, []string{crowd}) || o.Crowd != 200 {
		t.Errorf("of containers: %+v, %v", o, err)
	}
	for _, args := range [][]string{{"-containers", "-systems", "vxlan"}, {"-containers", "-layout", "nic"}, {"-containers", "-readme", "x"}, {"-crowd", "-1"}, {"-rounds", "0"}, {"-seconds", "0"}, {"-seconds", "1e9"}, {"-systems", "flannel"}, {"-layout", "ring"}, {"raw"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want float64
	}{
		{[]float64{3}, 3}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}, {[]float64{1, 100, 2, 3}, 2.5},
	} {
		have := slices.Clone(tt.in)
		if got := median(have); got != tt.want || !slices.Equal(have, tt.in) {
			t.Errorf("median of %v is %v, want %v; afterwards %v", tt.in, got, tt.want, have)
		}
	}
}

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i))
	}
	for _, tt := range []struct {
		in   []time.Duration
		part float64
		want time.Duration
	}{
		{nil, 0.5, 0}, {hundred[7:8], 0.99, 7}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 99},
	} {
		if got := percentile(tt.in, tt.part); got != tt.want {
			t.Errorf("percentile %v of %d is %v, want %v", tt.part, len(tt.in), got, tt.want)
		}
	}
}

func TestProc(t *testing.T) {
	c, err := parseCPU("cpu  100 10 50 800 20 0 5 15 7 0")
	if err != nil || c != (cpuTime{all: 1000, steal: 15}) {
		t.Errorf("time of the machine: %+v, %v", c, err)
	}
	for _, bad := range []string{"", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 3", "cpu 1 2 3 4 x 6 7 8"} {
		if _, err := parseCPU(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	ticks, err := parseTicks("42 (a (b) 1 2) S 1 1 1 0 -1 4194560 900 0 0 0 17 4 0 0 20 0 9 0 100 1 1")
	if err != nil || ticks != 21 {
		t.Errorf("%d ticks, %v", ticks, err)
	}
	if _, err := parseTicks("42 (x) S 1"); err == nil {
		t.Error("a short line is taken")
	}
	status := []byte("Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t    1000 kB\n")
	if n, err := parseKB(status, "VmRSS:"); err != nil || n != 1000<<10 {
		t.Errorf("RSS %d, %v", n, err)
	}
	if _, err := parseKB(status, "VmSwap:"); err == nil {
		t.Error("what is not there was found")
	}
}

// What was measured while too much was stolen does not count; it is repeated, but
// not for ever.
func TestSteady(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name    string
		steal   []int64 // of 100 ticks, during each try
		err     error   // of the measurement
		want    float64 // which try counts
		dropped int
		wantErr string
	}{
		{name: "quiet", steal: []int64{0}, want: 1},
		{name: "at the limit", steal: []int64{5}, want: 1},
		{name: "once", steal: []int64{6, 0}, want: 2, dropped: 1},
		{name: "to the end", steal: []int64{50, 6, 7, 1}, want: 4, dropped: 3},
		{name: "always", steal: []int64{9, 9, 9, 9}, dropped: 4, wantErr: "dropped 4 times"},
		{name: "an error is one at once", steal: []int64{9}, err: broken, wantErr: "broken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var now cpuTime
			tries := 0
			got, dropped, err := steady(t.Context(), 0.05, func() (cpuTime, error) { return now, nil }, func() (values, error) {
				now.all += 100
				now.steal += tt.steal[tries]
				tries++
				return values{keyTCP1: float64(tries)}, tt.err
			})
			if tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)) || tt.wantErr == "" && err != nil {
				t.Errorf("error %v, want %q", err, tt.wantErr)
			}
			if dropped != tt.dropped || got[keyTCP1] != tt.want && tt.err == nil {
				t.Errorf("try %v counts, %d dropped; want %v and %d", got[keyTCP1], dropped, tt.want, tt.dropped)
			}
		})
	}
}

// The search finds what a simulated system can carry.
func TestSearch(t *testing.T) {
	const most = 700e3 // of the sender
	for _, tt := range []struct {
		name     string
		capacity float64
		collapse bool    // more than it can carry, and it carries half
		queue    float64 // packets that a short trial does not show as lost
		hiccup   int     // every so many trials a tenth is lost
		stall    int     // every so many trials the sender hardly sends
	}{
		{name: "slow", capacity: 10e3},
		{name: "middling", capacity: 100e3},
		{name: "faster than the sender", capacity: 2e6},
		{name: "about the sender's", capacity: most - 2e3},
		{name: "collapses", capacity: 90e3, collapse: true},
		{name: "long queue", capacity: 90e3, queue: 9e3},
		{name: "hiccups", capacity: 200e3, hiccup: 3},
		{name: "stalls", capacity: 200e3, stall: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			trials := 0
			got, err := search(func(rate float64, long bool) (trial, error) {
				trials++
				if rate == 0 {
					rate = most
				}
				rate = min(rate, most)
				c := trial{seconds: 0.5}
				if long {
					c.seconds = 5
				}
				c.sent = rate * c.seconds
				if tt.stall > 0 && trials%tt.stall == 0 {
					c.sent /= 100
				}
				c.received = min(c.sent, tt.capacity*c.seconds+tt.queue)
				if tt.collapse && rate > tt.capacity {
					c.received /= 2
				}
				if tt.hiccup > 0 && trials%tt.hiccup == 0 {
					c.received *= 0.9
				}
				return c, nil
			})
			want := min(tt.capacity, most)
			if err != nil || got < want*0.9 || got > want*1.02 {
				t.Errorf("found %.0f, want about %.0f; %v", got, want, err)
			}
			if trials > 2*mostTrials+mostConfirms {
				t.Errorf("it took %d trials", trials)
			}
		})
	}
	t.Run("nothing arrives", func(t *testing.T) {
		_, err := search(func(float64, bool) (trial, error) { return trial{sent: 1000, seconds: 1}, nil })
		if err == nil {
			t.Error("a rate was found")
		}
	})
	t.Run("broken", func(t *testing.T) {
		if _, err := search(func(float64, bool) (trial, error) { return trial{}, io.EOF }); !errors.Is(err, io.EOF) {
			t.Errorf("error %v", err)
		}
	})
}

// example is a report of three systems, with everything that can go wrong.
func example() *Report {
	r := &Report{
		Format: fileFormat, Date: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC), Commit: "v1 <a&b>", Command: "make bench",
		Machine: Machine{CPU: "CPU & Co", Cores: 2, Memory: 24, Kernel: "6.18", Go: "go1.26"},
		Rounds:  3, Seconds: 5, StealLimit: stealLimit, Dropped: 2, Layouts: []Layout{{Name: plain}, {Name: nicLike}},
	}
	for _, s := range systems {
		switch s.name {
		case sysRaw:
			r.addSystem(s, "kernel", nil)
		case sysWG, sysMesh:
			r.addSystem(s, "v1.2", nil)
		case sysNebula:
			r.addSystem(s, "", errors.New("it is not there"))
		}
	}
	for i, m := range metrics {
		for _, layout := range []string{plain, nicLike} {
			x := float64(i + 1)
			for round := range 3 {
				if !m.daemon {
					r.add(layout, sysRaw, values{m.key: 20000 * x})
				}
				r.add(layout, sysWG, values{m.key: 100*x + float64(round)})
				if m.key != keyUDP64 && (m.key != keyTCP4 || round > 0) {
					r.add(layout, sysMesh, values{m.key: 251.25 * x})
				}
			}
		}
	}
	r.fail(plain, sysMesh, "UDP, 64 B", errors.New("no rate\nwas found"), keyUDP64)
	r.finish()
	return r
}

// exampleOfContainers is one where there is no Docker.
func exampleOfContainers() *Report {
	r := &Report{
		Format: fileFormat, Kind: kindContainers, Date: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC), Commit: "v1", Command: "make bench-containers",
		Machine: Machine{CPU: "CPU", Cores: 2, Memory: 24, Kernel: "6.18", Go: "go1.26"},
		Rounds:  3, Seconds: 5, Crowd: 200, StealLimit: stealLimit, Layouts: []Layout{{Name: twoHosts}, {Name: crowd}},
	}
	for _, s := range containerSystems {
		if s.name == sysDocker || s.name == sysSwarm {
			r.addSystem(s, "", errors.New("there is no dockerd"))
			continue
		}
		r.addSystem(s, "meshd v1", nil)
		for round := range 3 {
			if s.layout == crowd {
				r.add(crowd, s.name, values{keyAttach50: 20, keyAttach95: 140 + float64(round), keyDetach50: 20, keyDetach95: 101})
				continue
			}
			v := values{keyMTU: 1420, keyTCP1: 4000, keyRTT50: 100, keyRTT99: 200.0}
			if s.name == sysContainers {
				v[keyOfHosts], v[keyOfHostsR] = 0.85, 0.8
			}
			r.add(twoHosts, s.name, v)
		}
	}
	r.fail(twoHosts, sysHosts, "TCP, 1 stream back", errors.New("no route"), keyTCP1R)
	r.finish()
	return r
}

func TestReport(t *testing.T) {
	r, containers := example(), exampleOfContainers()
	for name, text := range map[string]string{
		"report.txt": r.Text(), "report.md": r.Markdown(), "report.svg": r.SVG(), "readme.md": r.Short(),
		"containers.txt": containers.Text(), "containers.md": containers.Markdown(),
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, text) })
	}
	if n := r.missing(); n != 1 {
		t.Errorf("%d figures are missing, want 1", n)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-update rewrites it):\n%s", path, got)
	}
}

func TestChartIsXML(t *testing.T) {
	for name, r := range map[string]*Report{"example": example(), "empty": {}} {
		d := xml.NewDecoder(strings.NewReader(r.SVG()))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

func TestReportSurvivesTheFile(t *testing.T) {
	dir := t.TempDir()
	r := example()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	back, err := readReport(filepath.Join(dir, "latest.json"))
	if err != nil {
		t.Fatal(err)
	}
	want, _ := json.Marshal(r)
	if got, _ := json.Marshal(back); !bytes.Equal(got, want) {
		t.Errorf("it reads as %s\nwant %s", got, want)
	}
	if back.Text() != r.Text() {
		t.Error("it renders differently")
	}
	for name, text := range map[string]string{"other.json": `{"format": 99}`, "bad.json": `{`} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readReport(path); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

func TestBars(t *testing.T) {
	r := &Report{Layouts: []Layout{{Name: plain}}}
	for _, s := range systems {
		r.addSystem(s, "", nil)
	}
	r.add(plain, sysMesh, values{keyTCP1: 7500, keyRTT50: 50, keyPeak: 41})
	r.add(plain, sysWG, values{keyTCP1: 3000, keyRTT50: 99})
	r.finish()
	type verdict struct {
		value float64
		met   bool
	}
	want := map[string]verdict{
		"TCP, against wireguard-go":     {2.5, true},
		"RTT p50, against wireguard-go": {50.0 / 99, false},
		"memory under load":             {41, false},
	}
	for _, b := range r.Bars {
		if b.Layout != plain {
			t.Errorf("%s is judged on %s, which was not measured", b.Name, b.Layout)
		}
		w, measured := want[b.Name]
		switch {
		case !measured && (b.Value != nil || b.Met || b.Required == ""):
			t.Errorf("%s was not measured, and is %+v", b.Name, b)
		case measured && (b.Value == nil || *b.Value != w.value || b.Met != w.met):
			t.Errorf("%s is %+v, want %+v", b.Name, b, w)
		}
		delete(want, b.Name)
	}
	for name := range want {
		t.Errorf("%s was not judged", name)
	}
}

func TestReplaceTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "README.md")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := example()
	write("before\n" + markerBegin + "\nold\n" + markerEnd + "\nafter\n")
	for range 2 {
		if err := r.replaceTable(path); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if want := "before\n" + markerBegin + "\n" + r.Short() + markerEnd + "\nafter\n"; err != nil || string(text) != want {
			t.Errorf("the file is\n%s\nwant\n%s; %v", text, want, err)
		}
	}
	write("nothing to replace\n")
	if err := r.replaceTable(path); err == nil {
		t.Error("a file without the markers is taken")
	}
}

// What the repository shows is what its latest.json says.
func TestPublished(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok1 := strings.Cut(string(readme), markerBegin+"\n")
	table, _, ok2 := strings.Cut(rest, markerEnd)
	if !ok1 || !ok2 {
		t.Fatal("README.md lacks the markers")
	}
	dir := filepath.Join(root, "docs", "benchmarks")
	r, err := readReport(filepath.Join(dir, "latest.json"))
	if errors.Is(err, os.ErrNotExist) {
		if strings.Contains(table, "|") {
			t.Error("README.md has figures from nowhere: docs/benchmarks/latest.json is missing")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if table != r.Short() {
		t.Errorf("README.md's table is not that of latest.json: bin/bench -render docs/benchmarks/latest.json -readme README.md\n%s", table)
	}
	for name, want := range map[string]string{"latest.md": r.Markdown(), "latest.svg": r.SVG()} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(text) != want {
			t.Errorf("%s is not that of latest.json: bin/bench -render docs/benchmarks/latest.json -out docs/benchmarks (%v)", name, err)
		}
	}
	r, err = readReport(filepath.Join(dir, "containers.json"))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "containers.md")); err != nil || string(text) != r.Markdown() {
		t.Errorf("containers.md is not that of containers.json: bin/bench -render docs/benchmarks/containers.json -out docs/benchmarks (%v)", err)
	}
}
