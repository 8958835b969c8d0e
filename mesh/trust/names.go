package trust

import (
	"fmt"
	"path"
)

// CheckName verifies the name of a node, a mesh or a network: 1 to 63 of a-z,
// 0-9 and "-", neither first nor last a "-". So a name is a DNS label, and safe
// in a terminal, a path and a log.
func CheckName(name string) error {
	ok := len(name) >= 1 && len(name) <= 63 && name[0] != '-' && name[len(name)-1] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
	}
	if !ok {
		return fmt.Errorf("%w: name %.70q: 1 to 63 of a-z, 0-9 and -, neither first nor last a -", ErrMalformed, name)
	}
	return nil
}

// checkPattern verifies a name pattern as path.Match knows them: "web-*".
func checkPattern(pattern string) error {
	if len(pattern) > 63 {
		return fmt.Errorf("%w: name pattern of %d bytes, at most 63", ErrMalformed, len(pattern))
	}
	for _, c := range []byte(pattern) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("%w: name pattern %q has a character other than printable ASCII", ErrMalformed, pattern)
		}
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return fmt.Errorf("%w: name pattern %q: %w", ErrMalformed, pattern, err)
	}
	return nil
}

// matches tells whether a pattern allows the name; an empty one allows any.
func matches(pattern, name string) bool {
	if pattern == "" {
		return true
	}
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}
