package statedir

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"meshd/mesh/member"
)

// A deed is something that changes a state directory. Whatever happens on the
// way, the directory must be as before or as afterwards.
type deed struct {
	name    string
	prepare func(t *testing.T, path string) // makes the directory; nil: there is none
	do      func(path string) error
	// sight tells what a reader sees, in one word; it fails on anything that is
	// neither old nor new.
	sight    func(path string) (string, error)
	old, new string
	again    error // of do, when it is done already; nil: it may be repeated
}

func deeds(t *testing.T) []deed {
	oldKeys, oldMembership := newNode(t)
	newKeys, newMembership := newNode(t)
	founded := func(state member.State) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			t.Helper()
			if err := Create(path, oldKeys, oldMembership); err != nil {
				t.Fatal(err)
			}
			d := open(t, path)
			if err := errors.Join(d.SaveState(state), d.SaveTable([][]byte{{1}}), d.SavePeers(nil), d.SaveAttachments("web", []byte("1")), d.SaveDocker([]byte("1"))); err != nil {
				t.Fatal(err)
			}
		}
	}
	whose := func(path string) (string, error) {
		d, err := readAll(path)
		if errors.Is(err, ErrNoState) {
			return "nobody", nil
		}
		if err != nil {
			return "", err
		}
		state, err := d.State()
		table, _ := d.LoadTable()
		containers, _ := d.AttachmentNetworks()
		switch {
		case err != nil:
			return "", err
		case reflect.DeepEqual(d.Keys(), oldKeys) && reflect.DeepEqual(d.Membership(), oldMembership) && state.Left:
			return "old", nil
		case reflect.DeepEqual(d.Keys(), newKeys) && reflect.DeepEqual(d.Membership(), newMembership) && state.Epoch == 0 && len(table)+len(containers) == 0:
			return "new", nil
		}
		return "", fmt.Errorf("mixed: %v, epoch %d, table of %d", d, state.Epoch, len(table))
	}
	kept := func(path string) (string, error) { // the same, and the old one is not lost
		got, err := whose(path)
		if err != nil || got != "new" {
			return got, err
		}
		for n := 1; n < 10; n++ {
			d, err := readAll(filepath.Join(path, fmt.Sprintf("left-%d", n)))
			if err == nil {
				_, err = d.LoadAttachments("web")
			}
			if err == nil && reflect.DeepEqual(d.Keys(), oldKeys) {
				return got, nil
			}
		}
		return "", errors.New("the old state is not kept")
	}
	leftovers := func(t *testing.T, path string) { // of a create that did not get to the moment that counts
		t.Helper()
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		err := errors.Join(
			writeFile(path, staged(fileKeys), fileKeys, oldKeys.file()),
			writeFile(path, staged(fileMesh), fileMesh, membershipFileOf(oldMembership)),
			writeFile(path, staged(fileNode), fileNode, nodeFile{}))
		if err != nil {
			t.Fatal(err)
		}
	}
	epoch := func(path string) (string, error) {
		d, err := readAll(path)
		if err != nil {
			return "", err
		}
		if !reflect.DeepEqual(d.Keys(), oldKeys) {
			return "", errors.New("other keys")
		}
		state, err := d.State()
		return fmt.Sprint(state.Epoch), err
	}
	with := func(do func(*Dir) error) func(string) error {
		return func(path string) error {
			d, err := Open(path)
			if err != nil {
				return err
			}
			return do(d)
		}
	}
	table := func(path string) (string, error) {
		d, err := readAll(path)
		if err != nil {
			return "", err
		}
		objects, err := d.LoadTable()
		return fmt.Sprint(objects), err
	}
	attachments := func(path string) (string, error) {
		d, err := readAll(path)
		if err != nil {
			return "", err
		}
		document, err := d.LoadAttachments("web")
		return string(document), err
	}
	docker := func(path string) (string, error) {
		d, err := readAll(path)
		if err != nil {
			return "", err
		}
		document, err := d.LoadDocker()
		return string(document), err
	}
	sends := func(path string) (string, error) {
		d, err := readAll(path)
		if err != nil {
			return "", err
		}
		return fmt.Sprint(d.Membership().Keyring.Send), nil
	}
	tunnel := func(path string) (string, error) {
		d, err := readAll(path)
		if err != nil {
			return "", err
		}
		if !d.Keys().Identity.Equal(oldKeys.Identity) {
			return "", errors.New("another identity")
		}
		return d.Keys().Tunnel.Public().String(), nil
	}
	nextTunnel := NewTunnelKey()
	seeds := func(path string) (string, error) {
		d, err := readAll(path)
		if err != nil {
			return "", err
		}
		return strings.Join(d.Membership().Seeds, " "), nil
	}
	copied := func(t *testing.T, path string) {
		founded(member.State{Epoch: 7})(t, path)
		d := open(t, path)
		d.machine = "of another one"
		if err := d.SaveState(member.State{Epoch: 7}); err != nil {
			t.Fatal(err)
		}
	}
	machine := func(path string) (string, error) {
		if _, err := Open(path); !errors.Is(err, ErrCopied) {
			return "here", err
		}
		return "elsewhere", nil
	}
	create := func(path string) error { return Create(path, newKeys, newMembership) }
	return []deed{
		{"create", nil, create, whose, "nobody", "new", ErrExists},
		{"create after leaving", founded(member.State{Epoch: 9, Left: true}), create, kept, "old", "new", ErrExists},
		{"create over leftovers", leftovers, create, whose, "nobody", "new", ErrExists},
		{"save state", founded(member.State{Epoch: 7}), with(func(d *Dir) error { return d.SaveState(member.State{Epoch: 8}) }), epoch, "7", "8", nil},
		{"save membership", founded(member.State{Epoch: 7}), with(func(d *Dir) error {
			m := d.Membership()
			m.Seeds = []string{"new:1"}
			return d.SaveMembership(m)
		}), seeds, oldMembership.Seeds[0], "new:1", nil},
		{"save keyring", founded(member.State{Epoch: 7}), with(func(d *Dir) error { return d.SaveKeyring(testKeyring()) }), sends, "0", "3", nil},
		{"save tunnel key", founded(member.State{Epoch: 7}), with(func(d *Dir) error { return d.SaveTunnelKey(nextTunnel) }), tunnel,
			oldKeys.Tunnel.Public().String(), nextTunnel.Public.String(), nil},
		{"save table", founded(member.State{Epoch: 7}), with(func(d *Dir) error { return d.SaveTable([][]byte{{2}, {3}}) }), table, "[[1]]", "[[2] [3]]", nil},
		{"save attachments", founded(member.State{Epoch: 7}), with(func(d *Dir) error { return d.SaveAttachments("web", []byte("2")) }), attachments, "1", "2", nil},
		{"save Docker's networks", founded(member.State{Epoch: 7}), with(func(d *Dir) error { return d.SaveDocker([]byte("2")) }), docker, "1", "2", nil},
		{"check", founded(member.State{Epoch: 7}), with((*Dir).Check), epoch, "7", "7", nil},
		{"adopt", copied, func(path string) error { _, _, err := Adopt(path); return err }, machine, "elsewhere", "here", nil},
	}
}

