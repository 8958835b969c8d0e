package config_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"meshd/overlay/config"
)

// Of every type that YAML has, a value that no key takes, but for the empty
// ones, which a section, a list and a mapping take, and the truth.
var types = []struct{ name, yaml string }{
	{"string", `"?"`},
	{"number", "7"},
	{"fraction", "1.5"},
	{"truth", "true"},
	{"date", "2020-01-01"},
	{"list", `["?"]`},
	{"list in list", `[[":1"]]`},
	{"mapping", `{"?": 1}`},
	{"null", "null"},
	{"nothing", ""},
	{"tag", "!!str x"},
	{"own tag", "!x x"},
	{"anchor", "&x x"},
	{"bell", `"a\ab"`},
	{"NUL", `"a\0b"`},
	{"newline", `"a\nb"`},
}

// edges has for every key values just inside and just outside of what it
// takes. The first good one is not the default.
var edges = map[string]struct{ good, bad []string }{
	"node.name": {
		good: []string{"a", `"0"`, "a-b", x(63)},
		bad:  []string{`""`, "Alpha", "-a", "a-", "a.b", "a_b", "ä", `"a b"`, x(64)},
	},
	"node.labels": {
		good: []string{
			"{a: b}", `{a: ""}`, `{rack.row: "7"}`, "{" + x(32) + ": " + x(64) + "}",
			many(16, "k%d: x", "{}"), `{a: "` + x(64) + `", b: "` + x(64) + `", c: "` + x(64) + `", d: "` + x(60) + `"}`,
		},
		bad: []string{
			`{"": b}`, `{"a b": c}`, `{a: "b c"}`, "{ä: b}", "{a: ä}", "{a: 1}", "{a: [b]}", "{a: }", "{a: b, a: c}", "{? [a] : b}",
			`{"a\0": b}`, `{a: "\e[31m"}`, "{" + x(33) + ": b}", "{a: " + x(65) + "}",
			many(17, "k%d: x", "{}"), `{a: "` + x(64) + `", b: "` + x(64) + `", c: "` + x(64) + `", d: "` + x(61) + `"}`,
		},
	},
	"seeds": {
		good: []string{
			"[host]", "[a.example.:1]", `["203.0.113.7"]`, `["[2001:db8::7]"]`, `["[2001:db8::7]:65535"]`, "[_x._udp.example]",
			many(64, `"h%d:1"`, "[]"),
		},
		bad: []string{
			`["2001:db8::7"]`, `["203.0.113.7:0"]`, `["203.0.113.7:65536"]`, `["203.0.113.777"]`, `["[203.0.113.7]:1"]`,
			`["[2001:db8::7:1"]`, `["[2001:db8::7]x"]`, `["bad host:1"]`, `["-x.example:1"]`, `[""]`, `[":51881"]`, `["host:"]`,
			`["host:+1"]`, `["host:01x"]`, `["a..b:1"]`, `["0.0.0.0:1"]`, `["[ff02::1]:1"]`, `["[fe80::1%eth0]:1"]`, "[null]", "[7]", "[a, {b: c}]",
			"[" + strings.TrimSuffix(strings.Repeat(x(62)+".", 5), ".") + "]", many(65, `"h%d:1"`, "[]"),
		},
	},
	"listen.tunnel": {
		good: []string{`":1"`, `":65535"`, `"0.0.0.0:4500"`, `"[::]:4500"`},
		bad:  []string{`":0"`, `":65536"`, `":"`, `""`, `"51880"`, `":udp"`, `":-1"`, `"192.0.2.1:51880"`, `"host:51880"`},
	},
	"listen.gossip": {
		good: []string{`":1"`, `":65535"`, `"192.0.2.1:1"`, `"[2001:db8::1]:1"`, `"[::ffff:192.0.2.1]:1"`},
		bad: []string{
			`":0"`, `":65536"`, `""`, `"192.0.2.1"`, `"192.0.2.1:0"`, `"host:1"`, `"2001:db8::1:1"`, `"[fe80::1%eth0]:1"`, `"224.0.0.1:1"`,
			`":51880"`,
		},
	},
	"advertise": {
		good: []string{`["192.0.2.1"]`, `["192.0.2.1:1"]`, `["2001:db8::1"]`, `["[2001:db8::1]"]`, `["[2001:db8::1]:1"]`, many(64, `"192.0.2.%d"`, "[]")},
		bad: []string{
			"[host]", `["host:1"]`, `[""]`, `["0.0.0.0"]`, `["::"]`, `["203.0.113.7:"]`, `["203.0.113.7:0"]`, `["255.255.255.255"]`,
			`["ff02::1"]`, `["fe80::1%eth0"]`, many(65, `"192.0.2.%d"`, "[]"),
		},
	},
	"state_dir": {
		good: []string{"/a", "/a/../b//c/", `"/with space"`, `"/ünï"`, "/" + x(5000)},
		bad:  []string{`""`, "state", "./state", "~/state", "/", "/tmp/..", `"/a\tb"`},
	},
	"control": {
		good: []string{"/a", "/" + x(106), "/x/../" + x(106)},
		bad:  []string{"/run/meshd/docker.sock", `""`, "sock", `"@abstract"`, "/", "/" + x(107)},
	},
	"http": {
		good: []string{`""`, `":1"`, `":51880"`, `"[::1]:65535"`},
		bad:  []string{`"off"`, `":0"`, `"127.0.0.1"`, `"localhost:9740"`, `"http://127.0.0.1:9740"`, `":51881"`},
	},
	"interface.name": {
		good: []string{"m", "mesh-0.1_a", x(15)},
		bad:  []string{`""`, x(16), "lo", "all", "default", `"."`, `".."`, "a/b", `"a b"`, "ä", "a:1"},
	},
	"interface.mtu": {
		good: []string{"1280", "9000", `"1400"`},
		bad:  []string{"1279", "9001", "0", "-1", "1_400", "0x578", "1400.0", `"big"`, `""`, "99999999999999999999"},
	},
	"interface.offload": {
		good: []string{"off", "on", "auto"},
		bad:  []string{`""`, "maybe", "ON"},
	},
	"engine": {
		good: []string{"wireguard-go", "native", "auto"},
		bad:  []string{`""`, "kernel", "Native"},
	},
	"suite": {
		good: []string{"chacha20poly1305", "auto"},
		bad:  []string{`""`, "aes256gcm", "rot13"},
	},
	"lease.ttl": {
		good: []string{"1h", "2400h", "90m", "1h0m0.5s"},
		bad:  []string{`""`, "59m59s", "a day", "1d", "-24h", "24", "9999999999h"},
	},
	"lease.on_conflict": {
		good: []string{"renumber", "quarantine", "auto"},
		bad:  []string{`""`, "fight", "Auto"},
	},
	"masquerade": {
		good: []string{"false", `"false"`, "true"},
		bad:  []string{`""`, "True", "yes", "on", "0"},
	},
	"subnet_env": {
		good: []string{"/run/flannel/subnet.env", "/" + x(5000), `""`},
		bad:  []string{"subnet.env", "/", `"off"`, "/run/meshd/meshd.sock", "/run/meshd/docker.sock"},
	},
	"docker.socket": {
		good: []string{`""`, "/a", "/" + x(106)},
		bad:  []string{"sock", `"off"`, "/", "/" + x(107), "/run/meshd/meshd.sock", "/run/meshd/../meshd/meshd.sock"},
	},
	"log.level": {
		good: []string{"debug", "warn", "error", "info"},
		bad:  []string{`""`, "INFO", "trace", "-4"},
	},
	"log.format": {
		good: []string{"json", "text"},
		bad:  []string{`""`, "xml", "logfmt"},
	},
}

