// Package member is one node's membership as a pure machine: what it believes
// of the others, what it says of itself, whom it admits, and which subnets it
// holds.
//
//	objects from gossip ──► Receive ─┐
//	exchange completed ───► Synced ──┤            ┌─► Durable    (to be saved first)
//	addresses, charter ───► Set... ──┼─► Step(now)┼─► Broadcast  (signed objects)
//	leave ────────────────► Leave ───┘     ▲      ├─► Want       (to fetch)
//	members asked ────────► Asked ─────────┘      ├─► Ask        (before a claim is held, or of a twin)
//	                             Next() ───┘      └─► View       (for the data plane)
//
// The owner calls Step after every event and when Next is due. A Member knows no
// clock, no network and no disk, and is not safe for concurrent use.
package member

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/lease"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

// Config is fixed for the life of a daemon, but for what [Member] has setters for.
type Config struct {
	Identity    ed25519.PrivateKey
	Charter     []byte // newest known, signed
	Certificate []byte // of this node, signed
	TunnelKey   mesh.Key
	Possession  []byte   // proves the tunnel key; empty: it cannot be proved
	SealKey     [32]byte // private, opens what is sealed to this node
	Keyring     Keyring
	Nonce       uint64 // random per start
	Founder     bool   // ran init: may claim a subnet with nobody else about
	HasSeeds    bool   // somebody is named to sync with
	OnConflict  lease.OnConflict
	Labels      map[string]string
	Suites      []string
	TTL         time.Duration // of leases; 0: a day
	RotateEvery time.Duration // how often who may rotates the gossip key by itself; 0: never

	Parsed *registry.Parsed // shared by the nodes of a simulation; nil: nothing is
}

// State is what must outlast the daemon.
type State struct {
	Epoch  uint64       // of the last daemon that ran; raised, durably, before a new one speaks
	Leases []mesh.Lease // held ones, to be held again after a restart, and quarantined ones
	Left   bool         // the node has left the mesh

	Renewed   time.Time    // when a record was last published; zero: never, or not known
	Addresses []netip.Addr // at which the tunnel was reached then; empty: not known
}

// Output is what one Step asks its owner to do.
type Output struct {
	Durable                // must be on disk before Broadcast goes out
	Broadcast [][]byte     // signed objects for everybody
	Want      []trust.Hash // certificates to ask others for, the most wanted one first
	Ask       uint64       // not 0: exchange tables with a few members, then call Asked with it
	View      *mesh.View   // not nil: changed
	Keep      *State       // not nil: should be saved soon, and nothing waits for it
	Clone     bool         // a daemon with this identity runs elsewhere, for longer: this one must end
}

// Timers.
const (
	// lookAgain bounds how late a view notices what only time changes, such as
	// the end of a certificate.
	lookAgain = 30 * time.Second
	// complainAfter is how long a node waits to be admitted before it says so.
	complainAfter = 10 * time.Second
)

// Member is the machine.
type Member struct {
	cfg     Config
	id      mesh.NodeID
	cert    *trust.Certificate
	state   State
	saved   State // the last one given to the owner to be saved
	reg     *registry.Registry
	started time.Time
	jump    jump

	own     saying
	nets    networks
	contact contact
	guests  guests
	watch   watch
	away    absence
	buried  burial
	rekeys  rekeying
	twin    twin
	doubt   doubt
	todo    agenda
	roll    roll
}

// contact is what this run has had with other nodes.
type contact struct {
	synced    bool // a whole exchange was made with another node, or nobody is to be waited for
	exchanged bool // one was made
	otherKey  bool // who was asked to join seems to have another gossip key
}

// agenda is what there is to do for the next Step.
type agenda struct {
	seen     uint64 // registry changes that the last Step has seen
	dirty    bool   // something other than the registry changed
	tickAt   time.Time
	wake     time.Time  // zero: nothing else is due
	urgent   bool       // something came that must outlast the daemon
	outBound [][]byte   // own objects that wait for it
	view     *mesh.View // the last one given to the owner
}

