// Command gotest runs `go test -race` with its arguments, shows what failed, and
// at the end names every test that was skipped and why: a green run should not
// hide what it left out.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
)

func main() {
	// An interrupt reaches `go test` as well: let the tests clean up, and wait.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "test:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	race, noRace := raceDetector()
	if noRace != nil && os.Getenv("MESHD_REQUIRE_ROOT") == "1" { // CI: nothing may be left out
		return noRace
	}
	cmd := exec.Command("go", slices.Concat([]string{"test", "-json", "-timeout", "30m"}, race, args)...)
	cmd.Stderr = os.Stderr
	if race != nil {
		// The detector has each program sleep for a second before it ends, to look on.
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := report{out: out, output: map[testID][]string{}, skipped: map[string][]testID{}}
	readErr := r.read(stdout)
	waitErr := cmd.Wait()
	r.summary()
	if noRace != nil {
		fmt.Fprintln(out, "\nLeft out as well:", noRace)
	}
	if _, failed := errors.AsType[*exec.ExitError](waitErr); failed {
		waitErr = errors.New("FAILED")
	}
	return errors.Join(waitErr, readErr)
}

// uninstrumented keeps the race detector out of field arithmetic and the YAML
// parser, which share no memory: it makes a signature ten times as slow, and tests
// make many; and they give the parser files of a MiB.
var uninstrumented = []string{
	"-gcflags=crypto/internal/fips140/edwards25519/...=-race=false",
	"-gcflags=gopkg.in/yaml.v3=-race=false",
}

// raceDetector gives the flags, or says what the detector lacks.
func raceDetector() ([]string, error) {
	out, err := exec.Command("go", "env", "CC").Output()
	if err != nil {
		return nil, fmt.Errorf("go env CC: %w", err)
	}
	cc := strings.Fields(string(out))
	if len(cc) == 0 {
		return nil, errors.New("the race detector needs a C compiler: make test-deps")
	}
	if _, err := exec.LookPath(cc[0]); err != nil {
		return nil, fmt.Errorf("the race detector needs a C compiler, and there is no %s: make test-deps", cc[0])
	}
	return append([]string{"-race"}, uninstrumented...), nil
}

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

type testID struct{ pkg, test string }

type report struct {
	out     io.Writer
	output  map[testID][]string // of tests that have not ended
	failed  []testID            // without a test: the package itself
	skipped map[string][]testID // by reason
	passed  int
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(r.out, "%s", line) // the go command itself speaks
			} else {
				r.event(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read test output: %w", err)
		}
	}
}

func (r *report) event(e event) {
	id := testID{strings.TrimPrefix(e.Package, "meshd/"), e.Test}
	switch {
	case e.Action == "build-output":
		fmt.Fprint(r.out, e.Output)
	case e.Test == "":
		if e.Action == "output" && !quiet(e.Output) {
			fmt.Fprint(r.out, e.Output)
		}
		if e.Action == "fail" {
			r.flush(id.pkg) // a test that a panic or an exit cut off
			if !slices.ContainsFunc(r.failed, func(f testID) bool { return f.pkg == id.pkg }) {
				r.failed = append(r.failed, id)
			}
		}
	case e.Action == "output":
		r.output[id] = append(r.output[id], e.Output)
	case e.Action == "pass":
		r.passed++
		delete(r.output, id)
	case e.Action == "skip":
		why := reason(r.output[id])
		r.skipped[why] = append(r.skipped[why], id)
		delete(r.output, id)
	case e.Action == "fail":
		fmt.Fprint(r.out, strings.Join(r.output[id], ""))
		delete(r.output, id)
		r.failed = append(r.failed, id)
	}
}

// quiet tells what the summary line of the package says anyway.
func quiet(line string) bool {
	return line == "PASS\n" || strings.Contains(line, "[no test files]")
}

func (r *report) flush(pkg string) {
	for id, output := range r.output {
		if id.pkg == pkg {
			fmt.Fprint(r.out, strings.Join(output, ""))
			delete(r.output, id)
		}
	}
}

// place is what t.Skip puts before the reason.
var place = regexp.MustCompile(`^\s+\S+\.go:\d+: `)

func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		if place.MatchString(line) {
			return strings.TrimSpace(place.ReplaceAllString(line, ""))
		}
	}
	return "no reason given"
}

func (r *report) summary() {
	skipped := 0
	for _, ids := range r.skipped {
		skipped += len(ids)
	}
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped (subtests count)\n", r.passed, len(r.failed), skipped)
	for _, id := range r.failed {
		fmt.Fprintf(r.out, "  failed: %s %s\n", id.pkg, id.test)
	}
	if skipped == 0 {
		return
	}
	fmt.Fprintln(r.out, "\nLeft out:")
	for _, why := range slices.Sorted(maps.Keys(r.skipped)) {
		fmt.Fprintf(r.out, "  %s\n", why)
		ids := r.skipped[why]
		slices.SortFunc(ids, func(a, b testID) int {
			return cmp.Or(strings.Compare(a.pkg, b.pkg), strings.Compare(a.test, b.test))
		})
		for _, id := range ids {
			fmt.Fprintf(r.out, "    %s %s\n", id.pkg, id.test)
		}
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(r.out, "\nFor the tests that need root: sudo make test")
	}
}