func x(n int) string { return strings.Repeat("x", n) }

// many writes n numbered entries between two brackets.
func many(n int, entry, brackets string) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(entry, i))
	}
	return brackets[:1] + strings.Join(all, ", ") + brackets[1:]
}

// valueLine is where file puts the value.
const valueLine = 4

// file writes a configuration with one key.
func file(path, value string) []byte {
	if section, name, ok := strings.Cut(path, "."); ok {
		return fmt.Appendf(nil, "# one\n# two\n%s:\n  %s: %s\n", section, name, value)
	}
	return fmt.Appendf(nil, "# one\n# two\n# three\n%s: %s\n", path, value)
}

// mistakes gives the errors of a configuration, each checked.
func mistakes(t *testing.T, text []byte) []*config.Error {
	t.Helper()
	c, err := config.Parse("f", text)
	if err == nil {
		return nil
	}
	if c != nil {
		t.Errorf("a configuration beside the error %v", err)
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("Parse = %#v, want joined errors", err)
	}
	var all []*config.Error
	for _, err := range joined.Unwrap() {
		e, ok := errors.AsType[*config.Error](err)
		if !ok {
			t.Fatalf("error is a %T, want *config.Error", err)
		}
		if strings.ContainsAny(e.Error(), "\n\r\x1b\x00") {
			t.Errorf("an error that could steer a terminal: %q", e)
		}
		all = append(all, e)
	}
	return all
}

