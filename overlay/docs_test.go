package overlay_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// codeInGo finds the codes of findings where they are made.
var codeInGo = regexp.MustCompile(`(?:Code: |find\("\w+", )"(\w+)"`)

// codeInDocs finds the rows of the table of findings.
var codeInDocs = regexp.MustCompile("(?m)^\\| `(\\w+)` \\| [a-z]")

// TestFindingsAreDocumented compares docs/operations.md with the code: each
// finding that a node can show has its row, and no row is about nothing.
func TestFindingsAreDocumented(t *testing.T) {
	var made []string
	for _, pattern := range []string{"../mesh/*/*.go", "*.go", "*/*.go", "../cmd/*/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range codeInGo.FindAllStringSubmatch(string(text), -1) {
				made = append(made, m[1])
			}
		}
	}
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, findings, _ := strings.Cut(string(text), "## Findings")
	findings, _, _ = strings.Cut(findings, "\n## ")
	var told []string
	for _, m := range codeInDocs.FindAllStringSubmatch(findings, -1) {
		told = append(told, m[1])
	}
	slices.Sort(made)
	slices.Sort(told)
	if made = slices.Compact(made); !slices.Equal(made, told) {
		t.Errorf("the code makes %v\ndocs/operations.md tells of %v", made, told)
	}
}
