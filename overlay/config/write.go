package config

import (
	"bytes"
	"fmt"
	"strings"

	"gopkg.in/yaml.v3"
)

const fileHead = `# Configuration of meshd. Every key may be left out; what stands here are the
# values in force. "meshctl config check" says what is wrong with a file.
# A change takes effect
#   [reload]   on "systemctl reload meshd", SIGHUP or "meshctl config reload"
#   [restart]  when the daemon is restarted
#   [join]     when the host joins a mesh anew
`

// Template gives the commented file that sets what c says: of every key what it
// means, what is expected and when a change takes effect. A nil c stands for
// the defaults. A name that is this host's default is left commented out, so
// that Template(nil) is a file for any host.
func Template(c *Config) []byte {
	absent := Default()
	if c == nil {
		c = absent
	}
	var b bytes.Buffer
	b.WriteString(fileHead)
	for _, k := range keys {
		indent, name := k.indent()
		if indent == "" {
			b.WriteByte('\n')
		}
		comment(&b, indent, k.about)
		if k.isSection() {
			fmt.Fprintf(&b, "%s:\n", name)
			continue
		}
		comment(&b, indent, "Value: "+k.form+". ["+k.effect.String()+"]")
		if k.sample != "" && k.show(c) == k.show(absent) {
			fmt.Fprintf(&b, "%s# %s: %s\n", indent, name, k.sample)
			continue
		}
		fmt.Fprintf(&b, "%s%s: %s\n", indent, name, k.show(c))
	}
	return b.Bytes()
}

// Show gives the file that sets every key to what c says, without comments.
func Show(c *Config) []byte {
	var b bytes.Buffer
	for _, k := range keys {
		indent, name := k.indent()
		if k.isSection() {
			fmt.Fprintf(&b, "%s:\n", name)
		} else {
			fmt.Fprintf(&b, "%s%s: %s\n", indent, name, k.show(c))
		}
	}
	return b.Bytes()
}

// Document gives what [Show] writes as maps, lists and scalars, to be encoded in
// another way.
func Document(c *Config) map[string]any {
	var doc map[string]any
	if err := yaml.Unmarshal(Show(c), &doc); err != nil {
		panic("config: read what Show wrote: " + err.Error()) // it parses back, which a test holds it to
	}
	return doc
}

func (k key) indent() (indent, name string) {
	section, name := k.split()
	if section != "" {
		indent = "  "
	}
	return indent, name
}

// comment writes text in lines of at most 80 characters.
func comment(b *bytes.Buffer, indent, text string) {
	const width = 80
	line := indent + "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = indent + "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}
