// Package docs_test compares the documentation with the code, so that neither
// gets ahead.
package docs_test

import (
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/status"
)

// section gives the text of docs/operations.md below a heading.
func section(t *testing.T, heading string) string {
	t.Helper()
	text, err := os.ReadFile("operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("there is no section %q", heading)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	return rest
}

// rows gives the rows of all tables in a text whose first cell is code, by that.
func rows(t *testing.T, text string) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		key, isCode := strings.CutPrefix(cells[0], "`")
		if !strings.HasPrefix(line, "| ") || !isCode {
			continue
		}
		key = strings.TrimSuffix(key, "`")
		if out[key] != nil {
			t.Errorf("%s has two rows", key)
		}
		out[key] = cells[1:]
	}
	return out
}

// compare says what only one side has.
func compare[V any, W any](t *testing.T, made map[string]V, told map[string]W) {
	t.Helper()
	for _, k := range slices.Sorted(maps.Keys(made)) {
		if _, ok := told[k]; !ok {
			t.Errorf("the page does not tell of %s", k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(told)) {
		if _, ok := made[k]; !ok {
			t.Errorf("the page tells of %s, which the code does not make", k)
		}
	}
	if len(made) == 0 {
		t.Error("nothing was found in the code: the test is blind")
	}
}

// sources parses all code that ends up in the programs.
func sources(t *testing.T) map[string]*ast.File {
	t.Helper()
	files := map[string]*ast.File{}
	for _, root := range []string{"../cmd", "../mesh", "../overlay", "../tun"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && slices.Contains(testDirectories, d.Name()):
				return fs.SkipDir
			case filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			files[path], err = parser.ParseFile(token.NewFileSet(), path, nil, 0)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// testDirectories have code that only tests use.
var testDirectories = []string{"e2e", "sim", "meshtest", "tuntest", "tunneltest", "attachtest", "netns", "testdata"}

// constants gives the values of the constants of a package for which choose says
// yes, by name and type.
func constants(t *testing.T, dir string, choose func(name, typ string) bool) map[string]string {
	t.Helper()
	out := map[string]string{}
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || strings.HasSuffix(path, "_test.go") {
				return true
			}
			typ, _ := spec.Type.(*ast.Ident)
			for i, v := range spec.Values {
				literal, ok := v.(*ast.BasicLit)
				if ok && choose(spec.Names[i].Name, fmt.Sprint(typ)) {
					out[strings.Trim(literal.Value, `"`)] = spec.Names[i].Name
				}
			}
			return true
		})
	}
	return out
}

// findingInGo finds the level and the code of a finding where it is made.
var findingInGo = regexp.MustCompile(`(?:Level: |find\()"(\w+)",(?: Code:)? "(\w+)"`)

// findings gives the levels (1) or the codes (2) of all findings.
func findings(t *testing.T, group int) map[string]string {
	t.Helper()
	made := map[string]string{}
	for path := range sources(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range findingInGo.FindAllStringSubmatch(string(text), -1) {
			made[m[group]] = path
		}
	}
	return made
}

// TestFindingsAreDocumented: each finding that a node can show has its row, and
// no row is about nothing.
func TestFindingsAreDocumented(t *testing.T) {
	compare(t, findings(t, 2), rows(t, section(t, "Findings")))
}

func TestExitCodesAreDocumented(t *testing.T) {
	made := constants(t, "../cmd/internal/exit", func(name, _ string) bool { return ast.IsExported(name) })
	compare(t, made, rows(t, section(t, "Exit codes")))
}

// TestStatusIsDocumented walks through the types of the document. What is null
// when nothing is known shows in the JSON of an empty one.
func TestStatusIsDocumented(t *testing.T) {
	empty := status.Document{
		Networks: []status.Network{{Ranges: []status.Range{{}}}},
		Node:     status.Node{Leases: []status.Lease{{}}},
		Peers:    []status.Peer{{Leases: []status.Lease{{}}}},
		Health:   []status.Finding{{}}, Attachments: []status.AttachmentCount{{}},
	}
	made := map[string]string{}
	describe(made, "", reflect.TypeFor[status.Document](), asJSON(empty))
	told := rows(t, section(t, "The status document"))
	for name := range told {
		if want, ok := made[name]; ok && told[name][0] != want {
			t.Errorf("%s is told to be %q, it is %q", name, told[name][0], want)
		}
	}
	compare(t, made, told)
}

// asJSON gives what a value of the document is in JSON.
func asJSON(v any) (written any) {
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, &written)
	}
	if err != nil {
		panic(err)
	}
	return written
}

