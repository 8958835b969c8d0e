// Package member is one node's membership as a pure machine: what it believes
// of the others, what it says of itself, whom it admits, and which subnets it
// holds.
//
//	objects from gossip ──► Receive ─┐
//	exchange completed ───► Synced ──┤            ┌─► Save       (first, durable)
//	addresses, charter ───► Set... ──┼─► Step(now)┼─► Broadcast  (signed objects)
//	leave ────────────────► Leave ───┘     ▲      ├─► Want       (to fetch)
//	members asked ────────► Asked ─────────┘      ├─► Ask        (before a claim is held)
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
	Charter     []byte       // not nil: newer than the one before; must be durable before Save is
	Certificate []byte       // not nil: this node's own was renewed; must be durable before Broadcast goes out
	Keyring     *Keyring     // not nil: changed; must be durable before it is used, and used before Broadcast goes out
	Save        *State       // not nil: must be durable before Broadcast goes out
	Broadcast   [][]byte     // signed objects for everybody
	Table       bool         // the table must be durable before Broadcast goes out
	Want        []trust.Hash // certificates that others refer to and we lack
	Ask         uint64       // not 0: exchange tables with a few members, then call Asked with it
	View        *mesh.View   // not nil: changed
	Keep        *State       // not nil: should be saved soon, and nothing waits for it
	Clone       bool         // a daemon with this identity runs elsewhere, for longer: this one must end
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
	cfg   Config
	id    mesh.NodeID
	cert  *trust.Certificate
	state State
	saved State // the last one given to the owner to be saved
	reg   *registry.Registry

	charter  trust.Hash // that the holdings are by, and the owner was given to be saved
	used     []string   // networks besides the home network, sorted; the charter may lack some
	inUse    []string   // networks
	holdings []*holding // home first, then by name

	synced    bool // a whole exchange was made with another node, or nobody is to be waited for
	exchanged bool // one was made
	otherKey  bool // who was asked to join seems to have another gossip key
	offered   []netip.AddrPort
	endpoints []netip.AddrPort // those of them that the others accept

	ask, asked uint64 // number of the last question, of the last one that was answered

	seq        uint64
	says       *trust.Record // what there is to be told of this node
	published  *trust.Record // what the others were told last; nil: nothing by this run
	again      bool          // it is to be told again, whatever it says
	renewed    time.Time     // when it was told last
	renewAt    time.Time
	quietUntil time.Time // it is too early to speak, unless others were heard
	guests     guests
	watch      watch
	rekeys     rekeying
	started    time.Time
	admittedAt time.Time // when this daemon first knew that it is admitted

	slept    time.Duration // since the start
	asleep   time.Duration // since renewed
	off      bool          // it was away for longer than a lease lasts
	offAt    time.Time
	reclaims bool // leases are to be claimed afresh
	jump     jump
	roseAt   time.Time // when a tombstone of this node was answered last
	since    uint64    // the epoch in which this run began
	accused  map[trust.Hash]accused
	twin     twin

	seen     uint64 // registry changes that the last Step has seen
	dirty    bool   // something other than the registry changed
	tickAt   time.Time
	wake     time.Time // zero: nothing else is due
	urgent   bool      // something came that must outlast the daemon
	roll     roll
	view     *mesh.View
	outBound [][]byte // own objects that wait for the next Step
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
		cfg: cfg, id: cert.ID(), cert: cert, state: state, saved: state, reg: registry.New(charter), charter: charter.Hash,
		guests: guests{map[trust.Hash]time.Time{}, map[trust.Hash]refusal{}}, started: now, since: state.Epoch,
		watch: watch{heard: map[mesh.NodeID]hearing{}, lots: map[mesh.NodeID]time.Time{}}, twin: twin{was: state.Addresses},
		synced: cfg.Founder, dirty: true, tickAt: now.Add(complainAfter), quietUntil: now.Add(quietFor),
	}
	if m.cfg.TTL <= 0 {
		m.cfg.TTL = defaultTTL
	}
	m.reg.Share(cfg.Parsed)
	m.reg.Restore(append([][]byte{cfg.Certificate}, table...))
	if !state.Renewed.IsZero() {
		age := max(now.Sub(state.Renewed), 0)
		if m.renewed = now.Add(-age); age > m.cfg.TTL {
			m.wasOff(now)
		}
	}
	if _, ok := m.reg.Charter().Network(home); !ok {
		return nil, fmt.Errorf("the mesh has no network %q", home)
	}
	for _, l := range state.Leases {
		m.used = append(m.used, l.Network) // what was held is used until Use says otherwise
	}
	m.used = besidesHome(m.used)
	if err := m.tryRecord(now, cfg.Labels, m.used); err != nil {
		return nil, err
	}
	m.arrange(now)
	return m, nil
}