// record runs a deed and gives its changes, with the paths in the directory made
// relative.
func record(t *testing.T, path string, do func(string) error) []change {
	t.Helper()
	var all []change
	before = func(c change) error {
		c.path, c.to, c.data = relative(path, c.path), relative(path, c.to), slices.Clone(c.data)
		all = append(all, c)
		return nil
	}
	defer func() { before = func(change) error { return nil } }()
	if err := do(path); err != nil {
		t.Fatal(err)
	}
	return all
}

func relative(dir, path string) string {
	if rel, err := filepath.Rel(dir, path); err == nil && path != "" {
		return rel
	}
	return path
}

// The power fails before any change of any deed. What was not synced may be on
// the medium or not; what was, is. See world.
func TestPowerFails(t *testing.T) {
	atMachine(t, "0123456789abcdef0123456789abcdef")
	for _, d := range deeds(t) {
		t.Run(d.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if d.prepare != nil {
				d.prepare(t, path)
			}
			initial := readTree(t, path)
			changes := record(t, path, d.do)
			if got, err := d.sight(path); err != nil || got != d.new {
				t.Fatalf("afterwards it is %s, %v", got, err)
			}
			seen, tried := map[string]int{}, map[string]bool{}
			dir := t.TempDir()
			for done := range len(changes) + 1 {
				for n, w := range worlds(initial, changes[:done]) {
					name := fmt.Sprintf("%q, done: %t", map[string]string(w), done == len(changes))
					if tried[name] {
						continue
					}
					tried[name] = true
					at := filepath.Join(dir, fmt.Sprint(done, "-", n))
					w.write(t, at)
					got, err := d.sight(at)
					switch {
					case err != nil || got != d.old && got != d.new:
						t.Fatalf("after %d changes of\n%v\n%s\nit is %q, %v", done, changes, w, got, err)
					case done == len(changes) && got != d.new:
						t.Fatalf("it was said to be done, of\n%v\n%s\nit is %q", changes, w, got)
					}
					seen[got]++
					// And it can be tried again.
					if err := d.do(at); err != nil && !(d.again != nil && got == d.new && errors.Is(err, d.again)) {
						t.Fatalf("after %d changes, again: %v\n%s", done, err, w)
					}
					if got, err := d.sight(at); err != nil || got != d.new {
						t.Fatalf("after %d changes, and again, it is %q, %v\n%s", done, got, err, w)
					}
				}
			}
			t.Logf("%d changes, %d worlds: %v", len(changes), len(tried), seen)
			if seen[d.old] == 0 || seen[d.new] == 0 {
				t.Error("that is not both")
			}
		})
	}
}