// describe lists the fields of a type, a struct, with what they are in JSON.
func describe(into map[string]string, path string, typ reflect.Type, written any) {
	object := written.(map[string]any)
	for field := range typ.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		value, present := object[name]
		at, inner := path+name, field.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		switch {
		case inner == reflect.TypeFor[[]status.Lease]() && path == "peers[].":
			into[at] = "list" // of the same as the node's own
			continue
		case inner.Kind() == reflect.Slice && inner.Elem().Kind() == reflect.Struct && inner.Elem().PkgPath() == reflect.TypeFor[status.Document]().PkgPath():
			into[at] = "list"
			describe(into, at+"[].", inner.Elem(), value.([]any)[0])
			continue
		case inner.Kind() == reflect.Struct && inner.PkgPath() == reflect.TypeFor[status.Document]().PkgPath():
			if value == nil {
				into[at], value = "object or null", asJSON(reflect.Zero(inner).Interface())
			}
			describe(into, at+".", inner, value)
			continue
		}
		into[at] = jsonType(inner)
		if !present {
			into[at] += ", or absent"
		} else if value == nil {
			into[at] += " or null"
		}
	}
}

func jsonType(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Time]():
		return "time"
	case reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.AddrPort](), reflect.TypeFor[netip.Prefix](), reflect.TypeFor[mesh.ID]():
		return "string"
	}
	switch t.Kind() {
	case reflect.Map:
		return "object"
	case reflect.Slice:
		return "list of " + jsonType(t.Elem()) + "s"
	case reflect.String:
		return "string"
	default:
		return "number"
	}
}

// TestEnumerationsAreDocumented compares the values that a field may have.
func TestEnumerationsAreDocumented(t *testing.T) {
	told := rows(t, section(t, "Values"))
	leases := map[string]string{}
	for s := mesh.Pending; !strings.HasPrefix(s.String(), "state("); s++ {
		leases[s.String()] = ""
	}
	for field, made := range map[string]map[string]string{
		"state":               constants(t, "../mesh", func(_, typ string) bool { return typ == "State" }),
		"peers[].state":       constants(t, "../overlay/status", func(_, typ string) bool { return typ == "PeerState" }),
		"peers[].expired":     constants(t, "../mesh", func(_, typ string) bool { return typ == "Expiry" }),
		"peers[].path":        constants(t, "../overlay/status", func(name, _ string) bool { return strings.HasPrefix(name, "Path") }),
		"peers[].suite":       constants(t, "../overlay/tunnel", func(name, _ string) bool { return ast.IsExported(name) && !strings.HasPrefix(name, "Drop") }),
		"engine.name":         constants(t, "../overlay/config", func(name, typ string) bool { return typ == "Engine" && name != "EngineAuto" }),
		"node.leases[].state": leases,
		"health[].level":      findings(t, 1),
	} {
		t.Run(field, func(t *testing.T) {
			if told[field] == nil {
				t.Fatalf("no row for %s", field)
			}
			values := map[string]bool{}
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(told[field][0], -1) {
				values[m[1]] = true
			}
			delete(made, "") // no state is no value
			compare(t, made, values)
		})
	}
}

