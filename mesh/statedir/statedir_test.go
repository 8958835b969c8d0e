package statedir

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/trust"
)

// Thousands of files are written and synced here; memory is quick at that.
func TestMain(m *testing.M) {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err == nil && info.IsDir() && os.Getenv("TMPDIR") == "" {
		_ = os.Setenv("TMPDIR", memory)
	}
	m.Run()
}

// newNode gives the keys of a new node and what makes it a member of a mesh of
// its own.
func newNode(t testing.TB) (Keys, Membership) {
	t.Helper()
	_, ca, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return newNodeOf(t, ca)
}

// newNodeOf is newNode with the CA key of that mesh.
func newNodeOf(t testing.TB, ca ed25519.PrivateKey) (Keys, Membership) {
	t.Helper()
	now, keys := time.Now(), NewKeys()
	charter := trust.Charter{Name: "home", Version: 1, Created: now, Networks: []mesh.Network{
		{Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24},
	}}
	rawCharter, err := charter.Sign(ca)
	if err != nil {
		t.Fatal(err)
	}
	certificate := trust.Certificate{
		Serial: trust.NewSerial(), Identity: keys.Identity.Public().(ed25519.PublicKey), Name: "alpha",
		SealKey: keys.Seal.Public(), NotBefore: now, NotAfter: now.Add(time.Hour), Admitted: now,
	}
	rawCertificate, err := certificate.Sign(ca)
	if err != nil {
		t.Fatal(err)
	}
	return keys, Membership{
		Charter: rawCharter, Certificate: rawCertificate, Keyring: member.NewKeyring(bytes.Repeat([]byte{'G'}, 32)),
		Seeds: []string{"192.0.2.1:51881"}, Founder: true,
	}
}

func TestSaveCharter(t *testing.T) {
	_, ca, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, want := newNodeOf(t, ca)
	path := filepath.Join(t.TempDir(), "state")
	if err := Create(path, keys, want); err != nil {
		t.Fatal(err)
	}
	first, err := trust.ParseCharter(want.Charter, mesh.ID{})
	if err != nil {
		t.Fatal(err)
	}
	if want.Charter, err = first.Next(time.Now(), first.Networks).Sign(ca); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	if err := d.SaveCharter(want.Charter); err != nil || !reflect.DeepEqual(d.Membership(), want) {
		t.Errorf("save charter: %v", err)
	}
	if got := open(t, path).Membership(); !reflect.DeepEqual(got, want) {
		t.Error("another charter is on disk, or more than that is another")
	}
}

// createNew writes the state of a new node, which may fail.
func createNew(t *testing.T, path string) error {
	t.Helper()
	keys, m := newNode(t)
	return Create(path, keys, m)
}

// create makes a state directory with every file in it.
func create(t *testing.T) (string, Keys) {
	t.Helper()
	path, keys, err := createAt(t, filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return path, keys
}

func createAt(t *testing.T, path string) (string, Keys, error) {
	t.Helper()
	keys, m := newNode(t)
	if err := Create(path, keys, m); err != nil {
		return path, keys, err
	}
	d, err := Open(path)
	if err != nil {
		return path, keys, err
	}
	return path, keys, errors.Join(d.SaveState(testState()), d.SaveTable([][]byte{{1}, {2}}), d.SavePeers([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}), d.SaveStamp(testStamp))
}

var testStamp = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func testState() member.State {
	return member.State{Epoch: 7, Renewed: time.Date(2026, 1, 2, 4, 4, 5, 0, time.UTC), Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Leases: []mesh.Lease{{
		Network: "default", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.86.3.0/24")}, State: mesh.Held,
		Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), ClaimEpoch: 5,
	}}}
}

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// readAll reads every file of a directory; the error is the first one.
func readAll(path string) (*Dir, error) {
	d, err := Open(path)
	if err != nil {
		return nil, err
	}
	return d, readRest(d)
}

// readRest reads every file that Open leaves.
func readRest(d *Dir) error {
	_, err1 := d.State()
	_, err2 := d.LoadTable()
	_, err3 := d.LoadPeers()
	_, err4 := d.LoadStamp()
	return errors.Join(err1, err2, err3, err4)
}

