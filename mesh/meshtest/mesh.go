package meshtest

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
)

// Mesh is what it takes to make members: a CA, a charter, a gossip key.
type Mesh struct {
	Charter   *trust.Charter
	GossipKey []byte

	ca    ed25519.PrivateKey
	token *trust.Token
}

// NewMesh founds a mesh with one network of 256 subnets, or with those given. Its
// token admits any number of nodes for a day.
func NewMesh(t testing.TB, networks ...mesh.Network) *Mesh {
	t.Helper()
	if len(networks) == 0 {
		networks = []mesh.Network{{
			Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24,
			IPv6: netip.MustParsePrefix("fd00:86::/48"), IPv6Len: 64,
		}}
	}
	_, ca, _ := ed25519.GenerateKey(nil)
	charter := &trust.Charter{Name: "test", Version: 1, Created: time.Now(), Networks: networks}
	raw := must(charter.Sign(ca))(t)
	charter = must(trust.ParseCharter(raw, mesh.ID{}))(t)
	m := &Mesh{Charter: charter, GossipKey: bytes.Repeat([]byte{7}, trust.GossipKeySize), ca: ca}
	m.token = m.Token(t, nil)
	return m
}

// Token makes one more token, for a day from now. change may be nil.
func (m *Mesh) Token(t testing.TB, change func(*trust.Credential)) *trust.Token {
	t.Helper()
	_, key, _ := ed25519.GenerateKey(nil)
	now := time.Now()
	c := &trust.Credential{
		Serial: trust.NewSerial(), Key: key.Public().(ed25519.PublicKey),
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour), MaxCertLife: 365 * 24 * time.Hour,
	}
	if change != nil {
		change(c)
	}
	raw := must(c.Sign(m.ca))(t)
	c = must(trust.ParseCredential(raw, m.Charter.CA))(t)
	return &trust.Token{Charter: m.Charter, Credential: c, Key: key, GossipKey: m.GossipKey}
}

// Next gives the charter that follows one, with other networks.
func (m *Mesh) Next(t testing.TB, after *trust.Charter, networks ...mesh.Network) *trust.Charter {
	t.Helper()
	raw := must(after.Next(time.Now(), networks).Sign(m.ca))(t)
	return must(trust.ParseCharter(raw, after.ID()))(t)
}

// CA is the key that signs for the mesh.
func (m *Mesh) CA() ed25519.PrivateKey { return m.ca }

// Found gives the membership of the first node, as init makes it.
func (m *Mesh) Found(t testing.TB, keys statedir.Keys, name string) statedir.Membership {
	t.Helper()
	now := time.Now()
	cert := trust.Certificate{
		Serial: trust.NewSerial(), Identity: keys.Identity.Public().(ed25519.PublicKey), Name: name, SealKey: keys.Seal.Public(),
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(365 * 24 * time.Hour), Admitted: now.Add(-time.Minute), Capabilities: []string{trust.CapRotate},
	}
	raw := must(cert.Sign(m.ca))(t)
	return statedir.Membership{Charter: m.Charter.Raw, Certificate: raw, Keyring: member.NewKeyring(m.GossipKey), Founder: true}
}

// Join gives the membership of another node, as join makes it from a token when
// its clock says now.
func (m *Mesh) Join(t testing.TB, token *trust.Token, keys statedir.Keys, name string, now time.Time) statedir.Membership {
	t.Helper()
	cert := must(token.Certify(keys.Identity.Public().(ed25519.PublicKey), keys.Seal.Public(), name, now))(t)
	return statedir.Membership{Charter: m.Charter.Raw, Certificate: cert.Raw, Keyring: member.NewKeyring(m.GossipKey)}
}

// Founder gives the state of a first node with new keys.
func (m *Mesh) Founder(t testing.TB, name string) (statedir.Keys, statedir.Membership) {
	t.Helper()
	keys := statedir.NewKeys()
	return keys, m.Found(t, keys, name)
}

// Joined gives the state of another node with new keys.
func (m *Mesh) Joined(t testing.TB, name string) (statedir.Keys, statedir.Membership) {
	t.Helper()
	keys := statedir.NewKeys()
	return keys, m.Join(t, m.token, keys, name, time.Now())
}

// Member builds the membership machine of a node from its state, at a time by its
// clock.
func Member(t testing.TB, now time.Time, keys statedir.Keys, m statedir.Membership, state member.State, table [][]byte, nonce uint64) *member.Member {
	t.Helper()
	return must(member.New(now, m.Member(keys, nonce), state, table))(t)
}

// Store keeps in memory what gossip saves. Its zero value is ready, and it is
// safe for concurrent use.
type Store struct {
	mu          sync.Mutex
	fail        bool
	charter     []byte
	certificate []byte
	keyring     member.Keyring
	state       member.State
	table       [][]byte
	peers       []netip.AddrPort
}

// ErrStore is what a failing store says.
var ErrStore = errors.New("no space left on device")

// Fail makes every save fail, or succeed again.
func (s *Store) Fail(fail bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

// SaveCharter keeps the charter.
func (s *Store) SaveCharter(charter []byte) error {
	return s.save(func() { s.charter = charter })
}

// Charter gives the one that was saved last; nil: none.
func (s *Store) Charter() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.charter
}

// SaveCertificate keeps the certificate.
func (s *Store) SaveCertificate(certificate []byte) error {
	return s.save(func() { s.certificate = certificate })
}

// Certificate gives the one that was saved last; nil: none.
func (s *Store) Certificate() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.certificate
}

// SaveKeyring keeps the gossip keys.
func (s *Store) SaveKeyring(k member.Keyring) error {
	return s.save(func() { s.keyring = k.Clone() })
}

// Keyring gives the one that was saved last; its zero value: none.
func (s *Store) Keyring() member.Keyring {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keyring.Clone()
}

// SaveState keeps the state.
func (s *Store) SaveState(state member.State) error {
	return s.save(func() { s.state = state })
}

// SaveTable keeps the table.
func (s *Store) SaveTable(table [][]byte) error {
	return s.save(func() { s.table = slices.Clone(table) })
}

// SavePeers keeps the addresses.
func (s *Store) SavePeers(peers []netip.AddrPort) error {
	return s.save(func() { s.peers = slices.Clone(peers) })
}

// Saved gives what was saved last.
func (s *Store) Saved() (member.State, [][]byte, []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.table, s.peers
}

// Check tells whether saving would fail.
func (s *Store) Check() error { return s.save(func() {}) }

func (s *Store) save(set func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail {
		return ErrStore
	}
	set()
	return nil
}

// must gives a value, or ends the test.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
