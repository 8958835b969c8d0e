//go:build linux

package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode/utf8"
)

// layoutTitles are headings.
var layoutTitles = map[string]string{
	plain:    "veth",
	nicLike:  "veth with segmentation forced, nearer to a real network card",
	twoHosts: "two hosts, joined by a veth pair",
}

func (r *Report) title(l Layout) string {
	if l.Name == crowd {
		return fmt.Sprintf("a host to which %d containers are attached", r.Crowd)
	}
	return layoutTitles[l.Name]
}

// table is a head and rows of cells; the first column is text, the others numbers.
type table [][]string

// results is the table of one layout, with the given columns.
func (r *Report) results(l Layout, of []metric) table {
	head := []string{"system"}
	for _, m := range of {
		head = append(head, m.title)
	}
	t := table{head}
	for _, s := range r.Systems {
		if !s.on(l.Name) {
			continue
		}
		line := []string{s.Title}
		row := r.row(l.Name, s.Name)
		for i, m := range of {
			switch {
			case row == nil && i == 0:
				line = append(line, "not measured")
			case row == nil:
				line = append(line, "")
			default:
				line = append(line, r.cell(row, m))
			}
		}
		t = append(t, line)
	}
	return t
}

func (r *Report) cell(row *Row, m metric) string {
	v, ok := row.Values[m.key]
	switch {
	case ok && len(v.Rounds) < r.Rounds:
		return fmt.Sprintf("%s (%d)", number(v.Median), len(v.Rounds))
	case ok:
		return number(v.Median)
	case slices.Contains(row.Failed, m.key):
		return "failed"
	}
	return "-" // there are no daemons, or nobody asked
}

// medians says what the figures are.
func (r *Report) medians() string {
	if r.Rounds == 1 {
		return fmt.Sprintf("one round of %g s", r.Seconds)
	}
	for _, l := range r.Layouts {
		for _, row := range l.Rows {
			for _, v := range row.Values {
				if len(v.Rounds) < r.Rounds {
					return fmt.Sprintf("medians of %d rounds of %g s, or of (n)", r.Rounds, r.Seconds)
				}
			}
		}
	}
	return fmt.Sprintf("medians of %d rounds of %g s", r.Rounds, r.Seconds)
}

// comparison is the table of bars.
func (r *Report) comparison() table {
	t := table{{"meshd, default suite unless said", "on", "measured", "bar", "reach", "met"}}
	for _, b := range r.Bars {
		sign, unit := ">=", " "+b.Unit
		if b.AtMost {
			sign = "<="
		}
		value, reach, met := "not measured: "+b.Required, "", ""
		if b.Value != nil {
			value, met = number(*b.Value)+unit, "no"
			if b.Met {
				met = "yes"
			}
		}
		if b.Reach != nil {
			reach = number(*b.Reach) + unit
		}
		t = append(t, []string{b.Name, b.Layout, value, sign + " " + number(b.Bar) + unit, reach, met})
	}
	return t
}

// notes say what was left out or went wrong, a line each.
func (r *Report) notes() []string {
	var out []string
	for _, s := range r.Systems {
		if s.NotMeasured != "" {
			out = append(out, fmt.Sprintf("%s: not measured: %s", s.Title, s.NotMeasured))
		}
	}
	for _, l := range r.Layouts {
		for _, row := range l.Rows {
			times := map[string]int{}
			for _, e := range row.Errors {
				times[e]++
			}
			for _, e := range slices.Sorted(maps.Keys(times)) {
				note := fmt.Sprintf("%s, %s: failed: %s", row.System, l.Name, strings.ReplaceAll(e, "\n", "; "))
				if n := times[e]; n > 1 {
					note += fmt.Sprintf(" (%d rounds)", n)
				}
				out = append(out, note)
			}
		}
	}
	if r.Dropped > 0 {
		out = append(out, fmt.Sprintf("%d measurements were dropped, and repeated, since the hypervisor had taken more than %g %% of the time", r.Dropped, r.StealLimit*100))
	}
	return out
}

// origin is where the figures come from.
func (r *Report) origin() string {
	m := r.Machine
	polling := ""
	if m.HaltPoll != nil {
		polling = fmt.Sprintf(", guest_halt_poll %d us", *m.HaltPoll)
	}
	return fmt.Sprintf("%s, commit %s: %s, %d cores, %d GiB, Linux %s%s, %s; `%s`",
		r.Date.Format("2006-01-02"), r.Commit, m.CPU, m.Cores, m.Memory, m.Kernel, polling, m.Go, r.Command)
}