// largest are the prefixes that take most room in a record.
var largest = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}

// tryRecord makes sure, before anything is published, that the largest record can
// be which this node may have to publish with these labels, and leases in these
// networks besides home.
func (m *Member) tryRecord(now time.Time, labels map[string]string, networks []string) error {
	rec := m.newRecord()
	epoch := max(m.state.Epoch, 1<<31) // a clone, or tombstones, may raise it
	rec.Version, rec.Labels, rec.Left = mesh.Version{Epoch: epoch, Seq: 1 << 62}, labels, false
	rec.Uptime, rec.Keys = 10*365*24*time.Hour, trust.Generations{Newest: trust.MaxGeneration, Sends: trust.MaxGeneration}
	rec.Possession = make([]byte, trust.PossessionSize)
	six := netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1}), 1)
	rec.Endpoints = slices.Repeat([]netip.AddrPort{six}, trust.MaxEndpoints)
	for _, name := range append([]string{home}, networks...) {
		rec.Leases = append(rec.Leases, mesh.Lease{Network: name, Prefixes: largest, State: mesh.Held, Since: now, ClaimEpoch: epoch})
	}
	_, err := rec.Sign(m.cfg.Identity)
	return err
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
		m.urgent = m.urgent || kind == trust.KindRevocation || kind == trust.KindTombstone
	}
	return err
}

// Synced says that a whole exchange with another member has been made: its
// table was received.
func (m *Member) Synced() {
	m.dirty = m.dirty || !m.synced || !m.exchanged
	m.synced, m.exchanged, m.watch.sync = true, true, true
}

// OtherKey says whether those who were asked to join hang up, as members do that have
// not the gossip key with which they are asked.
func (m *Member) OtherKey(seen bool) {
	m.dirty = m.dirty || m.otherKey != seen
	m.otherKey = seen
}

// Asked says that what Output.Ask wanted was done, as far as anybody is there.
func (m *Member) Asked(ask uint64) {
	m.asked, m.dirty = max(m.asked, ask), true // a late answer is to an older question
}

// SetEndpoints says where peers can reach this node's tunnel, best first. Those
// that the others would refuse are left out.
func (m *Member) SetEndpoints(endpoints []netip.AddrPort) {
	m.offered = slices.Clone(endpoints)
	if usable := m.usable(endpoints); !slices.Equal(m.endpoints, usable) {
		m.endpoints, m.dirty = usable, true
	}
}

// usable leaves out what the others would refuse.
func (m *Member) usable(endpoints []netip.AddrPort) []netip.AddrPort {
	ranges := m.reg.Charter().Ranges()
	endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(e netip.AddrPort) bool {
		inside := func(r netip.Prefix) bool { return r.Contains(e.Addr()) }
		return trust.CheckEndpoint(e) != nil || slices.ContainsFunc(ranges, inside)
	})
	return endpoints[:min(len(endpoints), trust.MaxEndpoints)]
}

// SetLabels says how people sort this node; the others hear of it at once.
// Labels that no record can carry are refused, and nothing changes.
func (m *Member) SetLabels(now time.Time, labels map[string]string) error {
	if err := m.tryRecord(now, labels, m.used); err != nil {
		return err
	}
	m.cfg.Labels, m.dirty = maps.Clone(labels), true
	return nil
}