// short shows a value in a golden file.
func short(s string) string {
	const most = 60
	if len(s) > most {
		return fmt.Sprintf("%s... (%d bytes)", s[:most], len(s))
	}
	return s
}

// Every key with a value of every type, and of the right type at and beyond its
// limits. A new key gets the types by itself, and fails the test until edges
// has it.
func TestMatrix(t *testing.T) {
	var b bytes.Buffer
	left := maps.Clone(edges)
	refuse := func(path, name, value string) {
		t.Helper()
		all := mistakes(t, file(path, value))
		if len(all) != 1 || all[0].Line != valueLine || !strings.HasPrefix(all[0].Key, path) {
			t.Errorf("%s: %s gives %q, want one error in line %d", path, short(value), all, valueLine)
			return
		}
		fmt.Fprintf(&b, "%s\n  %s\n", name, all[0])
	}
	for path, isSection := range config.EachKey {
		fmt.Fprintf(&b, "\n== %s\n", path)
		for _, typ := range types {
			empty := typ.name == "null" || typ.name == "nothing"
			if empty && (isSection || slices.Contains([]string{"node.labels", "seeds", "advertise"}, path)) {
				if all := mistakes(t, file(path, typ.yaml)); all != nil {
					t.Errorf("%s with all below it commented out gives %q", path, all)
				}
				continue
			}
			if typ.name == "truth" && path == "masquerade" {
				continue
			}
			refuse(path, typ.name, typ.yaml)
		}
		if isSection {
			continue
		}
		edge := left[path]
		delete(left, path)
		if len(edge.good) == 0 || len(edge.bad) == 0 {
			t.Errorf("%s: edges has no values of it", path)
		}
		for _, value := range edge.bad {
			refuse(path, short(value), value)
		}
		for _, value := range edge.good {
			c, err := config.Parse("f", file(path, value))
			if err != nil {
				t.Errorf("%s: %s gives %v, want none", path, short(value), err)
				continue
			}
			checkWritten(t, c)
		}
	}
	for path := range left {
		t.Errorf("edges has %s, which is no key", path)
	}
	golden(t, "testdata/matrix.golden", b.Bytes())
}

// slips gives what a hurried person types for a name.
func slips(name string) []string {
	all := []string{strings.ToUpper(name), strings.ReplaceAll(name, "_", "-"), strings.ReplaceAll(name, "_", ""), name + "s"}
	for i := range len(name) {
		all = append(all, name[:i]+name[i+1:], name[:i+1]+name[i:], name[:i]+"q"+name[i+1:])
		if i > 0 {
			all = append(all, name[:i-1]+name[i:i+1]+name[i-1:i]+name[i+1:])
		}
	}
	return slices.DeleteFunc(all, func(s string) bool { return s == name })
}

func TestUnknownKeyHasHint(t *testing.T) {
	check := func(text []byte, want string) {
		t.Helper()
		all := mistakes(t, text)
		if len(all) != 1 || all[0].Line != valueLine || !strings.Contains(all[0].Message, "unknown key; did you mean ") ||
			!strings.Contains(all[0].Message, want) {
			t.Errorf("%s\ngives %q\nwant a hint: %s", text, all, want)
		}
	}
	for path, isSection := range config.EachKey {
		section, name, nested := strings.Cut(path, ".")
		if !nested {
			name, section = section, ""
		}
		for _, slip := range slips(name) {
			check(file(strings.TrimPrefix(section+"."+slip, "."), "1"), name)
		}
		if !nested {
			for other, isSection := range config.EachKey {
				if isSection {
					check(file(other+"."+name, "1"), name+" at the top level")
				}
			}
			continue
		}
		if isSection {
			t.Errorf("%s: sections in sections are not supported", path)
		}
		for _, flat := range []string{name, section + "_" + name, section + "-" + name, `"` + path + `"`} {
			check([]byte("#\n#\n#\n"+flat+": 1\n"), name+" below "+section)
		}
	}
	for _, far := range []string{"firewall", "x", `""`, "<<", "colour", x(1000)} {
		all := mistakes(t, file(far, "1"))
		if len(all) != 1 || !strings.Contains(all[0].Message, "unknown key; expected one of node, seeds, ") {
			t.Errorf("%s gives %q, want no hint, but what is there", short(far), all)
		}
	}
}
