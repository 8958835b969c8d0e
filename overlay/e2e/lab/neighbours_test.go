//go:build linux

package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The bounds of the kernel's table of neighbours are what they were once a large lab
// is gone.
func TestRoomIsGivenBack(t *testing.T) {
	bounds := func() string {
		var out []string
		for i := range 3 {
			raw, err := os.ReadFile("/proc/sys/" + threshold(i))
			if os.IsNotExist(err) {
				t.Skip("the kernel shows these bounds in its first namespace only")
			}
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, strings.TrimSpace(string(raw)))
		}
		return strings.Join(out, " ")
	}
	all := strings.Join([]string{enough, enough, enough}, " ")
	before := bounds()
	if before == all {
		t.Skip("another large lab is at work")
	}
	var names []string
	for i := range fewHosts + 1 {
		names = append(names, fmt.Sprintf("host%d", i))
	}
	l := build(t, names...)
	if got := bounds(); got != all {
		t.Errorf("the bounds are %s, want %s", got, all)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if after := bounds(); after != before {
		t.Errorf("the bounds are %s, they were %s", after, before)
	}
}
