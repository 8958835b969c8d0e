package config_test

import (
	"bytes"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"meshd/overlay/config"
)

const mib = 1 << 20

// fill repeats s up to n bytes.
func fill(n int, s string) string { return strings.Repeat(s, n/len(s)) }

func lines(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// What somebody may write to hurt, or by pouring another file into this one.
// It costs bounded memory (in all that was allocated, in MiB) and time, and
// gives a bounded number of errors of bounded length.
func TestHostileFiles(t *testing.T) {
	const laughs = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
		"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nseeds: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
	var out bytes.Buffer
	for _, tt := range []struct {
		name, text string
		mib        uint64
	}{
		{"nested aliases", laughs, 8},
		{"an alias of itself", "seeds: &a [*a]\n", 8},
		{"an unknown alias", "seeds:\n  - a\n  - *nobody\n", 8},
		{"a merge key", "node: &n {name: a}\nlog:\n  <<: *n\n", 8},
		{"an anchor on a key", "&a engine: auto\n", 8},
		{"an alias as a key", "engine: &a auto\n*a : x\n", 8},
		{"250 000 aliases", "seeds: &a\n  [" + fill(mib-20, "*a, ") + "]", 256},
		{"100 000 anchors", fill(mib, "- &a x\n"), 256},

		{"10 000 open lists", fill(10_000, "["), 64},
		{"10 001 open lists", "seeds:\n " + fill(10_001, "["), 64},
		{"9 999 lists in lists", "seeds:\n  " + fill(9_999, "[") + fill(9_999, "]"), 64},
		{"9 999 mappings in mappings", "node:\n  " + fill(9_999*4, "{a: ") + fill(9_999, "}"), 64},
		{"1 MiB of open lists", fill(mib, "["), 64},
		{"1 MiB of open mappings", fill(mib, "{a: "), 64},
		{"1 MiB of dashes", fill(mib, "- "), 64},
		{"1 MiB of question marks", fill(mib, "? "), 64},

		{"a huge value", "state_dir: " + fill(mib-20, "x"), 64},
		{"a huge quoted value", `state_dir: "` + fill(mib-20, `\x41`) + `"`, 64},
		{"a huge folded value", "state_dir: >\n" + fill(mib-20, " x\n"), 64},
		{"a huge name", "? " + fill(mib-20, "x") + "\n: 1\n", 64},
		{"a huge label", "node: {labels: {a: " + fill(mib-30, "x") + "}}", 64},
		{"a huge seed", "seeds: [" + fill(mib-20, "x.") + "]", 64},
		{"a huge number", "interface: {mtu: " + fill(mib-30, "9") + "}", 64},
		{"a huge anchor", "engine: &" + fill(mib-20, "x") + " auto", 64},
		{"a huge alias", "engine: *" + fill(mib-20, "x"), 64},
		{"an escape in a tag", "engine: !%1b%5b31m auto", 8},
		{"a huge tag", "engine: !" + fill(mib-20, "x") + " auto", 64},

		{"100 000 keys", lines(100_000, "k%d: \n"), 256},
		{"90 000 keys like ours", lines(90_000, "log%d: \n"), 256},
		{"the same key again and again", fill(mib, "a: 1\n"), 256},
		{"95 000 labels", "node:\n labels:\n" + lines(95_000, "  k%d: \n"), 256},
		{"300 000 seeds", "seeds: [" + fill(mib-20, "a, ") + "]", 256},
		{"100 000 seeds with comments", "seeds:\n" + fill(mib-20, "- a #\n"), 384},
		{"500 000 empty keys", fill(mib, "?\n"), 384},

		{"more than 1 MiB", fill(mib+1, "#"), 1},
		{"100 MiB", fill(100*mib, "k: v\n"), 1},

		{"two documents", "engine: auto\n---\nengine: auto\n", 8},
		{"the same document twice", "---\nengine: auto\n...\n---\nengine: auto\n", 8},
		{"1 MiB of documents", fill(mib, "---\n"), 64},
		{"a broken second document", "engine: auto\n---\n{\n", 8},
		{"1 MiB of directives", fill(mib, "%TAG !a! b\n"), 64},

		{"NUL", "engine: auto\nnode: {name: a\x00b}\n", 8},
		{"an escape", "engine: auto\r\n# \x1b[31m\r\n", 8},
		{"DEL", "\n\nengine: \x7fauto\n", 8},
		{"NEL", "engine: auto\u0085\n", 8},
		{"not a character", "engine: auto\n# \uffff\n", 8},
		{"a BOM within", "engine: auto\n\ufeffhttp: \"\"\n", 8},
		{"not UTF-8", "engine: auto\n# \xff\n", 8},
		{"UTF-16", "\xff\xfee\x00n\x00", 8},
		{"an escaped escape in a name", "engine: auto\n\"\\e[31mred\": 1\n", 8},
		{"an escaped escape in a value", "log: {level: \"\\e[31mred\"}\n", 8},
		{"text that runs backwards", "state_dir: \"x/\u202e/y\"\n\"log\u202e\": 1\n", 8},

		{"a tab", "listen:\n\ttunnel: \":1\"\n", 8},
		{"a wrong indent", "node: {name: a}\nlisten:\n  tunnel: \":1\"\n gossip: \":2\"\n", 8},
		{"a wrong indent, with CRLF", "node: {name: a}\r\nlisten:\r\n  tunnel: \":1\"\r\n gossip: \":2\"\r\n", 8},
		{"a mistake in the first line", "node: [a\n", 8},
		{"an open quote", "engine: auto\nhttp: \"\n", 8},
		{"a list", "- node\n", 8},
		{"a word", "node\n", 8},
		{"JSON cut off", "{\"engine\": \"auto\",\n \"http\"", 8},
		{"an ELF file", "\x7fELF\x02\x01\x01\x00", 8},
		{"a key twice", "engine: auto\nnode: {name: a, name: b}\nengine: auto\n", 8},
	} {
		data := []byte(tt.text)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		c, err := config.Parse("f", data)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if err == nil || c != nil {
			t.Errorf("%s: Parse = %+v, %v; want an error alone", tt.name, c, err)
			continue
		}
		all := strings.Split(err.Error(), "\n")
		if used := after.TotalAlloc - before.TotalAlloc; used > tt.mib*mib {
			t.Errorf("%s: allocated %d MiB, want at most %d", tt.name, used/mib, tt.mib)
		}
		if most := 20 * time.Second; took > most {
			t.Errorf("%s: took %v, want at most %v", tt.name, took, most)
		}
		if len(all) > config.MaxErrors+1 {
			t.Errorf("%s: %d errors, want at most %d and the number of the others", tt.name, len(all), config.MaxErrors)
		}
		fmt.Fprintf(&out, "%s\n", tt.name)
		for i, line := range all {
			if len(line) > 500 {
				t.Errorf("%s: an error of %d bytes, want at most 500", tt.name, len(line))
			}
			if i < 3 || i == len(all)-1 {
				fmt.Fprintf(&out, "  %s\n", line)
			} else if i == 3 {
				out.WriteString("  ...\n")
			}
		}
	}
	golden(t, "testdata/hostile.golden", out.Bytes())
}

// What looks odd and is not wrong.
func TestOddFiles(t *testing.T) {
	all, err := config.Load("testdata/ok/all.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(config.Show(all))
	for name, odd := range map[string]string{
		"CRLF":               strings.ReplaceAll(text, "\n", "\r\n"),
		"BOM":                "\ufeff" + text,
		"exactly 1 MiB":      text + "#" + fill(mib-len(text)-2, "x") + "\n",
		"1 MiB of comments":  text + fill(mib-len(text), "#\n"),
		"1 MiB of lines":     text + fill(mib-len(text), "\n"),
		"end of document":    text + "...\n",
		"start and comments": "# one\n---\n# two\n" + text + "# three",
		"YAML directive":     "%YAML 1.1\n---\n" + text,
		"no last newline":    strings.TrimSuffix(text, "\n"),
	} {
		got, err := config.Parse("f", []byte(odd))
		if err != nil || !reflect.DeepEqual(got, all) {
			t.Errorf("%s: Parse = %+v, %v; want %+v", name, got, err, all)
		}
	}
}

func TestErrorsAreCounted(t *testing.T) {
	for _, tt := range []struct {
		keys, lines int
		last        string
	}{
		{20, 20, "f:20: k19: unknown key; "},
		{21, 21, "f: and 1 more"},
		{500, 21, "f: and 480 more"},
	} {
		all := mistakes(t, []byte(lines(tt.keys, "k%d: 1\n")))
		if len(all) != tt.lines || !strings.HasPrefix(all[len(all)-1].Error(), tt.last) {
			t.Errorf("%d unknown keys give %d errors, the last %v; want %d and %s", tt.keys, len(all), all[len(all)-1], tt.lines, tt.last)
		}
	}
}
