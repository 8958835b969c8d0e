package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
)

// LoadDocker reads what SaveDocker took.
func (d *Dir) LoadDocker() ([]byte, error) {
	var raw json.RawMessage
	if err := readFile(d.path, fileDocker, &raw); err != nil {
		return nil, fmt.Errorf("read networks of Docker: %w", err)
	}
	return raw, nil
}

// SaveDocker replaces what is known of the networks of this host's Docker, which is
// JSON. Unlike others it may be called from any goroutine, by one at a time. It
// outlasts the membership, as Docker's networks do.
func (d *Dir) SaveDocker(document []byte) error {
	var err error
	if !json.Valid(document) {
		err = errors.New("they are no JSON")
	}
	if err == nil {
		err = writeFile(d.path, fileDocker, fileDocker, json.RawMessage(document))
	}
	if err != nil {
		return fmt.Errorf("save networks of Docker: %w", err)
	}
	return nil
}
