// Package statedir keeps what a node must not forget: its keys, its membership
// and its place in the mesh. One directory, one file per subject:
//
//	keys    identity, seal key, tunnel key          the last one can be replaced
//	mesh    charter, certificate, gossip keys, seeds
//	node    epoch, leases, whether the node has left, on which machine it lives
//	table   signed objects of all members           a cache
//	peers   gossip addresses last seen              a cache
//	attach-NETWORK  containers of a network and their addresses
//	docker  which networks of Docker's are which of the mesh's
//	lock    held by the one process that writes
//
// A file is replaced whole and durably: a crash leaves the old or the new one.
// A header with a checksum tells damage from content, so a damaged file is an
// error, never a new identity. So is one of another node, and a state that was
// copied from another machine, until [Adopt].
//
// Who writes must hold [Lock]; reading needs no lock.
package statedir

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/trust"
)

// Errors that callers decide by.
var (
	ErrNoState = errors.New("no state here: this host is not a member yet; run `meshctl init` or `meshctl join TOKEN`")
	ErrExists  = errors.New("this host is a member already: `meshctl leave` first, while its daemon runs, or use another state_dir")
	ErrDamaged = errors.New("state is damaged")
	ErrNewer   = errors.New("state was written by a newer meshd: run that version")
	ErrLocked  = errors.New("state directory is in use")
	ErrShared  = errors.New("state directory is shared with others")
)

// The files.
const (
	fileKeys  = "keys"
	fileMesh  = "mesh"
	fileNode  = "node"
	fileTable = "table"
	fileStamp = "stamp"
	filePeers = "peers"
	fileLock  = "lock"

	fileDocker = "docker" // the host's, whatever mesh it is in
)

// files are those of a state; caches are the ones that can be done without, and
// belong to one membership.
var (
	files  = []string{fileKeys, fileMesh, fileNode, fileTable, filePeers, fileStamp}
	caches = []string{fileTable, filePeers, fileStamp}
)

// Membership is what makes a node part of one mesh.
type Membership struct {
	Charter     []byte // signed
	Certificate []byte // of this node, signed
	Keyring     member.Keyring
	Seeds       []string // host:port
	Founder     bool     // this node ran init
}

// NewKeyring is that of a new member, with the key of init or of its token.
func NewKeyring(key []byte) member.Keyring { return member.NewKeyring(key) }

// Dir is an opened state directory. It is not safe for concurrent use, but for
// reading, and for [Dir.Membership] at any time.
type Dir struct {
	path    string
	machine string // that it is bound to; empty: none

	mu         sync.Mutex // guards all below
	keys       Keys       // the identity is fixed
	membership Membership
}

// Create writes the state of a new member, whole or not at all. Where there is
// state it refuses with [ErrExists], unless that node has left: then the old
// files are kept in a subdirectory left-N. The caller holds [Lock].
//
// The new files are staged under other names. Renaming the staged keys is the
// moment that counts: from then on whoever opens the directory completes the
// rest, and before it the staged files are leftovers.
func Create(path string, keys Keys, m Membership) error {
	if err := makeDir(path, ServiceUser); err != nil {
		return fmt.Errorf("create state: %w", err)
	}
	if err := complete(path); err != nil {
		return fmt.Errorf("create state: %w", err)
	}
	old, err := load(path)
	switch {
	case errors.Is(err, ErrNoState):
	case err != nil:
		return fmt.Errorf("create state: %w", err)
	default:
		state, err := old.State()
		if err != nil {
			return fmt.Errorf("create state: %w", err)
		}
		if !state.Left {
			return fmt.Errorf("create state in %s: %w", path, ErrExists)
		}
	}
	// Staged keys come first and go last: their absence beside other staged
	// files means that Create got past the moment that counts.
	if err := dropStaged(path); err != nil {
		return fmt.Errorf("create state: %w", err)
	}
	for _, f := range []struct {
		name string
		body any
	}{{fileKeys, keys.file()}, {fileMesh, membershipFileOf(m)}, {fileNode, nodeFile{Node: keys.ID().String(), Machine: thisMachine()}}} {
		if err := writeFile(path, staged(f.name), f.name, f.body); err != nil {
			return fmt.Errorf("create state: %w", err)
		}
	}
	if old != nil {
		if err := keepOld(path); err != nil {
			return fmt.Errorf("keep the state of the mesh that was left: %w", err)
		}
	}
	if err := rename(filepath.Join(path, staged(fileKeys)), filepath.Join(path, fileKeys)); err != nil {
		return fmt.Errorf("create state: %w", err)
	}
	if err := syncDir(path); err != nil {
		return fmt.Errorf("create state: %w", err)
	}
	return complete(path)
}