func TestWhatIsSavedIsRead(t *testing.T) {
	path, keys := create(t)
	d := open(t, path)
	if !reflect.DeepEqual(d.Keys(), keys) {
		t.Error("keys differ")
	}
	if s, err := d.State(); err != nil || !reflect.DeepEqual(s, testState()) {
		t.Errorf("state is %+v, %v", s, err)
	}
	if table, err := d.LoadTable(); err != nil || !reflect.DeepEqual(table, [][]byte{{1}, {2}}) {
		t.Errorf("table is %v, %v", table, err)
	}
	if peers, err := d.LoadPeers(); err != nil || len(peers) != 1 {
		t.Errorf("peers are %v, %v", peers, err)
	}
	if stamp, err := d.LoadStamp(); err != nil || !stamp.Equal(testStamp) {
		t.Errorf("stamp is %v, %v", stamp, err)
	}
	changed := d.Membership()
	changed.Seeds = nil
	if err := d.SaveMembership(changed); err != nil {
		t.Fatal(err)
	}
	if got := open(t, path).Membership(); !reflect.DeepEqual(got, changed) {
		t.Error("changed membership differs")
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode().Perm() != 0o600 || strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s has mode %s, %v", e.Name(), info.Mode(), err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %s, %v", info.Mode(), err)
	}
}

func TestEpochs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := createNew(t, path); err != nil {
		t.Fatal(err)
	}
	for want := uint64(1); want <= 3; want++ {
		if s, err := open(t, path).BeginEpoch(); err != nil || s.Epoch != want {
			t.Errorf("epoch %d, %v, want %d", s.Epoch, err, want)
		}
	}
	if s, err := open(t, path).State(); err != nil || s.Epoch != 3 {
		t.Errorf("saved epoch is %d, %v", s.Epoch, err)
	}
}

func TestNoState(t *testing.T) {
	empty := t.TempDir()
	for _, path := range []string{empty, filepath.Join(empty, "missing")} {
		if _, err := Open(path); !errors.Is(err, ErrNoState) || !strings.Contains(err.Error(), "meshctl init") {
			t.Errorf("Open(%s): %v", path, err)
		}
	}
}

