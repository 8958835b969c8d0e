package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// maxSize is far more than a configuration needs; a larger file is a mistake.
const maxSize = 1 << 20

// maxErrors fills a screen. More of them say that the file is something else.
const maxErrors = 20

// Error is one mistake in a configuration file.
type Error struct {
	File    string
	Line    int    // from 1; 0: the file as a whole
	Key     string // for example "listen.tunnel" or "seeds[1]"; empty: none in particular
	Message string // what is wrong; what is expected
}

// Error gives "FILE:LINE: KEY: what is wrong; what is expected".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Key != "" {
		b.WriteString(": " + e.Key)
	}
	return b.String() + ": " + e.Message
}

// Load reads the file at path. A mistake in it is an [*Error]; a file that
// cannot be read keeps its cause, such as [io/fs.ErrNotExist].
func Load(path string) (*Config, error) {
	// Opening a FIFO would block until somebody writes to it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{File: path, Message: "is a " + kind(info.Mode()) + "; expected a regular file"}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data)
}

func kind(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&os.ModeNamedPipe != 0:
		return "named pipe"
	case m&os.ModeSocket != 0:
		return "socket"
	}
	return "device"
}

// Parse reads the text of a configuration file; name stands for the file in
// errors. It returns the first 20 of them, joined, in the order of their lines,
// and how many more there are.
func Parse(name string, data []byte) (*Config, error) {
	p := &parser{file: name, config: Default(), lines: map[string]int{}}
	if root := p.document(data); root != nil {
		p.section("", root)
		if len(p.errs) == 0 {
			p.crossCheck()
		}
	}
	if len(p.errs) > 0 {
		slices.SortStableFunc(p.errs, func(a, b *Error) int { return a.Line - b.Line })
		joined := make([]error, len(p.errs))
		for i, e := range p.errs {
			joined[i] = e
		}
		if p.more > 0 {
			joined = append(joined, &Error{File: name, Message: fmt.Sprintf("and %d more", p.more)})
		}
		return nil, errors.Join(joined...)
	}
	return p.config, nil
}

// parser fills config from one document. It walks the nodes itself instead of
// decoding into structs, since the library's errors lack keys and expectations.
type parser struct {
	file   string
	config *Config
	errs   []*Error       // the first maxErrors
	more   int            // those after them
	lines  map[string]int // of the keys that the file has
}

func (p *parser) full() bool { return len(p.errs) == maxErrors }

func (p *parser) fail(line int, key, format string, args ...any) {
	if p.full() {
		p.more++
		return
	}
	p.errs = append(p.errs, &Error{File: p.file, Line: line, Key: key, Message: fmt.Sprintf(format, args...)})
}

// document gives the only document's root, or nil if there is none or it is not
// to be read further.
func (p *parser) document(data []byte) *yaml.Node {
	if len(data) > maxSize {
		p.fail(0, "", "is larger than 1 MiB; expected a configuration file")
		return nil
	}
	if line, what := badText(data); what != "" {
		p.fail(line, "", "%s; expected plain UTF-8 text", what)
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	err := decoder.Decode(&document)
	if err == nil {
		if errSecond := decoder.Decode(&second); errSecond != io.EOF {
			err = errSecond
			if err == nil {
				p.fail(second.Line, "", "a second document begins; expected only one")
				return nil
			}
		}
	}
	switch {
	case err == io.EOF:
		return nil
	case err != nil:
		line, text := syntaxError(data, err)
		p.fail(line, "", "%s; expected YAML", text)
		return nil
	case len(document.Content) != 1:
		return nil
	}
	return document.Content[0]
}

// What the library says of a mistake: its lexer counts lines from 1, its grammar
// from 0, neither mentions the first one, and no anchor has a line.
var (
	yamlLine    = regexp.MustCompile(`^line (\d+): `)
	yamlGrammar = regexp.MustCompile(`^(did not find expected (key|node content|'-' indicator|',' or '[]}]'|<.*>)|found (duplicate|incompatible|undefined) )`)
	yamlAnchor  = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)
)

