package trust

import (
	"fmt"
	"path"

	"meshd/mesh"
)

// CheckName is [mesh.CheckName] with the error of this package.
func CheckName(name string) error {
	if err := mesh.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
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