// Damage anywhere is an error that names the file.
func TestDamage(t *testing.T) {
	for _, name := range []string{fileKeys, fileMesh, fileNode, fileTable, filePeers, fileStamp} {
		t.Run(name, func(t *testing.T) {
			path, _ := create(t)
			file := filepath.Join(path, name)
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			anew := func() error {
				_, err := readAll(path)
				return err
			}
			read := anew
			if name != fileKeys && name != fileMesh { // Open, which checks signatures, need not see it
				d := open(t, path)
				read = func() error { return readRest(d) }
			}
			try := func(what string, content []byte) {
				t.Helper()
				if err := os.WriteFile(file, content, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := read(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), file) {
					t.Errorf("%s: %v", what, err)
				}
			}
			for n := range whole {
				if n > maxHeader && n%4 != 0 && n < len(whole)-4 {
					continue
				}
				try(fmt.Sprintf("truncated to %d bytes", n), whole[:n])
			}
			for i := range whole {
				if i > maxHeader && i%16 != 0 {
					continue // the body is all one to the checksum
				}
				for bit := range 8 {
					flipped := bytes.Clone(whole)
					flipped[i] ^= 1 << bit
					try(fmt.Sprintf("bit %d of byte %d flipped", bit, i), flipped)
				}
			}
			read = anew
			try("more at its end", append(bytes.Clone(whole), '\n'))
			try("zeros", make([]byte, len(whole)))
			other := fileKeys
			if name == fileKeys {
				other = fileMesh
			}
			content, err := encodeFile(other, map[string]int{})
			if err != nil {
				t.Fatal(err)
			}
			try("another kind", content)
			content, err = encodeFile(name, []string{"not what is expected"})
			if err != nil {
				t.Fatal(err)
			}
			try("other JSON", content)

			if err := os.WriteFile(file, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := readAll(path); err != nil {
				t.Errorf("restored: %v", err)
			}
		})
	}
}

// Without one of its files a state is damaged; it is not a host without state.
func TestMissingFile(t *testing.T) {
	for _, name := range []string{fileKeys, fileMesh, fileNode} {
		path, _ := create(t)
		if err := os.Remove(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := readAll(path); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
		if err := createNew(t, path); !errors.Is(err, ErrDamaged) {
			t.Errorf("Create without %s: %v", name, err)
		}
	}
}

func TestNewerVersion(t *testing.T) {
	path, _ := create(t)
	if err := os.WriteFile(filepath.Join(path, fileNode), withVersion("2", []byte("{}\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, path).State(); !errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) {
		t.Errorf("State: %v", err)
	}
}

func TestSecondCreate(t *testing.T) {
	path, keys := create(t)
	if err := createNew(t, path); !errors.Is(err, ErrExists) {
		t.Errorf("Create: %v", err)
	}
	if !reflect.DeepEqual(open(t, path).Keys(), keys) {
		t.Error("the keys changed")
	}
}

func TestCreateAfterLeaving(t *testing.T) {
	path, first := create(t)
	for n := 1; n <= 2; n++ {
		if err := open(t, path).SaveState(member.State{Epoch: 9, Left: true}); err != nil {
			t.Fatal(err)
		}
		keys, m := newNode(t)
		if err := Create(path, keys, m); err != nil {
			t.Fatal(err)
		}
		d, err := readAll(path)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(d.Keys(), keys) {
			t.Error("the new keys are not there")
		}
		if s, err := d.State(); err != nil || s.Epoch != 0 || s.Left {
			t.Errorf("new state is %+v, %v", s, err)
		}
		if table, err := d.LoadTable(); err != nil || len(table) > 0 {
			t.Errorf("the other mesh's table is still there: %v, %v", table, err)
		}
		if _, err := readAll(filepath.Join(path, fmt.Sprintf("left-%d", n))); err != nil {
			t.Errorf("old state: %v", err)
		}
	}
	if d := open(t, filepath.Join(path, "left-1")); !reflect.DeepEqual(d.Keys(), first) {
		t.Error("the first keys are lost")
	}
}

// A crash at any moment of Create leaves no state or the whole new one; over a
// state that was left, the old or the new one.
func TestCrashInCreate(t *testing.T) {
	for _, over := range []string{"nothing", "a state that was left"} {
		t.Run("over "+over, func(t *testing.T) {
			oldPath, oldKeys := create(t)
			if err := open(t, oldPath).SaveState(member.State{Epoch: 9, Left: true}); err != nil {
				t.Fatal(err)
			}
			newPath, newKeys := create(t)
			// What is there after each of Create's steps: n staged, then i moved.
			order := []string{fileKeys, fileMesh, fileNode}
			for step := range 7 {
				path := filepath.Join(t.TempDir(), "state")
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
				put := func(from, name, as string) {
					t.Helper()
					content, err := os.ReadFile(filepath.Join(from, name))
					if err == nil {
						err = os.WriteFile(filepath.Join(path, as), content, 0o600)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				if over != "nothing" {
					for _, name := range order {
						put(oldPath, name, name)
					}
				}
				moved := max(0, step-3)
				for i, name := range order[:min(step, 3)] {
					if i < moved {
						put(newPath, name, name)
					} else {
						put(newPath, name, staged(name))
					}
				}
				put(newPath, fileNode, ".tmp-node") // half of the next one, perhaps

				d, err := readAll(path)
				switch {
				case moved == 0 && over == "nothing":
					if !errors.Is(err, ErrNoState) {
						t.Errorf("step %d: %v", step, err)
					}
				case err != nil:
					t.Errorf("step %d: %v", step, err)
				case moved == 0 && !reflect.DeepEqual(d.Keys(), oldKeys):
					t.Errorf("step %d: not the old state", step)
				case moved > 0 && !reflect.DeepEqual(d.Keys(), newKeys):
					t.Errorf("step %d: not the new state", step)
				}
				if moved > 0 {
					if s, err := d.State(); err != nil || s.Left {
						t.Errorf("step %d: state is %+v, %v", step, s, err)
					}
				}
				err = createNew(t, path)
				if moved == 0 && err != nil || moved > 0 && !errors.Is(err, ErrExists) {
					t.Errorf("step %d: Create again: %v", step, err)
				}
			}
		})
	}
}

// What fails before the keys are moved does not count.
func TestFailedCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := os.MkdirAll(filepath.Join(path, staged(fileNode)), 0o700); err != nil { // a rename onto it fails
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, staged(fileNode), "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := createNew(t, path); err == nil {
		t.Fatal("Create succeeds")
	}
	if _, err := os.Stat(filepath.Join(path, fileKeys)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("keys are in place: %v", err)
	}
}

func TestInterruptedWrite(t *testing.T) {
	path, _ := create(t)
	if err := os.WriteFile(filepath.Join(path, ".tmp-node"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := open(t, path).State(); err != nil || s.Epoch != 7 {
		t.Errorf("state is %+v, %v", s, err)
	}
	if _, err := open(t, path).BeginEpoch(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(path, ".tmp-node")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the leftover is still there: %v", err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	release, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("second lock: %v", err)
	}
	if err := createNew(t, path); err != nil {
		t.Errorf("Create by the holder: %v", err)
	}
	release()
	release, err = Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestSharedDirectory(t *testing.T) {
	for _, c := range []struct {
		name    string
		mode    os.FileMode
		files   []string
		refused string // by which words; empty: not
		after   os.FileMode
	}{
		{"empty", 0o755, nil, "", 0o700},
		{"ours only", 0o755, []string{fileKeys, fileLock, fileStamp, staged(fileNode), ".tmp-node", "left-1"}, "", 0o700},
		{"a volume of its own", 0o755, []string{"lost+found"}, "", 0o700},
		{"closed, with another's file", 0o700, []string{"dpkg"}, "", 0o700},
		{"open, with another's file", 0o755, []string{fileKeys, "dpkg"}, "dpkg", 0o755},
		{"open to a group, with another's file", 0o710, []string{"dpkg"}, "dpkg", 0o710},
		{"temporary files, none right now", 0o777 | os.ModeSticky, nil, "everybody", 0o777 | os.ModeSticky},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range c.files {
				if err := os.WriteFile(filepath.Join(path, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(path, c.mode); err != nil { // whatever the umask is
				t.Fatal(err)
			}
			release, err := Lock(path)
			switch {
			case err == nil:
				release()
				if c.refused != "" {
					t.Error("locked")
				}
			case c.refused == "" || !errors.Is(err, ErrShared):
				t.Errorf("Lock: %v", err)
			default:
				for _, want := range []string{path, c.refused, "state_dir"} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q does not say %q", err, want)
					}
				}
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode() &^ os.ModeDir; got != c.after {
				t.Errorf("mode %s afterwards, want %s", got, c.after)
			}
			if _, err := os.Stat(filepath.Join(path, fileLock)); c.refused != "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a lock file was made: %v", err)
			}
		})
	}
}

func TestFilesTakeTheDirectorysOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("MESHD_REQUIRE_ROOT") == "1" {
			t.Fatal("MESHD_REQUIRE_ROOT is set, and this is not root")
		}
		t.Skip("only root can give files away")
	}
	const owner = 4242
	path := filepath.Join(t.TempDir(), "state")
	if err := errors.Join(os.Mkdir(path, 0o755), os.Chown(path, owner, owner)); err != nil {
		t.Fatal(err)
	}
	release, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := createNew(t, path); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).SaveState(member.State{Epoch: 1, Left: true}); err != nil {
		t.Fatal(err)
	}
	if err := createNew(t, path); err != nil {
		t.Fatal(err)
	}
	var names []string
	err = filepath.WalkDir(path, func(name string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		names = append(names, name)
		if s := info.Sys().(*syscall.Stat_t); s.Uid != owner || s.Gid != owner {
			t.Errorf("%s belongs to %d:%d", name, s.Uid, s.Gid)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", name, info.Mode())
		}
		return nil
	})
	if err != nil || len(names) < 9 {
		t.Errorf("%v: %v", names, err)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	path, keys := create(t)
	m := open(t, path).Membership()
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "keys", keys, "pointer", &keys, "secret", keys.Seal, "membership", m, "dir", open(t, path))
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		fmt.Fprintf(&log, verb, keys)
		fmt.Fprintf(&log, verb, &keys)
		fmt.Fprintf(&log, verb, keys.Tunnel)
		fmt.Fprintf(&log, verb, m)
		fmt.Fprintf(&log, verb, &m)
		fmt.Fprintf(&log, verb, open(t, path))
	}
	for _, secret := range [][]byte{keys.Identity.Seed(), keys.Seal[:], keys.Tunnel[:], keys.TunnelSeed[:], m.Keyring.Keys[0].Key} {
		for _, form := range []string{"%s", "%x", "%X", "%d", "%v", "%#v", "%q"} {
			text := strings.Trim(fmt.Sprintf(form, secret[:8]), `"[]{}`)
			text = strings.TrimPrefix(text, "[]byte{")
			if strings.Contains(log.String(), text) {
				t.Errorf("printed: %s", text)
			}
		}
	}
	if !strings.Contains(log.String(), keys.ID().String()) {
		t.Error("the ID is not printed")
	}
}

func TestCAKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "ca.key")
	key, err := CreateCAKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := LoadCAKey(path); err != nil || !got.Equal(key) {
		t.Errorf("LoadCAKey: %v", err)
	}
	if _, err := CreateCAKey(path); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "--ca") {
		t.Errorf("second CreateCAKey: %v", err)
	}
	if _, err := LoadCAKey(path + "x"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "--ca") {
		t.Errorf("missing: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCAKey(path); !errors.Is(err, ErrCAKey) || !strings.Contains(err.Error(), "0640") {
		t.Errorf("readable by others: %v", err)
	}
	if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCAKey(path); !errors.Is(err, ErrCAKey) {
		t.Errorf("junk: %v", err)
	}
}