// Open reads the keys and the membership. It refuses a state that is bound to
// another machine with [ErrCopied].
func Open(path string) (*Dir, error) {
	if err := complete(path); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	d, err := load(path)
	if err == nil {
		err = checkMachine(path, d.machine)
	}
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	return d, nil
}

func load(path string) (*Dir, error) {
	d := &Dir{path: path}
	var k keysFile
	switch err := readFile(path, fileKeys, &k); {
	case errors.Is(err, os.ErrNotExist):
		for _, name := range []string{fileMesh, fileNode} {
			if _, err := os.Lstat(filepath.Join(path, name)); err == nil {
				return nil, missing(path, fileKeys)
			}
		}
		return nil, fmt.Errorf("%s: %w", path, ErrNoState)
	case err != nil:
		return nil, err
	}
	var err error
	if d.keys, err = k.keys(); err != nil {
		return nil, damaged(path, fileKeys, err)
	}
	var m membershipFile
	if err := readNeeded(path, fileMesh, &m); err != nil {
		return nil, err
	}
	if d.membership, err = m.membership(); err == nil {
		err = check(d.membership, d.keys)
	}
	if err != nil {
		return nil, damaged(path, fileMesh, err)
	}
	var n nodeFile
	if readFile(path, fileNode, &n) == nil { // else State will tell
		d.machine = n.Machine
	}
	return d, nil
}

// check refuses a membership of another node.
func check(m Membership, keys Keys) error {
	charter, err := trust.ParseCharter(m.Charter, mesh.ID{})
	if err != nil {
		return err
	}
	certificate, err := trust.ParseCertificate(m.Certificate, charter.CA)
	if err != nil {
		return err
	}
	if id := certificate.ID(); id != keys.ID() {
		return fmt.Errorf("its certificate is that of node %s, and the keys are those of %s", id, keys.ID())
	}
	return nil
}

// Format implements [fmt.Formatter] without any secret.
func (d *Dir) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "state in %s, %s", d.path, d.Keys().text())
}

// Keys are this node's private keys.
func (d *Dir) Keys() Keys {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.keys
}