// New makes the machine. state comes from disk with its epoch already raised;
// table is what the last daemon knew, and may be empty.
func New(now time.Time, cfg Config, state State, table [][]byte) (*Member, error) {
	charter, err := trust.ParseCharter(cfg.Charter, mesh.ID{})
	if err != nil {
		return nil, err
	}
	cert, err := trust.ParseCertificate(cfg.Certificate, charter.CA)
	if err != nil {
		return nil, err
	}
	if !cert.Identity.Equal(cfg.Identity.Public()) {
		return nil, errors.New("certificate is for another identity key")
	}
	if state.Epoch == 0 {
		return nil, errors.New("epoch is zero: it must be raised before the start")
	}
	m := &Member{
		cfg: cfg, id: cert.ID(), cert: cert, state: state, saved: state, reg: registry.New(charter), started: now,
		own: saying{quietUntil: now.Add(quietFor)}, nets: networks{charter: charter.Hash}, contact: contact{synced: cfg.Founder},
		guests: guests{turns: map[trust.Hash]time.Time{}, refused: map[trust.Hash]refusal{}},
		watch:  watch{heard: map[mesh.NodeID]hearing{}, lots: map[mesh.NodeID]time.Time{}},
		buried: burial{since: state.Epoch}, doubt: doubt{was: state.Addresses, before: !state.Renewed.IsZero()},
		todo: agenda{dirty: true, tickAt: now.Add(complainAfter)},
	}
	if m.cfg.TTL <= 0 {
		m.cfg.TTL = defaultTTL
	}
	m.reg.Share(cfg.Parsed)
	m.reg.Restore(append([][]byte{cfg.Certificate}, table...))
	if !state.Renewed.IsZero() {
		age := max(now.Sub(state.Renewed), 0)
		if m.own.renewed = now.Add(-age); age > m.cfg.TTL {
			m.wasOff(now)
		}
	}
	if _, ok := m.reg.Charter().Network(home); !ok {
		return nil, fmt.Errorf("the mesh has no network %q", home)
	}
	for _, l := range state.Leases {
		m.nets.used = append(m.nets.used, l.Network) // what was held is used until Use says otherwise
	}
	m.nets.used = besidesHome(m.nets.used)
	if err := m.tryRecord(now, cfg.Labels, m.nets.used); err != nil {
		return nil, err
	}
	m.arrange(now)
	admitted, _ := m.ownCertificate()
	m.guests.newcomer = !admitted
	return m, nil
}

// ID is this node's identity.
func (m *Member) ID() mesh.NodeID { return m.id }

// Name is this node's name, as its certificate has it.
func (m *Member) Name() string { return m.cert.Name }

// Receive takes one object that came from anybody. An error says that it was
// refused, and why; it may be logged, at a bounded rate. [registry.ErrStale] says
// that it adds nothing, which is nobody's fault.
func (m *Member) Receive(raw []byte) error {
	err := m.reg.Add(raw)
	if err == nil {
		kind, _ := trust.KindOf(raw)
		m.todo.urgent = m.todo.urgent || kind == trust.KindRevocation || kind == trust.KindTombstone
	}
	return err
}

// Synced says that a whole exchange with another member has been made: its
// table was received.
func (m *Member) Synced() {
	m.todo.dirty = m.todo.dirty || !m.contact.synced || !m.contact.exchanged
	m.contact.synced, m.contact.exchanged, m.watch.sync = true, true, true
}

// OtherKey says whether those who were asked to join hang up, as members do that have
// not the gossip key with which they are asked.
func (m *Member) OtherKey(seen bool) {
	m.todo.dirty = m.todo.dirty || m.contact.otherKey != seen
	m.contact.otherKey = seen
}

// Asked says that what Output.Ask wanted was done, as far as anybody is there.
func (m *Member) Asked(ask uint64) {
	m.nets.asked, m.todo.dirty = max(m.nets.asked, ask), true // a late answer is to an older question
}

// SetLabels says how people sort this node; the others hear of it at once.
// Labels that no record can carry are refused, and nothing changes.
func (m *Member) SetLabels(now time.Time, labels map[string]string) error {
	if err := m.tryRecord(now, labels, m.nets.used); err != nil {
		return err
	}
	m.cfg.Labels, m.todo.dirty = maps.Clone(labels), true
	return nil
}

// SetOnConflict says what this node does when it loses a subnet.
func (m *Member) SetOnConflict(p lease.OnConflict) {
	m.cfg.OnConflict, m.todo.dirty = p, true
	for _, h := range m.nets.holdings {
		h.alloc.SetOnConflict(p)
	}
}

// SetHasSeeds tells whether somebody is named to sync with.
func (m *Member) SetHasSeeds(has bool) {
	m.cfg.HasSeeds, m.todo.dirty = has, true
}

// Leave gives everything back for good. The next Step has the signed release.
func (m *Member) Leave(now time.Time) {
	for _, h := range m.nets.holdings {
		h.alloc.Release(now.Round(0).UTC())
	}
	m.state.Left, m.todo.dirty = true, true
}

// Table lists all verified objects, for a whole exchange.
func (m *Member) Table() [][]byte { return m.reg.Table() }

// Settled lists the objects on which all nodes agree that have heard the same, so
// that a difference is worth an exchange.
func (m *Member) Settled() []trust.Hash { return m.reg.Settled() }

// Lookup gives the objects of these hashes, each after what is needed to believe it;
// those that are unknown are left out.
func (m *Member) Lookup(hashes ...trust.Hash) [][]byte { return m.reg.Lookup(hashes...) }