func TestPublicKey(t *testing.T) {
	// RFC 7748, section 6.1: Alice's keys.
	secret := Secret{
		0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
		0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
	}
	if got, want := secret.Public().String(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="; got != want {
		t.Errorf("public key %s, want %s", got, want)
	}
}

func FuzzFile(f *testing.F) {
	content, err := encodeFile(fileNode, nodeFileOf(testState()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Add([]byte("meshd-state 1 node sha256:00\n{}"))
	f.Fuzz(func(t *testing.T, content []byte) {
		// Almost everything fails at the checksum; so the JSON is tried with a
		// right one as well.
		for _, raw := range [][]byte{content, withHeader(content)} {
			var body nodeFile
			if err := decodeFile(raw, fileNode, &body); err != nil {
				continue
			}
			state, err := body.state()
			if err != nil {
				continue
			}
			again, err := nodeFileOf(state).state()
			if err != nil || again.Epoch != state.Epoch || !slices.EqualFunc(again.Leases, state.Leases, func(a, b mesh.Lease) bool {
				return a.State == b.State && slices.Equal(a.Prefixes, b.Prefixes)
			}) {
				t.Errorf("%+v is read back as %+v, %v", state, again, err)
			}
		}
	})
}

func withHeader(body []byte) []byte { return withVersion("1", body) }

// withVersion gives the content of a node file that claims to be of a version.
func withVersion(version string, body []byte) []byte { return withHead(version, fileNode, body) }

func withKind(kind string, body []byte) []byte { return withHead("1", kind, body) }

func withHead(version, kind string, body []byte) []byte {
	head := magic + " " + version + " " + kind + " "
	return append([]byte(head+checksum(head, body)+"\n"), body...)
}

// Readers hold no lock. One of them may complete what another one has begun to.
func TestReadersCompleteTogether(t *testing.T) {
	path, keys := create(t)
	defer func() { before = func(change) error { return nil } }()
	for _, name := range []string{fileMesh, fileNode} {
		if err := os.Rename(filepath.Join(path, name), filepath.Join(path, staged(name))); err != nil {
			t.Fatal(err)
		}
	}
	before = func(c change) error {
		if c.op == "rename" {
			return os.Rename(c.path, c.to)
		}
		return nil
	}
	if d, err := readAll(path); err != nil || !reflect.DeepEqual(d.Keys(), keys) {
		t.Errorf("opened: %v, %v", d, err)
	}
}
