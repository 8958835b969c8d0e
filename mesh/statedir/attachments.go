package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"meshd/mesh"
)

// A network's containers are in a file of its own.
const (
	attachPrefix = "attach-" // of its name
	attachKind   = "attachments"
)

// attachNetwork tells which network's file that is.
func attachNetwork(name string) (network string, ok bool) {
	network, ok = strings.CutPrefix(name, attachPrefix)
	return network, ok && mesh.CheckName(network) == nil
}

// AttachmentNetworks lists the networks of which attachments were saved.
func (d *Dir) AttachmentNetworks() ([]string, error) {
	names, err := attachFiles(d.path)
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	var out []string
	for _, name := range names {
		network, _ := attachNetwork(name)
		out = append(out, network)
	}
	return out, nil
}

func attachFiles(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	var out []string
	for _, e := range entries {
		if _, ok := attachNetwork(e.Name()); ok {
			out = append(out, e.Name())
		}
	}
	return out, err
}

// LoadAttachments reads a network's document as SaveAttachments took it.
func (d *Dir) LoadAttachments(network string) ([]byte, error) {
	if err := mesh.CheckName(network); err != nil {
		return nil, fmt.Errorf("read attachments: %w", err)
	}
	var raw json.RawMessage
	if err := readKind(d.path, attachPrefix+network, attachKind, &raw); err != nil {
		return nil, fmt.Errorf("read attachments: %w", err)
	}
	return raw, nil
}

// SaveAttachments replaces a network's document, which is JSON. Unlike others it
// may be called from any goroutine, for one network by one at a time.
func (d *Dir) SaveAttachments(network string, document []byte) error {
	err := mesh.CheckName(network)
	if err == nil && !json.Valid(document) {
		err = errors.New("they are no JSON")
	}
	if err == nil {
		err = writeFile(d.path, attachPrefix+network, attachKind, json.RawMessage(document))
	}
	if err != nil {
		return fmt.Errorf("save attachments: %w", err)
	}
	return nil
}
