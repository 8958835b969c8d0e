package statedir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"meshd/mesh/member"
)

func TestDocker(t *testing.T) {
	path, _ := create(t)
	d := open(t, path)
	if _, err := d.LoadDocker(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before anything was saved: %v", err)
	}
	if err := d.SaveDocker([]byte(`{"networks":{}}`)); err != nil {
		t.Fatal(err)
	}
	if err := d.SaveDocker([]byte("{")); err == nil {
		t.Error("half a document is saved")
	}
	loads := func(when string) {
		t.Helper()
		if raw, err := open(t, path).LoadDocker(); err != nil || !strings.Contains(string(raw), `"networks"`) {
			t.Errorf("%s: %s, %v", when, raw, err)
		}
	}
	loads("as saved")

	// Docker does not forget its networks when the host joins another mesh.
	if err := d.SaveState(member.State{Epoch: 9, Left: true}); err != nil {
		t.Fatal(err)
	}
	if err := createNew(t, path); err != nil {
		t.Fatal(err)
	}
	loads("in another mesh")

	file := filepath.Join(path, fileDocker)
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := open(t, path).LoadDocker()
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "make the Docker networks of meshd again") {
		t.Errorf("damaged: %v", err)
	}
}

// Root may run the daemon once: what it writes stays readable for the service, and
// what it left as its own is handed over.
func TestDockerBelongsToTheOwner(t *testing.T) {
	_, nobody := somebody(t)
	path, _ := create(t)
	file := filepath.Join(path, fileDocker)
	if err := open(t, path).SaveDocker([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	if _, err := Give(path, nobody); err != nil {
		t.Fatal(err)
	}
	if o := owners(t, file)[0]; o != nobody {
		t.Errorf("given away, it belongs to %+v, want %+v", o, nobody)
	}
	if err := open(t, path).SaveDocker([]byte("[]")); err != nil {
		t.Fatal(err)
	}
	if o := owners(t, file)[0]; o != nobody {
		t.Errorf("saved by root, it belongs to %+v, want %+v", o, nobody)
	}
}
