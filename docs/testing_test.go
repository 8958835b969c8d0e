package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fuzzTargets gives all there are, as docs/testing.md names them.
func fuzzTargets(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	target := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	for _, root := range []string{"cmd", "mesh", "overlay", "tun"} {
		err := filepath.WalkDir(filepath.Join("..", root), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range target.FindAllStringSubmatch(string(text), -1) {
				dir, _ := strings.CutPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
				all[dir+"."+m[1]] = dir
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestFuzzTargetsAreListed(t *testing.T) {
	page, err := os.ReadFile("testing.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(page), "\n## Parsers of foreign bytes\n")
	if !found {
		t.Fatal("docs/testing.md has no list of parsers")
	}
	told := map[string]bool{}
	for _, m := range namedTest.FindAllStringSubmatch(list, -1) {
		told[m[1]+"."+m[2]] = true
	}
	compare(t, fuzzTargets(t), told)
}

// parses is how functions are called here that make sense of bytes.
var parses = regexp.MustCompile(`^(?i:parse|decode|unmarshal|readInitiation|readObjects)`)

// notForeign are packages that parse what only we have written, or leave it to
// another one. Each has its reason.
var notForeign = map[string]string{
	"mesh": "names and keys as text, by the parsers of package encoding, with tables of what they refuse",
}

// TestParsersHaveTargets: who parses bytes that somebody else has made is fuzzed.
func TestParsersHaveTargets(t *testing.T) {
	fuzzed := slices.Collect(maps.Values(fuzzTargets(t)))
	parsers := map[string][]string{}
	for path, f := range sources(t) {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && parses.MatchString(fn.Name.Name) && takesBytes(fn) {
				dir, _ := strings.CutPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
				parsers[dir] = append(parsers[dir], fn.Name.Name)
			}
		}
	}
	if len(parsers) < 8 {
		t.Errorf("parsers were found in %d packages only: the test is blind", len(parsers))
	}
	for dir, names := range parsers {
		if notForeign[dir] == "" && !slices.Contains(fuzzed, dir) {
			t.Errorf("%s has %s and no fuzz target", dir, strings.Join(names, ", "))
		}
	}
	for dir := range notForeign {
		if parsers[dir] == nil {
			t.Errorf("%s is excused and parses nothing", dir)
		}
	}
}

// takesBytes tells whether a function has a parameter of bytes.
func takesBytes(fn *ast.FuncDecl) bool {
	return slices.ContainsFunc(fn.Type.Params.List, func(p *ast.Field) bool {
		switch typ := p.Type.(type) {
		case *ast.ArrayType:
			elem, ok := typ.Elt.(*ast.Ident)
			return ok && typ.Len == nil && elem.Name == "byte"
		case *ast.SelectorExpr:
			return typ.Sel.Name == "Reader"
		}
		return false
	})
}

// The blind would see everything.
func TestTakesBytes(t *testing.T) {
	for code, want := range map[string]bool{
		"func f(b []byte)": true, "func f(r io.Reader)": true, "func f(n int, a, b []byte)": true,
		"func f()": false, "func f(s string)": false, "func f(b [4]byte)": false, "func f(b [][]byte)": false,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "", "package p\n"+code, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := takesBytes(f.Decls[0].(*ast.FuncDecl)); got != want {
			t.Errorf("%s: %t", code, got)
		}
	}
}
