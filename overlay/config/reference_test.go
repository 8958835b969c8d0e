package config

import (
	"bytes"
	"fmt"
	"strings"
)

const referenceHead = `<!-- Written by "make golden" from overlay/config/keys.go. -->

# Configuration

The daemon and ` + "`meshctl`" + ` read ` + "`" + DefaultPath + "`" + `, or the file after
` + "`--config`" + `. Every key may be left out. If there is no file yet, ` + "`meshctl init`" + ` and
` + "`join`" + ` write one with all keys, their meaning and their defaults;
[examples/two-hosts](../examples/two-hosts) has shorter ones.

    meshctl config check     what is wrong with the file, if anything
    meshctl config show      the file with every default filled in
    meshctl config reload    the running daemon reads the file again

## Rules

* Reading is strict: an unknown key, a wrong type, a value out of range, a key given
  twice or two sockets on one port is an error with file, line, key and what is
  expected. All errors are reported, or the first %d and how many more there are.
  The exit code is 78.
* The file is YAML: one document in UTF-8, at most 1 MiB. Anchors, aliases, merge
  keys and tags are refused. Addresses are quoted: YAML would take some of them for
  something else.
* A change takes effect on a reload (` + "`systemctl reload meshd`" + `, SIGHUP or
  ` + "`meshctl config reload`" + `), at a restart, or only when the host joins a mesh anew, as
  the table says. A reload tells which keys wait for a restart; with a bad file it
  changes nothing.

## Keys

`

// Reference gives tests the page of the documentation on every key, in Markdown.
func Reference() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, referenceHead, maxErrors)
	b.WriteString("| key | default | a change takes effect |\n| --- | --- | --- |\n")
	for _, k := range keys {
		if !k.isSection() {
			fmt.Fprintf(&b, "| [`%s`](#%s) | %s | %s |\n", k.path, anchor(k.path), k.initial(), k.effect.sentence())
		}
	}
	for _, k := range keys {
		if k.isSection() {
			fmt.Fprintf(&b, "\n### %s\n\n%s\n", k.path, k.about)
			continue
		}
		heading := "###"
		if strings.Contains(k.path, ".") {
			heading = "####"
		}
		fmt.Fprintf(&b, "\n%s %s\n\n%s\n\n", heading, k.path, k.about)
		fmt.Fprintf(&b, "* value: %s\n* default: %s\n* a change takes effect: %s\n", k.form, k.initial(), k.effect.sentence())
	}
	return b.Bytes()
}

func (k key) initial() string {
	if k.absent != "" {
		return k.absent
	}
	return "`" + k.show(Default()) + "`"
}

func (e effect) sentence() string {
	return [...]string{onReload: "on a reload", onRestart: "at a restart", onJoin: "when the host joins anew"}[e]
}

// anchor is what Markdown makes of a heading.
func anchor(heading string) string { return strings.ReplaceAll(heading, ".", "") }
