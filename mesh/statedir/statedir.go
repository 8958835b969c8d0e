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
	"os"
	"path/filepath"
	"sync"

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
	if err := d.save(fileKeys, "tunnel key", k.file()); err != nil {
		return err
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
	if err := d.save(fileMesh, "membership", membershipFileOf(m)); err != nil {
		return err
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
	return d.save(fileNode, "node state", f)
}

// save replaces a file of the kind that its name says, durably.
func (d *Dir) save(name, what string, body any) error {
	if err := writeFile(d.path, name, name, body); err != nil {
		return fmt.Errorf("save %s: %w", what, err)
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