// TestDropsAreDocumented: each reason for which an engine drops packets has its row.
func TestDropsAreDocumented(t *testing.T) {
	made := constants(t, "../overlay/tunnel", func(name, _ string) bool { return strings.HasPrefix(name, "Drop") })
	compare(t, made, rows(t, section(t, "Dropped packets")))
}

// TestLogKeysAreDocumented looks at every call that logs: its keys are words of
// one vocabulary, and none of them is a key that slog itself writes.
func TestLogKeysAreDocumented(t *testing.T) {
	made := map[string][]string{}
	for path, f := range sources(t) {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			args, logs := logged(call)
			if !logs || call.Ellipsis.IsValid() { // the keys were given elsewhere
				return true
			}
			for i := 0; i < len(args); i += 2 {
				literal, ok := args[i].(*ast.BasicLit)
				if !ok || literal.Kind != token.STRING || i+1 == len(args) {
					t.Errorf("%s: a key is no literal, or has no value", path)
					continue
				}
				key, _ := strconv.Unquote(literal.Value)
				made[key] = append(made[key], path)
			}
			return true
		})
	}
	for _, reserved := range []string{"time", "level", "msg", "source"} {
		if in := made[reserved]; in != nil {
			t.Errorf("the key %s is slog's own: %v", reserved, in)
		}
	}
	compare(t, made, rows(t, section(t, "Logs")))
}

// logged gives the keys and values of a call that logs: a method of a logger, a
// function "say", or an addition to the "args" of one.
func logged(call *ast.CallExpr) ([]ast.Expr, bool) {
	var name, on string
	switch f := call.Fun.(type) {
	case *ast.Ident:
		name = f.Name
	case *ast.SelectorExpr:
		name = f.Sel.Name
		switch x := f.X.(type) {
		case *ast.Ident:
			on = x.Name
		case *ast.SelectorExpr:
			on = x.Sel.Name
		}
	}
	skip := map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0, "Log": 3, "DebugContext": 2, "InfoContext": 2, "WarnContext": 2, "ErrorContext": 2}
	switch {
	case name == "append" && len(call.Args) > 1 && fmt.Sprint(call.Args[0]) == "args":
		return call.Args[1:], !call.Ellipsis.IsValid()
	case name == "say" && len(call.Args) > 0:
		if _, message := call.Args[0].(*ast.BasicLit); message {
			return call.Args[1:], true
		}
		return call.Args[min(2, len(call.Args)):], true // a level comes first
	case on == "log" || on == "Log" || on == "slog":
		n, ok := skip[name]
		return call.Args[min(n, len(call.Args)):], ok
	}
	return nil, false
}

// metricsOf shows one of everything.
type metricsOf struct{ status.Document }

func (m metricsOf) Status() status.Document { return m.Document }
func (metricsOf) Version() string           { return "1" }
func (metricsOf) Ping(context.Context, mesh.NodeID) (time.Duration, netip.Addr, error) {
	return 0, netip.Addr{}, nil
}
func (metricsOf) Leave(context.Context) error { return nil }
func (metricsOf) Down(context.Context) error  { return nil }

// sample finds a metric of ours with its labels.
var sample = regexp.MustCompile(`(?m)^(meshd_\w+)(?:\{(.*)\})? `)