// Every single change fails once.
func TestDiskFails(t *testing.T) {
	atMachine(t, "0123456789abcdef0123456789abcdef")
	for _, d := range deeds(t) {
		t.Run(d.name, func(t *testing.T) {
			for at := 0; ; at++ {
				path := filepath.Join(t.TempDir(), "state")
				if d.prepare != nil {
					d.prepare(t, path)
				}
				n := 0
				var failed change
				before = func(c change) error {
					if n++; n == at+1 {
						failed = c
						return syscall.EIO
					}
					return nil
				}
				err := d.do(path)
				before = func(change) error { return nil }
				if n <= at {
					if at == 0 {
						t.Fatal("it changes nothing")
					}
					return
				}
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("%s %s fails, and it says %v", failed.op, failed.path, err)
				}
				got, err := d.sight(path)
				if err != nil || got != d.old && got != d.new {
					t.Errorf("%s %s fails: it is %q, %v", failed.op, failed.path, got, err)
				}
				if err := d.do(path); err != nil && !(d.again != nil && got == d.new && errors.Is(err, d.again)) {
					t.Errorf("%s %s failed, and again: %v", failed.op, failed.path, err)
				}
				if got, err := d.sight(path); err != nil || got != d.new {
					t.Errorf("%s %s failed, and again: it is %q, %v", failed.op, failed.path, got, err)
				}
			}
		})
	}
}

// A world is what may be on the medium: the content by path; directories end
// with a slash.
type world map[string]string

func (w world) String() string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(w)) {
		fmt.Fprintf(&b, "\t%s: %d bytes\n", path, len(w[path]))
	}
	return b.String()
}

func readTree(t *testing.T, root string) world {
	t.Helper()
	w := world{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel := relative(root, path)
		if e.IsDir() {
			w[rel+"/"] = ""
			return nil
		}
		raw, err := os.ReadFile(path)
		w[rel] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w world) write(t *testing.T, root string) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(w)) { // a directory before what is in it
		at := filepath.Join(root, path)
		var err error
		if strings.HasSuffix(path, "/") {
			err = os.MkdirAll(at, 0o700)
		} else if err = os.MkdirAll(filepath.Dir(at), 0o700); err == nil {
			err = os.WriteFile(at, []byte(w[path]), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// worlds gives what may be on the medium when the power fails after some
// changes. Names that were changed since their directory was synced may be as
// before, in the order of the changes or in any; content that was not synced
// may be missing, cut or whole.
func worlds(initial world, changes []change) []world {
	safe := make([]bool, len(changes)) // names that are on the medium for sure
	for i, c := range changes {
		dir := filepath.Dir(cmp.Or(c.to, c.path))
		safe[i] = slices.ContainsFunc(changes[i:], func(later change) bool { return later.op == "syncDir" && later.path == dir })
	}
	random := rand.New(rand.NewPCG(1, uint64(len(changes))))
	var out []world
	for _, content := range []int{0, 1, 2} { // in halves
		for upTo := range len(changes) + 1 {
			if upTo < len(changes) && safe[upTo] {
				continue // as the next one
			}
			out = append(out, replay(initial, changes, content, func(i int) bool { return safe[i] || i < upTo }))
		}
		for range 8 {
			out = append(out, replay(initial, changes, content, func(i int) bool { return safe[i] || random.IntN(2) == 0 }))
		}
	}
	return out
}

// inode is a file, whatever its names are.
type inode struct {
	content string
	synced  string // what is on the medium for sure
}

// replay makes the world in which those changes of names are on the medium that
// kept tells.
func replay(initial world, changes []change, halves int, kept func(int) bool) world {
	now, medium := map[string]*inode{}, map[string]*inode{}
	for path, content := range initial {
		now[path] = &inode{content, content}
		medium[path] = now[path]
	}
	for i, c := range changes {
		to := medium
		if !kept(i) {
			to = map[string]*inode{}
		}
		switch c.op {
		case "createFile":
			if now[c.path] == nil {
				now[c.path] = &inode{}
			}
			now[c.path].content, now[c.path].synced = "", "" // the worst
			to[c.path] = now[c.path]
		case "write":
			now[c.path].content += string(c.data)
		case "syncFile":
			now[c.path].synced = now[c.path].content
		case "rename", "link":
			file := now[c.path]
			now[c.to] = file
			if c.op == "rename" {
				delete(now, c.path)
			}
			if to[c.path] == file && file != nil {
				to[c.to] = file
				if c.op == "rename" {
					delete(to, c.path)
				}
			}
		case "remove":
			delete(now, c.path)
			delete(to, c.path)
		case "mkdir":
			now[c.path+"/"] = &inode{}
			to[c.path+"/"] = now[c.path+"/"]
		}
	}
	w := world{}
	for path, file := range medium {
		if dir := filepath.Dir(path); dir != "." && medium[dir+"/"] == nil && !strings.HasSuffix(path, "/") {
			continue // its directory is not there
		}
		w[path] = file.synced
		if file.synced == "" {
			w[path] = file.content[:len(file.content)*halves/2]
		}
	}
	return w
}

// atMachine makes this machine one with that ID, for a test; empty: without one.
func atMachine(t *testing.T, id string) {
	t.Helper()
	old := machineFile
	t.Cleanup(func() { machineFile = old })
	machineFile = filepath.Join(t.TempDir(), "machine-id")
	if id == "" {
		return
	}
	if err := os.WriteFile(machineFile, []byte(id+"\n"), 0o444); err != nil {
		t.Fatal(err)
	}
}
