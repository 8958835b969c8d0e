package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"meshd/mesh/member"
)

// What is not a file of ours is damage: named, not read, not waited for, and
// never the reason for new keys.
func TestOddFiles(t *testing.T) {
	for name, test := range map[string]struct {
		put  func(file string) error // where nothing is
		says string
	}{
		"directory": {func(f string) error { return os.Mkdir(f, 0o700) }, "a directory"},
		"full directory": {func(f string) error {
			return errors.Join(os.Mkdir(f, 0o700), os.WriteFile(filepath.Join(f, "x"), nil, 0o600))
		}, "a directory"},
		"symbolic link": {func(f string) error {
			return errors.Join(os.WriteFile(f+".real", nil, 0o600), os.Symlink(f+".real", f))
		}, "a symbolic link"},
		"dangling link": {func(f string) error { return os.Symlink("/does/not/exist", f) }, "a symbolic link"},
		"loop":          {func(f string) error { return os.Symlink(f, f) }, "a symbolic link"},
		"pipe":          {func(f string) error { return syscall.Mkfifo(f, 0o600) }, "mode p"},
		"empty":         {func(f string) error { return os.WriteFile(f, nil, 0o600) }, "no header"},
		"huge": {func(f string) error {
			return errors.Join(os.WriteFile(f, nil, 0o600), os.Truncate(f, 1<<30))
		}, "at most"},
		"version 0":    {func(f string) error { return os.WriteFile(f, ofVersion(f, "0"), 0o600) }, `its version is "0"`},
		"version x":    {func(f string) error { return os.WriteFile(f, ofVersion(f, "x"), 0o600) }, `its version is "x"`},
		"version 1e99": {func(f string) error { return os.WriteFile(f, ofVersion(f, "1e99"), 0o600) }, `its version is "1e99"`},
	} {
		for _, file := range []string{fileKeys, fileMesh, fileNode, fileTable, filePeers, fileStamp} {
			t.Run(name+" "+file, func(t *testing.T) {
				path, _ := create(t)
				at := filepath.Join(path, file)
				if err := errors.Join(os.Remove(at), test.put(at)); err != nil {
					t.Fatal(err)
				}
				var from, to runtime.MemStats
				runtime.ReadMemStats(&from)
				_, err := readAll(path)
				runtime.ReadMemStats(&to)
				if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), at) || !strings.Contains(err.Error(), test.says) {
					t.Errorf("says %v; want %s and %q", err, at, test.says)
				}
				if grew := to.TotalAlloc - from.TotalAlloc; grew > 1<<20 {
					t.Errorf("reading took %d bytes", grew)
				}
				if err := createNew(t, path); file != fileTable && file != filePeers && file != fileStamp && !errors.Is(err, ErrDamaged) {
					t.Errorf("Create: %v", err)
				}
			})
		}
	}
}

func ofVersion(file, version string) []byte {
	head := magic + " " + version + " " + filepath.Base(file) + " "
	return []byte(head + checksum(head, []byte("{}\n")) + "\n{}\n")
}

// A cache that is no file is replaced where that is possible.
func TestOddCache(t *testing.T) {
	path, _ := create(t)
	at, target := filepath.Join(path, fileTable), filepath.Join(t.TempDir(), "target")
	if err := errors.Join(os.Remove(at), os.WriteFile(target, []byte("theirs"), 0o600), os.Symlink(target, at)); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).SaveTable([][]byte{{1}}); err != nil {
		t.Fatal(err)
	}
	if table, err := open(t, path).LoadTable(); err != nil || len(table) != 1 {
		t.Errorf("table is %v, %v", table, err)
	}
	if raw, err := os.ReadFile(target); err != nil || string(raw) != "theirs" {
		t.Errorf("it was written through the link: %q, %v", raw, err)
	}
}

