package config

import "testing"

func TestNameFromHost(t *testing.T) {
	long := ""
	for range 70 {
		long += "x"
	}
	for host, want := range map[string]string{
		"alpha":             "alpha",
		"Alpha.Example.COM": "alpha",
		"my_host":           "my-host",
		"-édge-":            "dge",
		"":                  "node",
		"...":               "node",
		long:                long[:63],
	} {
		if got := nameFromHost(host); got != want {
			t.Errorf("nameFromHost(%q) = %q, want %q", host, got, want)
		}
		if _, err := parseName(nameFromHost(host)); err != nil {
			t.Errorf("the name made of %q is refused: %v", host, err)
		}
	}
}