// Next is the moment at which Step is due even if nothing happens.
func (m *Member) Next() (time.Time, bool) {
	next := m.todo.tickAt
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if m.revoked() {
		return next, true // nothing else is done any more, so nothing else is due
	}
	earlier(m.own.renewAt)
	earlier(m.todo.wake)
	for _, h := range m.nets.holdings {
		if t, ok := h.alloc.Next(); ok {
			earlier(t)
		}
	}
	for _, t := range m.guests.turns {
		earlier(t)
	}
	for _, t := range m.watch.lots {
		earlier(t)
	}
	return next, true
}

// Step does what is due and says what follows from it.
func (m *Member) Step(now time.Time) Output {
	var out Output
	if clock := m.clock(now); m.cert.ValidAt(clock) && !m.doubts(now) { // else it is rather our clock that is wrong
		m.reg.Expire(clock, m.cert.Hash)
	}
	if _, known := m.ownCertificate(); !known {
		_ = m.reg.Add(m.cfg.Certificate) // junk had pushed it out of the waiting room
	}
	if m.watch.sync {
		m.watch.sync, m.watch.syncs = false, now
		m.todo.dirty = m.todo.dirty || m.overdue(now)
	}
	if m.reg.Changes() == m.todo.seen && !m.todo.dirty && now.Before(m.due()) {
		out.Want = m.wants(now)
		return out
	}
	if !now.Before(m.todo.tickAt) {
		m.todo.tickAt = now.Add(lookAgain)
	}
	m.todo.wake = time.Time{}
	out.Charter, out.Certificate = m.followCharter(now), m.followCertificate()
	m.listen(now)
	if !m.revoked() {
		out.Clone = m.meetTwin(now)
		m.doubtItself(now)
		m.isAlone(now)
		m.rise(now)
		m.witness(now)
		m.expire(now)
		out.Ask = m.allocate(now)
		out.Keyring = m.turnKeys(now)
		m.publish(now)
		if m.asksForTwin(now) && out.Ask == 0 {
			out.Ask = m.nets.nextAsk()
		}
	}
	out.Broadcast, m.todo.outBound = m.todo.outBound, nil
	out.Table, m.todo.urgent = m.todo.urgent, false
	out.State, out.Keep = m.save()
	out.Want = m.wants(now)
	if view := m.buildView(now); m.todo.view == nil || !view.Equal(m.todo.view) {
		m.todo.view, out.View = view, view
	}
	m.todo.seen, m.todo.dirty = m.reg.Changes(), false
	return out
}

// wants lists what others are to be asked for. The first is the own certificate, while we
// know of nobody who has admitted it: a member that knows of the admission answers with it.
// We have no tunnels to compare tables through, and digests tell no admissions apart.
func (m *Member) wants(now time.Time) []trust.Hash {
	missing, g := m.reg.Missing(), &m.guests
	if admitted, _ := m.ownCertificate(); admitted || !m.contact.synced || m.state.Left || m.revoked() {
		return missing
	}
	if g.askAt.IsZero() {
		g.askAt = now.Add(admitTurn) // else nobody has yet
	}
	if now.Before(g.askAt) {
		m.wakeAt(g.askAt)
		return missing
	}
	return append([]trust.Hash{m.cert.Hash}, missing...)
}

// save gives the state that must be durable before more is said, and the one for
// which nothing waits: when a record was renewed last may be told too early, never
// too late, and a disk that is full for a day is not to cost the lease.
func (m *Member) save() (save, keep *State) {
	state, before := m.state, m.saved
	if state.Renewed.Equal(before.Renewed) && slices.Equal(state.Addresses, before.Addresses) && sameState(state, before) {
		return nil, nil
	}
	m.saved = state
	if sameState(state, before) {
		return nil, &state
	}
	return &state, nil
}

// roll is who is a member, for as long as nothing changes.
type roll struct {
	at      time.Time
	changes uint64
	cert    trust.Hash
	jump    jump
	members []registry.Member
}

// members lists those who are members at this moment; it is not to be changed.
func (m *Member) members(now time.Time) []registry.Member {
	if r := m.roll; r.members == nil || !r.at.Equal(now) || r.changes != m.reg.Changes() || r.cert != m.cert.Hash || r.jump != m.jump {
		m.roll = roll{now, m.reg.Changes(), m.cert.Hash, m.jump, m.reg.Members(m.valid(now))}
	}
	return m.roll.members
}

func (m *Member) due() time.Time {
	t, _ := m.Next()
	return t
}

func sameState(a, b State) bool {
	return a.Epoch == b.Epoch && a.Left == b.Left && slices.EqualFunc(a.Leases, b.Leases, mesh.Lease.Equal)
}