func TestMetricsAreDocumented(t *testing.T) {
	one, number, now := 1.0, uint64(1), time.Unix(1, 0)
	handler := status.MonitorHandler(metricsOf{status.Document{
		Node: status.Node{
			Leases:          []status.Lease{{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}},
			CertificateEnds: &now, GossipKey: &status.Generations{}, GossipKeyMade: &now,
		},
		Engine: status.Engine{Drops: map[string]uint64{"x": 1}},
		Peers:  []status.Peer{{RTTms: &one, Loss: &one, PathMTU: new(1200), RxBytes: &number, TxBytes: &number, LastHandshake: &now}},
		Health: []status.Finding{{}}, Attachments: []status.AttachmentCount{{}},
	}})
	answer := httptest.NewRecorder()
	request := httptest.NewRequest("GET", "/metrics", nil)
	request.Host = "localhost"
	handler.ServeHTTP(answer, request)
	text := answer.Body.String()
	made := map[string]string{}
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		var labels []string
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[2], -1) {
			labels = append(labels, "`"+l[1]+"`")
		}
		slices.Sort(labels)
		kind := "gauge"
		if strings.Contains(text, "# TYPE "+m[1]+" counter\n") {
			kind = "counter"
		}
		made[m[1]] = kind + " " + strings.Join(labels, ", ")
	}
	told := rows(t, section(t, "Metrics"))
	for name, cells := range told {
		if got := cells[0] + " " + cells[1]; made[name] != "" && got != made[name] {
			t.Errorf("%s is told to be %q, it is %q", name, got, made[name])
		}
	}
	compare(t, made, told)
}

// pages gives the text of every page, by its path from the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../docs/*/*.md", "../examples/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			out[path] = string(text)
		}
	}
	return out
}

// TestLinks: what a page of ours links to is there, and so is the heading.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	all, n := pages(t), 0
	for path, text := range all {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			n++
			file := path
			if target != "" {
				file = filepath.Join(filepath.Dir(path), target)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			} else if heading != "" && !slices.Contains(anchors(all[file]), heading) {
				t.Errorf("%s links to %s: no such heading", path, m[1])
			}
		}
	}
	if n == 0 {
		t.Error("no link was found")
	}
}

// anchors are those that GitHub makes of a page's headings.
func anchors(text string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		heading := strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")
		out = append(out, regexp.MustCompile(`[^\w-]`).ReplaceAllString(heading, ""))
	}
	return out
}

// command is one of a program, as its help shows it.
type command struct {
	flags []string
	takes bool // arguments
}