// SetOnConflict says what this node does when it loses a subnet.
func (m *Member) SetOnConflict(p lease.OnConflict) {
	m.cfg.OnConflict, m.dirty = p, true
	for _, h := range m.holdings {
		h.alloc.SetOnConflict(p)
	}
}

// SetHasSeeds tells whether somebody is named to sync with.
func (m *Member) SetHasSeeds(has bool) {
	m.cfg.HasSeeds, m.dirty = has, true
}

// Leave gives everything back for good. The next Step has the signed release.
func (m *Member) Leave(now time.Time) {
	for _, h := range m.holdings {
		h.alloc.Release(now.Round(0).UTC())
	}
	m.state.Left, m.dirty = true, true
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
	next := m.tickAt
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if m.revoked() {
		return next, true // nothing else is done any more, so nothing else is due
	}
	earlier(m.renewAt)
	earlier(m.wake)
	for _, h := range m.holdings {
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
		m.dirty = m.dirty || m.overdue(now)
	}
	if m.reg.Changes() == m.seen && !m.dirty && now.Before(m.due()) {
		out.Want = m.reg.Missing()
		return out
	}
	if !now.Before(m.tickAt) {
		m.tickAt = now.Add(lookAgain)
	}
	m.wake = time.Time{}
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
	}
	out.Broadcast, m.outBound = m.outBound, nil
	out.Table, m.urgent = m.urgent, false
	out.Save, out.Keep = m.save()
	out.Want = m.reg.Missing()
	if view := m.buildView(now); m.view == nil || !view.Equal(m.view) {
		m.view, out.View = view, view
	}
	m.seen, m.dirty = m.reg.Changes(), false
	return out
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

// publish signs and spreads a new record if what we say of ourselves changed, or
// if it is time to renew it.
func (m *Member) publish(now time.Time) {
	rec := m.newRecord()
	rec.Leases = m.leases()
	rec.Uptime = m.uptime(now)
	if !m.again && m.published != nil && sameSaying(&rec, m.published) && now.Before(m.renewAt) {
		return
	}
	if m.says = &rec; m.quiet(now) {
		m.wakeAt(m.quietUntil)
		if m.renewAt.Before(m.quietUntil) {
			m.renewAt = m.quietUntil // or it would stay due until then
		}
		return
	}
	signed, err := rec.Signed(m.cfg.Identity)
	if err != nil {
		// Only labels, endpoints and networks come from outside; New and the setters check them.
		panic(fmt.Sprintf("own record: %v", err))
	}
	m.seq++
	m.published, m.again = &rec, false
	m.noteSpoken(now)
	m.renewed, m.renewAt, m.asleep = now, now.Add(m.renewEvery()), 0
	m.state.Renewed = now.Round(0).UTC().Truncate(time.Second)
	_ = m.reg.AddOwn(signed)
	m.outBound = append(m.outBound, signed.Raw)
}

// newRecord is the next record, without leases.
func (m *Member) newRecord() trust.Record {
	return trust.Record{
		Version: mesh.Version{Epoch: m.state.Epoch, Seq: m.seq + 1}, Certificate: m.cert.Hash,
		Nonce: m.cfg.Nonce, Key: m.cfg.TunnelKey, Possession: m.cfg.Possession, Endpoints: m.told(),
		Labels: m.cfg.Labels, Suites: m.cfg.Suites, Left: m.state.Left,
		Keys: trust.Generations{Newest: m.cfg.Keyring.Newest(), Sends: m.cfg.Keyring.Send},
	}
}

// sameSaying compares what two records say, versions aside.
func sameSaying(a, b *trust.Record) bool {
	return a.Left == b.Left && a.Key == b.Key && a.Certificate == b.Certificate && a.Keys == b.Keys && slices.Equal(a.Endpoints, b.Endpoints) && maps.Equal(a.Labels, b.Labels) &&
		slices.EqualFunc(a.Leases, b.Leases, mesh.Lease.Equal)
}
