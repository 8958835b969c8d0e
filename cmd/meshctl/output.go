package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"meshd/overlay/config"
)

// output is in which form a command prints its result.
type output struct {
	format   string
	template string
	parsed   *template.Template
	given    func(flag string) bool // on the command line
}

var formats = []string{"table", "wide", "json", "yaml"}

// addFlags adds flags whose help has an example of a template.
func (o *output) addFlags(cmd *cobra.Command, example string) {
	o.given = cmd.Flags().Changed
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "`FORM`: "+strings.Join(formats, ", "))
	cmd.Flags().StringVarP(&o.template, "format", "f", "", "Go `TEMPLATE` over the names of -o json, such as '"+example+"'")
	// Only a flag that does not exist is refused.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

// check refuses flags that make no sense, before any work is done.
func (o *output) check() (err error) {
	if !slices.Contains(formats, o.format) {
		return usage("-o %s: there are %s", o.format, strings.Join(formats, ", "))
	}
	if err := apart(o.given, "output", "format"); err != nil || o.template == "" {
		return err
	}
	if o.parsed, err = template.New("-f").Option("missingkey=error").Parse(o.template); err != nil {
		return usage("read template: %w", err)
	}
	return nil
}

// isText tells whether the result is for people.
func (o *output) isText() bool { return o.parsed == nil && (o.format == "table" || o.format == "wide") }

// timeText is how all commands write a time: as the status document does.
func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// timeOr is a time that may not be known.
func timeOr(t *time.Time, otherwise string) string {
	if t == nil {
		return otherwise
	}
	return timeText(*t)
}

// print writes v; text writes its form for people.
func (o *output) print(w io.Writer, v any, text func(w io.Writer, wide bool) error) error {
	switch {
	case o.parsed != nil:
		return o.execute(w, v)
	case o.format == "json":
		return writeJSON(w, v)
	case o.format == "yaml":
		raw, err := config.ToYAML(v)
		if err != nil {
			return err
		}
		_, err = w.Write(raw)
		return err
	}
	return text(w, o.format == "wide")
}

func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// execute runs the template over what JSON says, so that names and values are
// those of the documented form.
func (o *output) execute(w io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var generic any
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.UseNumber() // byte counters as they are, not as 1e+09
	if err := decoder.Decode(&generic); err != nil {
		return err
	}
	if err := o.parsed.Execute(w, generic); err != nil {
		return usage("run template: %w", err)
	}
	_, err = fmt.Fprintln(w)
	return err
}

// remaining is how long something lasts, in its largest unit.
func remaining(now, end time.Time) string {
	switch d := end.Sub(now); {
	case d <= 0:
		return "over"
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	default:
		return fmt.Sprintf("%ds", d/time.Second)
	}
}