func (r *Report) versions() string {
	var out []string
	for _, s := range r.Systems {
		if s.Version == "" || s.Version == "kernel" {
			continue
		}
		text := s.Title + " " + s.Version
		if r.Kind == kindContainers {
			text = s.Version // of a program that is several systems
		}
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return strings.Join(out, "; ")
}

// Text is all tables for a terminal.
func (r *Report) Text() string {
	var b strings.Builder
	fmt.Fprintln(&b, r.origin())
	for _, l := range r.Layouts {
		fmt.Fprintf(&b, "\n%s; %s\n\n", r.title(l), r.medians())
		b.WriteString(r.results(l, columns(l.Name)).text())
	}
	if len(r.Bars) > 0 {
		b.WriteString("\n" + r.comparison().text())
	}
	for i, n := range r.notes() {
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintln(&b, n)
	}
	return b.String()
}

// text aligns cells; heads have as many lines as the tallest one.
func (t table) text() string {
	var lines [][]string // of heads, word by word
	width := make([]int, len(t[0]))
	head := make([][]string, len(t[0]))
	tall := 0
	for i, h := range t[0] {
		head[i] = strings.Split(h, "|")
		tall = max(tall, len(head[i]))
	}
	for row := range tall {
		line := make([]string, len(head))
		for i, words := range head {
			if at := row - (tall - len(words)); at >= 0 { // at the bottom
				line[i] = words[at]
			}
		}
		lines = append(lines, line)
	}
	lines = append(lines, t[1:]...)
	for _, line := range lines {
		for i, c := range line {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, line := range lines {
		var out strings.Builder
		for i, c := range line {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i == 0 {
				out.WriteString(c + pad)
			} else {
				out.WriteString("  " + pad + c)
			}
		}
		b.WriteString(strings.TrimRight(out.String(), " ") + "\n")
	}
	return b.String()
}

// markdown writes the table as GitHub takes it.
func (t table) markdown() string {
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	var head []string
	for _, h := range t[0] {
		head = append(head, strings.TrimSpace(strings.ReplaceAll(h, "|", " ")))
	}
	line(head)
	b.WriteString("| ---" + strings.Repeat(" | ---:", len(t[0])-1) + " |\n")
	for _, row := range t[1:] {
		line(row)
	}
	return b.String()
}

// Markdown is latest.md.
func (r *Report) Markdown() string {
	var b strings.Builder
	p := pages[r.Kind]
	fmt.Fprintf(&b, "# %s\n\n%s.\n\n%s.\n\n%s\n\n", p.title, r.origin(), r.versions(), p.lead)
	for _, l := range r.Layouts {
		fmt.Fprintf(&b, "## On %s\n\n%s.\n\n%s\n", r.title(l), r.medians(), r.results(l, columns(l.Name)).markdown())
	}
	if len(r.Bars) > 0 {
		b.WriteString("## What is to be reached\n\n" + r.comparison().markdown())
	}
	for i, n := range r.notes() {
		if i == 0 {
			b.WriteString("\n## Left out\n\n")
		}
		b.WriteString("* " + n + "\n")
	}
	return b.String()
}

// The README's table is between these two lines.
const (
	markerBegin = "<!-- benchmarks: begin; make bench OUT=docs/benchmarks writes this -->"
	markerEnd   = "<!-- benchmarks: end -->"
)

// short is the columns of the README's table.
var short = []string{keyTCP1, keyCPU, keyUDP64, keyRTT50, keyPeak}

// Short is the README's table.
func (r *Report) Short() string {
	var few []metric
	for _, m := range metrics {
		for _, key := range short {
			if m.key == key {
				if key == keyPeak {
					m.title = "RSS peak, MB"
				}
				few = append(few, m)
			}
		}
	}
	if len(r.Layouts) == 0 {
		return ""
	}
	return r.results(r.Layouts[0], few).markdown() + "\n" + r.origin() + "; " + r.medians() + ".\n"
}

// replaceTable puts the short table into a file, between the markers.
func (r *Report) replaceTable(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(text), markerBegin)
	_, after, ok2 := strings.Cut(rest, markerEnd)
	if !ok1 || !ok2 {
		return fmt.Errorf("replace table in %s: it lacks the lines %q and %q", path, markerBegin, markerEnd)
	}
	return os.WriteFile(path, []byte(before+markerBegin+"\n"+r.Short()+markerEnd+after), 0o644)
}
