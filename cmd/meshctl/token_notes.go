package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// notesName is the file beside the CA key in which tokens are noted, a line of JSON
// each, without secrets.
const notesName = "tokens.jsonl"

// tokenNote is such a line.
type tokenNote struct {
	Mesh mesh.ID `json:"mesh"`
	tokenRow
}

func (c *cli) notesPath(ca string) string {
	return filepath.Join(filepath.Dir(c.caPath(ca)), notesName)
}

// noteToken remembers a token that was made. A line goes into the file whole.
func (c *cli) noteToken(ca string, t *trust.Token, generation uint64) error {
	note := tokenNote{t.Charter.ID(), tokenRowOf(t.Credential)}
	note.State, note.Key, note.Generation = tokenOpen, trust.KeyIDOf(t.GossipKey).String(), generation
	line, err := json.Marshal(note)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(c.notesPath(ca), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// readNotes reads the tokens that were made for a mesh. Whoever may not read them,
// or has none, knows those that were used.
func (c *cli) readNotes(ca string, id mesh.ID) []tokenNote {
	raw, err := os.ReadFile(c.notesPath(ca))
	if err != nil {
		fmt.Fprintf(c.stderr, "Note: %v: tokens that nobody used are not known; the file is beside the CA key, which --ca names\n", err)
		return nil
	}
	var notes []tokenNote
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		var n tokenNote
		if json.Unmarshal(lines.Bytes(), &n) == nil && n.Mesh == id && len(n.ID) == 2*len(trust.Serial{}) && n.NotBefore != nil && n.NotAfter != nil {
			notes = append(notes, n)
		}
	}
	return notes
}