// SaveTunnelKey replaces the tunnel key, durably. The one before is gone for good,
// as far as the medium forgets.
func (d *Dir) SaveTunnelKey(key trust.TunnelKey) error {
	k := d.Keys().withTunnel(key)
	if err := writeFile(d.path, fileKeys, fileKeys, k.file()); err != nil {
		return fmt.Errorf("save tunnel key: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keys = k
	return nil
}

// Membership is what makes this node part of its mesh.
func (d *Dir) Membership() Membership {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.membership
	m.Keyring = m.Keyring.Clone()
	return m
}

// SaveMembership replaces the membership, durably.
func (d *Dir) SaveMembership(m Membership) error {
	m.Keyring = m.Keyring.Clone()
	if err := writeFile(d.path, fileMesh, fileMesh, membershipFileOf(m)); err != nil {
		return fmt.Errorf("save membership: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.membership.Keyring.Wipe(member.Keyring{})
	d.membership = m
	return nil
}

// SaveCharter replaces the charter of the membership, durably.
func (d *Dir) SaveCharter(charter []byte) error {
	m := d.Membership()
	m.Charter = charter
	return d.SaveMembership(m)
}

// SaveCertificate replaces the certificate of the membership, durably. One with
// which the state could not be opened again is refused.
func (d *Dir) SaveCertificate(certificate []byte) error {
	m := d.Membership()
	m.Certificate = certificate
	if err := check(m, d.Keys()); err != nil {
		return fmt.Errorf("save certificate: %w", err)
	}
	return d.SaveMembership(m)
}

// SaveKeyring replaces the gossip keys, durably. Those that it no longer has are
// overwritten in memory.
func (d *Dir) SaveKeyring(k member.Keyring) error {
	m := d.Membership()
	m.Keyring = k
	return d.SaveMembership(m)
}

// State reads what the last daemon saved.
func (d *Dir) State() (member.State, error) {
	var f nodeFile
	if err := readNeeded(d.path, fileNode, &f); err != nil {
		return member.State{}, fmt.Errorf("read node state: %w", err)
	}
	s, err := f.state()
	if id := d.Keys().ID().String(); err == nil && f.Node != "" && f.Node != id {
		err = fmt.Errorf("it is that of node %.40q, and the keys are those of %s", f.Node, id)
	}
	if err != nil {
		return member.State{}, fmt.Errorf("read node state: %w", damaged(d.path, fileNode, err))
	}
	return s, nil
}

// BeginEpoch raises the epoch by one, durably, and gives the state with it. A
// daemon does so before it says anything. It binds the state to this machine, if
// it is bound to none.
func (d *Dir) BeginEpoch() (member.State, error) {
	s, err := d.State()
	if err != nil {
		return s, err
	}
	s.Epoch++
	d.machine = cmp.Or(d.machine, thisMachine())
	return s, d.SaveState(s)
}

// SaveState replaces what must outlast the daemon, durably.
func (d *Dir) SaveState(s member.State) error {
	f := nodeFileOf(s)
	f.Node, f.Machine = d.Keys().ID().String(), d.machine
	if err := writeFile(d.path, fileNode, fileNode, f); err != nil {
		return fmt.Errorf("save node state: %w", err)
	}
	return nil
}

// Check tells whether the state could be saved now. It writes a file of a node
// state's size and removes it before anything gets to the medium, so it may be
// called often.
func (d *Dir) Check() error {
	path := filepath.Join(d.path, ".tmp-"+fileNode)
	f, err := createFile(path)
	if err == nil {
		err = errors.Join(write(f, make([]byte, checkSize)), f.Close(), remove(path))
	}
	if err != nil {
		return fmt.Errorf("check state directory: %w", err)
	}
	return nil
}

// checkSize is a block of most file systems; few node states need a second one.
const checkSize = 4 << 10

// LoadTable reads the objects that the last daemon knew; none if there are none.
// The table is a cache: on an error go on without it.
func (d *Dir) LoadTable() ([][]byte, error) {
	var f tableFile
	if err := readFile(d.path, fileTable, &f); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read table: %w", err)
	}
	return f.Objects, nil
}

// SaveTable replaces the known objects.
func (d *Dir) SaveTable(objects [][]byte) error {
	if err := writeFile(d.path, fileTable, fileTable, tableFile{objects}); err != nil {
		return fmt.Errorf("save table: %w", err)
	}
	return nil
}

// LoadPeers reads the gossip addresses that the last daemon knew. They are a
// cache: on an error go on without them.
func (d *Dir) LoadPeers() ([]netip.AddrPort, error) {
	var f peersFile
	if err := readFile(d.path, filePeers, &f); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	return f.Addresses, nil
}

// SavePeers replaces the gossip addresses.
func (d *Dir) SavePeers(peers []netip.AddrPort) error {
	if err := writeFile(d.path, filePeers, filePeers, peersFile{peers}); err != nil {
		return fmt.Errorf("save peers: %w", err)
	}
	return nil
}

// LoadStamp reads the newest time that a handshake of this node was dated; zero if
// nothing is known. On an error go on without it.
func (d *Dir) LoadStamp() (time.Time, error) {
	var f stampFile
	if err := readFile(d.path, fileStamp, &f); err != nil && !errors.Is(err, os.ErrNotExist) {
		return time.Time{}, fmt.Errorf("read time of the last handshake: %w", err)
	}
	return f.Newest, nil
}

// SaveStamp replaces that time.
func (d *Dir) SaveStamp(newest time.Time) error {
	if err := writeFile(d.path, fileStamp, fileStamp, stampFile{newest}); err != nil {
		return fmt.Errorf("save time of the last handshake: %w", err)
	}
	return nil
}

// staged is the name of a file that Create has written and not yet put in place.
func staged(name string) string { return ".new-" + name }

// complete puts staged files in place if Create was interrupted after the moment
// that counts.
func complete(path string) error {
	if _, err := os.Lstat(filepath.Join(path, staged(fileKeys))); err == nil {
		return nil // before it
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	moved := false
	for _, name := range []string{fileMesh, fileNode} {
		from := filepath.Join(path, staged(name))
		if _, err := os.Lstat(from); errors.Is(err, os.ErrNotExist) {
			continue // whoever only reads may have a file system that is read-only
		} else if err != nil {
			return err
		}
		err := rename(from, filepath.Join(path, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // another reader was quicker
			return err
		}
		moved = true
	}
	if !moved {
		return nil
	}
	return syncDir(path)
}

func dropStaged(path string) error {
	for _, name := range []string{fileNode, fileMesh, fileKeys} {
		if err := remove(filepath.Join(path, staged(name))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := syncDir(path); err != nil {
			return err
		}
	}
	return nil
}

// keepOld copies, by hard link, the files of a mesh that was left, and drops
// its caches.
func keepOld(path string) error {
	into := ""
	for n := 1; into == ""; n++ {
		try := filepath.Join(path, fmt.Sprintf("left-%d", n))
		switch err := mkdir(try); {
		case err == nil:
			into = filepath.Base(try)
		case !errors.Is(err, os.ErrExist):
			return err
		}
	}
	d, err := os.OpenFile(filepath.Join(path, into), os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(chownLike(d, path), d.Close()); err != nil {
		return err
	}
	attach, err := attachFiles(path)
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(files, attach) {
		err := link(path, name, filepath.Join(into, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(syncDir(filepath.Join(path, into)), syncDir(path)); err != nil {
		return err
	}
	for _, name := range slices.Concat(caches, attach) { // they belong to one membership
		if err := remove(filepath.Join(path, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return syncDir(path)
}

// makeDir makes the state directory, or closes an existing one to others. It
// refuses one that is not for us alone: others would be locked out. A new one
// that root makes is for the service, if there is that user.
func makeDir(path, service string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := mkdir(path)
	if err == nil {
		return errors.Join(giveNew(path, service), syncDir(filepath.Dir(path)))
	}
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return &os.PathError{Op: "open", Path: path, Err: syscall.ENOTDIR}
	case info.Mode().Perm()&0o077 == 0:
		return nil
	case info.Mode()&os.ModeSticky != 0:
		return shared(path, "everybody may write there")
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !ours(e.Name()) {
			return shared(path, fmt.Sprintf("it has mode %04o and holds %q, which is not ours", info.Mode().Perm(), e.Name()))
		}
	}
	return os.Chmod(path, 0o700)
}

// ours tells whether a file in a state directory may be one of ours.
func ours(name string) bool {
	if name == "lost+found" || strings.HasPrefix(name, "left-") { // the first: a volume of its own
		return true
	}
	name = strings.TrimPrefix(strings.TrimPrefix(name, ".new-"), ".tmp-")
	_, attach := attachNetwork(name)
	return attach || name == fileLock || name == fileDocker || slices.Contains(files, name)
}

func shared(path, why string) error {
	return fmt.Errorf("%w: %s: %s: set state_dir to a directory of its own, such as %s", ErrShared, path, why, filepath.Join(path, "meshd"))
}
