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
	if !json.Valid(document) {
		return errors.New("save networks of Docker: they are no JSON")
	}
	return d.save(fileDocker, "networks of Docker", json.RawMessage(document))
}
