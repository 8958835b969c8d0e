package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/trust"
	"meshd/overlay/tunnel"
)

// truth is what really is: what every node has signed and saved, written down
// where it happens. Invariants are judged by it, not by any node's tables.
type truth struct {
	w *world

	mu      sync.Mutex // guards all below
	byKey   map[mesh.Key]*host
	byCert  map[trust.Hash]*host
	past    map[*host]*past
	records map[string]*trust.Record // parsed; nil: not a record
}

// past is what one node has done.
type past struct {
	cert   *trust.Certificate
	claims []claim                // in order; the last one may stand
	epoch  uint64                 // saved
	left   bool                   // saved
	saved  map[netip.Prefix]int64 // when what is saved was claimed, in seconds
	afresh bool                   // it has yet to claim what it has afresh: the CA has voided it, or it was off for long by its clock
}

// claim is a lease as a node has signed it.
type claim struct {
	mesh.Lease
	owner mesh.NodeID
	cert  *trust.Certificate
	until time.Time // zero: it stands
}

func newTruth(w *world) *truth {
	return &truth{
		w: w, byKey: map[mesh.Key]*host{}, byCert: map[trust.Hash]*host{}, past: map[*host]*past{}, records: map[string]*trust.Record{},
	}
}

func (t *truth) join(h *host, raw []byte) {
	cert, err := trust.ParseCertificate(raw, t.w.mesh.Charter.CA)
	if err != nil {
		t.w.t.Fatal(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byKey[h.tunnel], t.byCert[cert.Hash] = h, h
	t.past[h] = &past{cert: cert, saved: map[netip.Prefix]int64{}}
}

func (t *truth) save(h *host, s member.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.past[h]
	p.epoch, p.left = s.Epoch, s.Left
	for _, l := range s.Leases {
		p.saved[l.Prefixes[0]] = l.Since.Unix()
	}
}

// parseLocked reads a record, each one once.
func (t *truth) parseLocked(raw []byte) *trust.Record {
	r, known := t.records[string(raw)]
	if !known {
		if kind, err := trust.KindOf(raw); err == nil && kind == trust.KindRecord {
			r, _ = trust.ParseRecord(raw)
		}
		t.records[string(raw)] = r
	}
	return r
}

// signed takes note of what a node says of itself.
func (t *truth) signed(h *host, raw []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.parseLocked(raw)
	if r == nil || t.byCert[r.Certificate] != h {
		return
	}
	p := t.past[h]
	now := time.Now()
	var lease mesh.Lease // zero: none
	if len(r.Leases) > 0 {
		lease = r.Leases[0]
	}
	if n := len(p.claims); n > 0 && p.claims[n-1].until.IsZero() {
		old := &p.claims[n-1]
		if old.same(&claim{Lease: lease}) {
			return
		}
		old.until = now
		if old.State == mesh.Held && !(slices.Equal(old.Prefixes, lease.Prefixes) && lease.State == mesh.Held) && !r.Left {
			t.judgeLossLocked(h, old)
		}
	}
	if lease.State != 0 {
		p.claims = append(p.claims, claim{Lease: lease, owner: h.id, cert: p.cert})
		t.w.say(h.name, "claims %s, %s", lease.Prefixes[0], lease.State)
	}
}

// forget says that what a node has is void.
func (t *truth) forget(h *host) (epoch uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.past[h].afresh = true
	return t.past[h].epoch
}

// boots says that a node starts after it was off for so long, by its clock.
func (t *truth) boots(h *host, off time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.past[h].afresh = t.past[h].afresh || off > day
}

// recall takes that back: it could not be handed in.
func (t *truth) recall(h *host) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.past[h].afresh = false
}

// judgeLossLocked asks why a node no longer holds a subnet: somebody's claim was
// better, or it was never saved, so nobody but the node itself knew of it.
func (t *truth) judgeLossLocked(owner *host, c *claim) {
	p := t.past[owner]
	if p.afresh || p.saved[c.Prefixes[0]] != c.Since.Unix() {
		p.afresh = false
		return
	}
	for h, p := range t.past {
		if h != owner && slices.ContainsFunc(p.claims, func(o claim) bool { return o.contends() && o.overlaps(c) && o.beats(c) }) {
			return
		}
	}
	t.w.violate("lease", "%s gives up %s, which nobody else had a better claim to", owner, c.Prefixes[0])
}

func (c *claim) same(o *claim) bool {
	return slices.Equal(c.Prefixes, o.Prefixes) && c.State == o.State && c.Since.Equal(o.Since)
}

func (c *claim) contends() bool { return c.State == mesh.Pending || c.State == mesh.Held }

func (c *claim) overlaps(o *claim) bool {
	return slices.ContainsFunc(c.Prefixes, func(p netip.Prefix) bool { return slices.ContainsFunc(o.Prefixes, p.Overlaps) })
}

// beats is the conflict rule of docs/architecture.md once more, so that a slip in
// package lease does not go unseen: pinned before free, held before pending,
// earlier before later, then the smaller identity.
func (c *claim) beats(o *claim) bool {
	if c.pinned() != o.pinned() {
		return c.pinned()
	}
	if (c.State == mesh.Held) != (o.State == mesh.Held) {
		return c.State == mesh.Held
	}
	if a, b := c.since(), o.since(); a != b {
		return a < b
	}
	return c.owner.Compare(o.owner) < 0
}

func (c *claim) pinned() bool { return len(c.cert.Rights.Pins) > 0 }

// since is in seconds, and no earlier than the owner was admitted.
func (c *claim) since() int64 { return max(c.Since.Unix(), c.cert.Admitted.Unix()) }

// heard looks at what reaches a node: nothing may be said before what it rests
// on is saved.
func (t *truth) heard(by *host, raw []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.parseLocked(raw)
	if r == nil {
		return
	}
	h := t.byCert[r.Certificate]
	if h == nil || h == by {
		return
	}
	p := t.past[h]
	if p.epoch < r.Version.Epoch {
		t.w.violate("save", "%s hears of %s in epoch %d, and %d is saved", by, h, r.Version.Epoch, p.epoch)
	}
	if r.Left && !p.left {
		t.w.violate("save", "%s hears that %s has left, and that is not saved", by, h)
	}
	for _, l := range r.Leases {
		if l.State == mesh.Held && p.saved[l.Prefixes[0]] == 0 {
			t.w.violate("save", "%s hears that %s holds %s, and that is not saved", by, h, l.Prefixes[0])
		}
	}
}

// lag is how long a node may take to act on its own word.
const lag = time.Second

// owns tells whether a node is, or was a moment ago, the signed owner of an
// address; ever, whether it was at any time.
func (t *truth) owns(h *host, a netip.Addr) (now, ever bool) {
	if h.admitted == byNobody {
		return false, false
	}
	if a == t.w.controlOf(h.id) {
		return true, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.past[h]
	if p == nil {
		return false, false
	}
	for _, c := range p.claims {
		if c.State != mesh.Held || !slices.ContainsFunc(c.Prefixes, func(q netip.Prefix) bool { return q.Contains(a) }) {
			continue
		}
		ever = true
		if c.until.IsZero() || time.Since(c.until) < lag {
			return true, true
		}
	}
	return false, ever
}

// claims lists what a node has claimed, in order.
func (t *truth) claims(h *host) []claim {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.past[h]; p != nil {
		return slices.Clone(p.claims)
	}
	return nil
}

// shared says who holds no subnet yet, or one that another claims; empty: nobody.
func (t *truth) shared(members []*host) string {
	owners := map[netip.Prefix]*host{}
	for _, h := range members {
		claims := t.claims(h)
		if len(claims) == 0 {
			return fmt.Sprintf("%s claims nothing", h)
		}
		c := claims[len(claims)-1]
		if o := owners[c.Prefixes[0]]; o != nil {
			return fmt.Sprintf("%s and %s both claim %s", o, h, c.Prefixes[0])
		}
		if c.State != mesh.Held || !c.until.IsZero() {
			return fmt.Sprintf("%s does not hold a subnet", h)
		}
		owners[c.Prefixes[0]] = h
	}
	return ""
}

// holder finds who has a tunnel key.
func (t *truth) holder(k mesh.Key) *host {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[k]
}

// applied looks at a table of the data plane: no two prefixes overlap.
func (t *truth) applied(h *host, c tunnel.Config) {
	type entry struct {
		netip.Prefix
		whose mesh.NodeID
	}
	var all []entry
	for _, p := range c.Own {
		all = append(all, entry{p, h.id})
	}
	for _, peer := range c.Peers {
		for _, p := range peer.AllowedIPs {
			all = append(all, entry{p, peer.ID})
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return a.Compare(b.Prefix) })
	for i := 1; i < len(all); i++ { // what covers a prefix comes right before it
		if a, b := all[i-1], all[i]; a.Overlaps(b.Prefix) {
			t.w.violate("I1", "%s routes %s of %s and %s of %s", h, a.Prefix, a.whose.Short(), b.Prefix, b.whose.Short())
		}
	}
}

// tap listens to a node's membership, and shows it the clock of its host.
type tap struct {
	*member.Member
	l *life
}

func (t tap) shown(now time.Time) time.Time { return t.l.clock.now(now) }

func (t tap) Next() (time.Time, bool) {
	at, ok := t.Member.Next()
	now := time.Now()
	return now.Add(at.Sub(t.shown(now))), ok
}

func (t tap) Leave(now time.Time) { t.Member.Leave(t.shown(now)) }

func (t tap) Jumped(now time.Time, d time.Duration) { t.Member.Jumped(t.shown(now), d) }

func (t tap) Receive(raw []byte) error {
	t.l.h.w.truth.heard(t.l.h, raw)
	return t.Member.Receive(raw)
}

func (t tap) Step(now time.Time) member.Output {
	out := t.Member.Step(t.shown(now))
	if !t.l.dead.Load() {
		for _, raw := range out.Broadcast {
			t.l.h.w.truth.signed(t.l.h, raw)
		}
	}
	return out
}