// Files of two nodes, or of two meshes, do not make one state.
func TestMixedFiles(t *testing.T) {
	for _, file := range []string{fileKeys, fileMesh, fileNode} {
		t.Run(file, func(t *testing.T) {
			path, _ := create(t)
			other, _ := create(t)
			raw, err := os.ReadFile(filepath.Join(other, file))
			if err == nil {
				err = os.WriteFile(filepath.Join(path, file), raw, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readAll(path); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "the keys are those of") {
				t.Errorf("says %v", err)
			}
			if d, err := Open(path); err == nil {
				if _, err := d.BeginEpoch(); !errors.Is(err, ErrDamaged) {
					t.Errorf("BeginEpoch: %v", err)
				}
			}
			if err := createNew(t, path); !errors.Is(err, ErrDamaged) {
				t.Errorf("Create: %v", err)
			}
		})
	}
}

const here, there = "0123456789abcdef0123456789abcdef", "00000000000000000000000000000001"

func TestCopiedState(t *testing.T) {
	atMachine(t, here)
	path, keys := create(t)
	if _, err := Open(path); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(path, fileNode))
	if err != nil || strings.Contains(string(raw), here) {
		t.Errorf("the machine's ID itself is in %s, %v", raw, err)
	}

	atMachine(t, there)
	_, err = Open(path)
	if !errors.Is(err, ErrCopied) {
		t.Fatalf("elsewhere: %v", err)
	}
	for _, want := range []string{path, "another machine", "harm each other", "meshctl adopt", "delete", "join anew"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if err := createNew(t, path); !errors.Is(err, ErrExists) {
		t.Errorf("Create: %v", err)
	}

	d, changed, err := Adopt(path)
	if err != nil || !changed || !reflect.DeepEqual(d.Keys(), keys) {
		t.Fatalf("Adopt: %v, %t, %v", d, changed, err)
	}
	if s, err := open(t, path).State(); err != nil || !reflect.DeepEqual(s, testState()) {
		t.Errorf("state is %+v, %v", s, err)
	}
	if _, changed, err := Adopt(path); err != nil || changed {
		t.Errorf("Adopt again: %t, %v", changed, err)
	}
	atMachine(t, here)
	if _, err := Open(path); !errors.Is(err, ErrCopied) {
		t.Errorf("back on the first machine: %v", err)
	}
}

// A state of before, or of a machine without an ID, is bound by the next start.
func TestBinding(t *testing.T) {
	unbound := func(t *testing.T) string {
		t.Helper()
		atMachine(t, "")
		path, _ := create(t)
		return path
	}
	t.Run("the next start binds", func(t *testing.T) {
		path := unbound(t)
		atMachine(t, here)
		d := open(t, path)
		if err := d.SaveState(testState()); err != nil {
			t.Fatal(err)
		}
		atMachine(t, there)
		open(t, path) // still free: nothing has started
		atMachine(t, here)
		if _, err := open(t, path).BeginEpoch(); err != nil {
			t.Fatal(err)
		}
		open(t, path)
		atMachine(t, there)
		if _, err := Open(path); !errors.Is(err, ErrCopied) {
			t.Errorf("elsewhere: %v", err)
		}
	})
	t.Run("a state from before", func(t *testing.T) {
		path := unbound(t)
		content, err := encodeFile(fileNode, map[string]any{"epoch": 3})
		if err == nil {
			err = os.WriteFile(filepath.Join(path, fileNode), content, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		atMachine(t, here)
		if s, err := open(t, path).BeginEpoch(); err != nil || s.Epoch != 4 {
			t.Errorf("epoch %d, %v", s.Epoch, err)
		}
		atMachine(t, there)
		if _, err := Open(path); !errors.Is(err, ErrCopied) {
			t.Errorf("elsewhere: %v", err)
		}
	})
	t.Run("saving keeps it", func(t *testing.T) {
		atMachine(t, here)
		path, _ := create(t)
		if err := open(t, path).SaveState(member.State{Epoch: 9}); err != nil {
			t.Fatal(err)
		}
		atMachine(t, there)
		if _, err := Open(path); !errors.Is(err, ErrCopied) {
			t.Errorf("elsewhere: %v", err)
		}
	})
	for _, id := range []string{"", "uninitialized", "\n", "0123", strings.Repeat("0", 32), strings.Repeat("x", 32), strings.Repeat("ab", 1<<16)} {
		t.Run(fmt.Sprintf("no ID, %.20q", id), func(t *testing.T) {
			atMachine(t, here)
			path, _ := create(t)
			atMachine(t, id)
			if thisMachine() != "" {
				t.Error("that passes as an ID")
			}
			if _, err := open(t, path).BeginEpoch(); err != nil {
				t.Errorf("start: %v", err)
			}
			atMachine(t, there)
			if _, err := Open(path); !errors.Is(err, ErrCopied) {
				t.Errorf("the start freed it: %v", err)
			}
		})
	}
}

// The name is of 16 bytes, always the same, and not the ID's to guess.
func TestMachineName(t *testing.T) {
	atMachine(t, here)
	// Computed with: printf 'meshd state directory' | openssl dgst -sha256 -mac HMAC -macopt hexkey:$ID
	if got, want := thisMachine(), "a3c83bf6b9bac8ff87046d4a1b128507"; got != want {
		t.Errorf("it is %s, want %s", got, want)
	}
}

// Where there is no ID, the file does not speak of machines.
func TestNodeFile(t *testing.T) {
	atMachine(t, "")
	path, keys := create(t)
	raw, err := os.ReadFile(filepath.Join(path, fileNode))
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(raw), "\n")
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if got["node"] != keys.ID().String() || got["machine"] != nil {
		t.Errorf("it has %v", got)
	}
}
