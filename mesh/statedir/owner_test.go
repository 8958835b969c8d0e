package statedir

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"meshd/mesh/member"
)

// somebody is a user that every host has, with a main group.
func somebody(t *testing.T) (string, Owner) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("MESHD_REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("only root can give files away")
	}
	owner, err := lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	return "nobody", owner
}

func owners(t *testing.T, paths ...string) []Owner {
	t.Helper()
	var all []Owner
	for _, p := range paths {
		info, err := os.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ownerOf(info))
	}
	return all
}

func TestNewDirectoryIsTheServices(t *testing.T) {
	name, nobody := somebody(t)
	path := filepath.Join(t.TempDir(), "state")
	if err := makeDir(path, name); err != nil {
		t.Fatal(err)
	}
	if err := createNew(t, path); err != nil {
		t.Fatal(err)
	}
	release, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	release()
	for i, o := range owners(t, path, filepath.Join(path, fileKeys), filepath.Join(path, fileMesh), filepath.Join(path, fileNode), filepath.Join(path, fileLock)) {
		if o != nobody {
			t.Errorf("file %d belongs to %+v, want %+v", i, o, nobody)
		}
	}
	t.Run("one that is there keeps its owner", func(t *testing.T) {
		path := t.TempDir()
		if err := makeDir(path, name); err != nil {
			t.Fatal(err)
		}
		if o := owners(t, path)[0]; o.UID != 0 {
			t.Errorf("it belongs to %+v now", o)
		}
	})
}

func TestOwnerOf(t *testing.T) {
	name, nobody := somebody(t)
	dir := t.TempDir()
	given := filepath.Join(dir, "given")
	if err := os.Mkdir(given, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(given, 64000, 64001); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, service string
		want          Owner
	}{
		{dir, name, nobody},
		{filepath.Join(dir, "missing"), name, nobody},
		{dir, "no-such-user", Owner{}},
		{given, name, Owner{64000, 64001}},
	} {
		if got, err := OwnerOf(c.path, c.service); err != nil || got != c.want {
			t.Errorf("OwnerOf(%s, %s) = %+v, %v, want %+v", c.path, c.service, got, err, c.want)
		}
	}
	if _, err := lookup("no-such-user"); err != user.UnknownUserError("no-such-user") {
		t.Errorf("lookup = %v", err)
	}
}

// What the daemon's user has put into its directory must not make root give
// away what is outside of it.
func TestGive(t *testing.T) {
	_, nobody := somebody(t)
	outside := t.TempDir()
	foreign := filepath.Join(outside, "shadow")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	path, _ := create(t)
	in := func(name string) string { return filepath.Join(path, name) }
	for _, err := range []error{
		os.Link(foreign, in(".tmp-node")),
		os.Symlink(foreign, in(".tmp-mesh")),
		os.Symlink(outside, in("left-1")),
		os.Mkdir(in("left-2"), 0o700),
		os.WriteFile(in("left-2/keys"), nil, 0o600),
		os.WriteFile(in("notes"), nil, 0o600), // not ours
		os.Chown(in(fileNode), 64000, 64000),  // not root's
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	changed, err := Give(path, nobody)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(changed)
	want := []string{path, in(fileKeys), in("left-2"), in("left-2/keys"), in(fileMesh), in(filePeers), in(fileStamp), in(fileTable)}
	slices.Sort(want)
	if !slices.Equal(changed, want) {
		t.Errorf("changed\n%q, want\n%q", changed, want)
	}
	for i, o := range owners(t, want...) {
		if o != nobody {
			t.Errorf("%s belongs to %+v", want[i], o)
		}
	}
	for _, p := range []string{foreign, outside, in("notes")} {
		if o := owners(t, p)[0]; o.UID != 0 {
			t.Errorf("%s was given away", p)
		}
	}
	if again, err := Give(path, nobody); err != nil || len(again) > 0 {
		t.Errorf("a second time it changes %q, %v", again, err)
	}
	open(t, path)
}

func TestOwnerDo(t *testing.T) {
	_, nobody := somebody(t)
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	read := func() error {
		_, err := os.ReadFile(path)
		return err
	}
	if err := nobody.Do(read); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("nobody reads a file of root's: %v", err)
	}
	for range 20 { // on whatever threads there are
		if err := read(); err != nil {
			t.Fatalf("root does not any more: %v", err)
		}
	}
	if err := (Owner{}).Do(read); err != nil {
		t.Errorf("Do as root: %v", err)
	}
}

// What the daemon's user has put where root writes must not lead it elsewhere.
func TestWritesGoNowhereElse(t *testing.T) {
	_, nobody := somebody(t)
	for what, plant := range map[string]func(foreign, at string) error{
		"hard link":     os.Link,
		"symbolic link": os.Symlink,
		"pipe":          func(_, at string) error { return syscall.Mkfifo(at, 0o600) },
	} {
		t.Run(what, func(t *testing.T) {
			path, _ := create(t)
			foreign := filepath.Join(t.TempDir(), "shadow")
			for _, err := range []error{
				os.WriteFile(foreign, []byte("secret"), 0o600),
				plant(foreign, filepath.Join(path, ".tmp-"+fileNode)),
				os.Chown(path, nobody.UID, nobody.GID),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			d := open(t, path)
			if err := errors.Join(d.SaveState(member.State{Epoch: 8}), d.Check()); err != nil {
				t.Error(err)
			}
			if s, err := d.State(); err != nil || s.Epoch != 8 {
				t.Errorf("state is %+v, %v", s, err)
			}

			_ = os.Remove(filepath.Join(path, fileLock))
			if err := plant(foreign, filepath.Join(path, fileLock)); err != nil {
				t.Fatal(err)
			}
			if release, err := Lock(path); err == nil {
				release()
				t.Error("locked")
			}
			if content, err := os.ReadFile(foreign); err != nil || string(content) != "secret" || owners(t, foreign)[0].UID != 0 {
				t.Errorf("the other file holds %q, %v, and is owned by %+v", content, err, owners(t, foreign)[0])
			}
		})
	}
}