// helpOf lists the commands of a program, by their words; "" is the program.
func helpOf(t *testing.T, program string, words ...string) map[string]*command {
	t.Helper()
	help, err := exec.Command(program, append(slices.Clone(words), "--help")...).Output()
	if err != nil {
		t.Fatalf("%s %v --help: %v", program, words, err)
	}
	this := &command{takes: regexp.MustCompile(`(?m)^  meshctl [a-z ]*\[?[A-Z]`).Match(help)}
	out := map[string]*command{strings.Join(words, " "): this}
	for _, m := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z0-9-]+)`).FindAllStringSubmatch(string(help), -1) {
		this.flags = append(this.flags, m[1])
	}
	_, list, _ := strings.Cut(string(help), "\nAvailable Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		if name := strings.Fields(line)[0]; name != "help" && name != "completion" {
			maps.Copy(out, helpOf(t, program, append(slices.Clone(words), name)...))
		}
	}
	return out
}

// TestWholeCommandsExist: what pages tell people to type to meshctl are commands to
// their last word, with flags of their own.
func TestWholeCommandsExist(t *testing.T) {
	program := filepath.Join(t.TempDir(), "meshctl")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/meshctl").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	commands := helpOf(t, program)
	line := regexp.MustCompile(`\bmeshctl ([^|;&#()>\n]*?)(?:[|;&#()>\n]| {3}|$)`)
	plain, n := regexp.MustCompile(`^[a-z]+$`), 0
	for path, text := range pages(t) {
		for _, snippet := range snippets.FindAllString(text, -1) {
			for _, m := range line.FindAllStringSubmatch(snippet, -1) {
				at, wrong, after := "", "", ""
				var flags []string
				for word := range strings.FieldsSeq(strings.Trim(m[1], "`")) {
					next := strings.TrimSpace(at + " " + word)
					flag, isFlag := strings.CutPrefix(word, "--")
					switch {
					case isFlag:
						flag, _, _ = strings.Cut(flag, "=")
						flags = append(flags, flag)
					case commands[next] != nil:
						at = next
					case !strings.HasPrefix(after, "-") && !commands[at].takes && plain.MatchString(word):
						wrong = next
					}
					after = word
				}
				if n++; wrong != "" {
					t.Errorf("%s: %s: there is no meshctl %s", path, snippet, wrong)
				}
				for _, flag := range flags {
					if at != "" && !slices.Contains(commands[at].flags, flag) {
						t.Errorf("%s: %s: meshctl %s has no --%s", path, snippet, at, flag)
					}
				}
			}
		}
	}
	if n == 0 || len(commands) < 20 {
		t.Errorf("only %d lines and %d commands were found", n, len(commands))
	}
}

// snippets are what a page shows as code.
var snippets = regexp.MustCompile("(?m)`[^`\n]*`|^    .*$")

// TestCommandsExist: no page tells people to type a subcommand or a flag that
// there is not.
func TestCommandsExist(t *testing.T) {
	uses, flags := map[string]bool{"help": true, "completion": true}, map[string]bool{"version": true, "help": true}
	use := regexp.MustCompile(`Use: +"([a-z]+)`)
	flag := regexp.MustCompile(`(?:Var|VarP|Bool|String)\((?:(?:\(\*life\)\()?&?[\w.]+\)?, )?"([a-z0-9-]+)"`)
	for path := range sources(t) {
		if !strings.HasPrefix(path, "../cmd/") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range use.FindAllStringSubmatch(string(text), -1) {
			uses[m[1]] = true
		}
		for _, m := range flag.FindAllStringSubmatch(string(text), -1) {
			flags[m[1]] = true
		}
	}
	command := regexp.MustCompile(`\bmeshctl ((?:--\w+ \S+ )*)([a-z]+)`)
	option := regexp.MustCompile(`\s--([a-z0-9-]+)`)
	n := 0
	for path, text := range pages(t) {
		for _, snippet := range snippets.FindAllString(text, -1) {
			for _, m := range command.FindAllStringSubmatch(snippet, -1) {
				if n++; !uses[m[2]] {
					t.Errorf("%s: %s: there is no meshctl %s", path, snippet, m[2])
				}
			}
			if !regexp.MustCompile(`\bmesh(d|ctl) `).MatchString(snippet) || strings.Contains(snippet, "docker ") { // it has a -d meshd
				continue
			}
			for _, m := range option.FindAllStringSubmatch(snippet, -1) {
				if !flags[m[1]] && m[1] != "now" { // systemctl's
					t.Errorf("%s: %s: there is no --%s", path, snippet, m[1])
				}
			}
		}
	}
	if n == 0 {
		t.Error("no command was found")
	}
}

// namedTest finds a test that a page names, with its package.
var namedTest = regexp.MustCompile("`((?:cmd|mesh|tun|overlay|examples)[a-z0-9/-]*)\\.((?:Test|Fuzz)\\w+)`")

// TestNamedTestsExist: what docs/security.md says cannot be done, and what
// docs/testing.md says is expected, is proved by tests that there are.
func TestNamedTestsExist(t *testing.T) {
	for _, name := range []string{"security.md", "testing.md"} {
		page, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		named := namedTest.FindAllStringSubmatch(string(page), -1)
		if len(named) < 10 {
			t.Fatalf("%s names only %d tests", name, len(named))
		}
		for _, m := range named {
			files, err := filepath.Glob(filepath.Join("..", m[1], "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(files, func(path string) bool {
				text, err := os.ReadFile(path)
				return err == nil && strings.Contains(string(text), "\nfunc "+m[2]+"(")
			}) {
				t.Errorf("%s: %s.%s: there is no such test", name, m[1], m[2])
			}
		}
		if loose := regexp.MustCompile("`Test\\w+`").FindString(string(page)); loose != "" {
			t.Errorf("%s: %s is named without its package", name, loose)
		}
	}
}