func syntaxError(data []byte, err error) (line int, text string) {
	line, text = 1, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = strings.TrimPrefix(text, m[0])
		if yamlGrammar.MatchString(text) {
			line++
		}
	}
	if m := yamlAnchor.FindStringSubmatch(text); m != nil {
		before, _, _ := bytes.Cut(data, []byte("*"+m[1]))
		line = 1 + bytes.Count(before, []byte("\n"))
		text = "unknown anchor " + printable(m[1])
	}
	return line, text
}

// badText finds what no text editor would have written, which the library
// reports without a line.
func badText(data []byte) (line int, what string) {
	line = 1
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && size <= 1:
			return line, fmt.Sprintf("byte 0x%02x is not UTF-8", data[0])
		case isControl(r) && r != '\t' && r != '\n' && r != '\r':
			return line, fmt.Sprintf("control character %U", r)
		case r == 0xfffe || r == 0xffff:
			return line, fmt.Sprintf("%U is no character", r)
		case r == '\n':
			line++
		}
		data = data[size:]
	}
	return 0, ""
}

// plain refuses what YAML has and a configuration does not need: it is more
// often a way to hide something than a mistake, and aliases can blow up.
func (p *parser) plain(key string, n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		p.fail(n.Line, key, "is an alias; expected the value itself")
	case n.Anchor != "":
		p.fail(n.Line, key, "has an anchor; expected a value without one")
	case n.Style&yaml.TaggedStyle != 0:
		p.fail(n.Line, key, "has the tag %s; expected a value without one", printable(n.Tag))
	default:
		return true
	}
	return false
}

// section reads the mapping below path, which is "" for the whole file.
func (p *parser) section(path string, n *yaml.Node) {
	if !p.plain(path, n) || isNull(n) { // a section whose keys are all commented out
		return
	}
	if n.Kind != yaml.MappingNode {
		p.fail(n.Line, path, "is %s; expected a mapping with the keys %s", typeName(n), names(path))
		return
	}
	p.mapping(path, n, func(name, where string, k, value *yaml.Node) {
		key, known := find(path, name)
		switch {
		case !known:
			p.unknown(k.Line, path, name, where)
		case key.isSection():
			p.section(key.path, value)
		default:
			p.lines[key.path] = value.Line
			if p.plain(key.path, value) {
				key.read(p, key.path, value)
			}
		}
	})
}

func (p *parser) unknown(line int, section, name, where string) {
	guess := ""
	if !p.full() { // a large file of another kind has a hundred thousand of them
		guess = hint(section, name)
	}
	if guess == "" {
		guess = "expected one of " + names(section)
	}
	p.fail(line, where, "unknown key; %s", guess)
}

// mapping calls each for every entry of n whose key is a string and new.
func (p *parser) mapping(path string, n *yaml.Node, each func(name, key string, k, value *yaml.Node)) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, value := n.Content[i], n.Content[i+1]
		if !p.plain(path, k) {
			continue
		}
		if k.Kind != yaml.ScalarNode {
			p.fail(k.Line, path, "has %s as a key; expected a name", typeName(k))
			continue
		}
		key := printable(k.Value)
		if path != "" {
			key = path + "." + key
		}
		if line, ok := first[k.Value]; ok {
			p.fail(k.Line, key, "is already in line %d; expected once", line)
			continue
		}
		first[k.Value] = k.Line
		each(k.Value, key, k, value)
	}
}

// printable keeps a foreign name from filling the terminal or steering it.
func printable(s string) string {
	const most = 64
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	if q := strconv.Quote(s); q[1:len(q)-1] != s || s == "" {
		return q
	}
	return s
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func typeName(n *yaml.Node) string {
	if n.Kind == yaml.MappingNode {
		return "a mapping"
	}
	if n.Kind == yaml.SequenceNode {
		return "a list"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "the truth value " + n.Value
	case "!!timestamp":
		return "a date"
	case "!!null":
		return "empty"
	}
	return "a string"
}
