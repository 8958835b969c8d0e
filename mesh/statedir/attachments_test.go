package statedir

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAttachments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	keys, membership := newNode(t)
	if err := Create(path, keys, membership); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	long := strings.Repeat("n", 63)
	for _, network := range []string{"web", "default", long} {
		if err := d.SaveAttachments(network, []byte(`{"network":"`+network+`"}`)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{".tmp-attach-web", "attach-", "attach-Web", "attach-a b"} { // none of them is one
		if err := os.WriteFile(filepath.Join(path, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.AttachmentNetworks()
	if err != nil || !slices.Equal(got, []string{"default", long, "web"}) {
		t.Errorf("networks %v, %v", got, err)
	}
	for _, network := range got {
		raw, err := d.LoadAttachments(network)
		if want := `"` + network + `"`; err != nil || !strings.Contains(string(raw), want) {
			t.Errorf("%s: %s, %v", network, raw, err)
		}
	}
	if _, err := d.LoadAttachments("db"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that was never saved: %v", err)
	}
}

func TestAttachmentsRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	keys, membership := newNode(t)
	if err := Create(path, keys, membership); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	for _, network := range []string{"", "..", "../node", "a/b", "Web"} {
		if err := d.SaveAttachments(network, []byte("{}")); err == nil {
			t.Errorf("save %q: no error", network)
		}
		if _, err := d.LoadAttachments(network); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("load %q: %v", network, err)
		}
	}
	if err := d.SaveAttachments("web", []byte("{")); err == nil {
		t.Error("half a document is saved")
	}
	file := filepath.Join(path, "attach-web")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := d.LoadAttachments("web")
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "delete the file and restart") {
		t.Errorf("damaged: %v", err)
	}
}
