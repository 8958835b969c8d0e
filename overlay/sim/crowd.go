package sim

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/meshtest"
	"meshd/mesh/registry"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/plan"
)

// crowd is a mesh of membership machines, and of nothing else: no memberlist, no
// kernels, no engines, no goroutines.
//
//	Broadcast ──► to each of the others, late, twice or never
//	tables    ──► compared by pairs, every few seconds
//	disks     ──► keep what was saved, and nothing else
//
// So a day takes a second, leases may expire, and a seed tells the same story each
// time, to the last byte.
type crowd struct {
	// fixed at construction
	t     *testing.T
	begin time.Time
	mesh  *meshtest.Mesh
	token *trust.Token

	parsed registry.Parsed // by any host

	random *rand.Rand // of what befalls messages
	now    time.Time
	queue  queue
	seq    int
	hosts  []*machine
	cut    map[[2]int]bool
	loss   float64
	double float64

	claims      []claim              // of all, in the order in which they became known
	buried      map[mesh.NodeID]bool // of whom somebody has said that they are gone
	revoked     map[mesh.NodeID]bool
	revocations []trust.Revocation // that were handed in
	story       []line
	wrong       []string
}

// machine is a host with a disk, and a daemon that may run on it.
type machine struct {
	c      *crowd
	number int
	name   string
	keys   statedir.Keys
	id     mesh.NodeID
	card   *statedir.Membership // nil: not joined yet
	cert   *trust.Certificate   // in it
	skew   time.Duration

	disk   record // what is saved
	backup record // of some time ago
	m      *member.Member
	life   int // number of the daemon; events of others are void
	view   *mesh.View
	wanted bool // the daemon should run
	asleep time.Time
	down   time.Time // since when it is off or asleep
	out    bool      // for good: it has left, or a clone of it goes on
	back   time.Time // when it came back after longer than a lease lasts, by its clock
	first  claim     // the last one that it held
	excuse string    // why it may have another subnet than first
	nonces uint64
	dies   death
	inVain int      // steps in a row after which the next was due at once
	twin   *machine // runs on a copy of its disk
}

// death is when a daemon dies that is to die while it saves.
type death int

const (
	never      death = iota
	beforeSave       // nothing of the step is saved
	afterSave        // all of it is saved, and nothing is said
)

// record is what a disk has.
type record struct {
	charter, certificate []byte
	keyring              *member.Keyring
	state                member.State
	table                [][]byte
}

func (r record) clone() record {
	r.table = slices.Clone(r.table)
	r.state.Leases = slices.Clone(r.state.Leases)
	return r
}

// event is something that is due.
type event struct {
	at  time.Time
	seq int
	do  func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return cmp.Or(q[i].at.Compare(q[j].at), q[i].seq-q[j].seq) < 0
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// crowdTTL is how long leases last in a crowd.
const crowdTTL = 2 * time.Minute

func newCrowd(t *testing.T, s *crowdSchedule) *crowd {
	t.Helper()
	c := &crowd{
		t: t, begin: time.Now(), now: time.Now(), mesh: meshtest.NewMesh(t, s.Network), random: rand.New(rand.NewPCG(s.Seed, 11)),
		cut: map[[2]int]bool{}, buried: map[mesh.NodeID]bool{}, revoked: map[mesh.NodeID]bool{},
	}
	c.token = c.mesh.Token(t, nil)
	for i, skew := range s.Skews {
		c.add(fmt.Sprintf("n%d", i), statedir.NewKeys(), skew)
	}
	c.saveTables()
	return c
}

func (c *crowd) add(name string, keys statedir.Keys, skew time.Duration) *machine {
	h := &machine{c: c, number: len(c.hosts), name: name, keys: keys, id: idOf(keys.Identity), skew: skew}
	c.hosts = append(c.hosts, h)
	return h
}

// after lets something happen later.
func (c *crowd) after(d time.Duration, do func()) {
	c.seq++
	heap.Push(&c.queue, event{c.now.Add(d), c.seq, do})
}

// pass lets time pass. It ends early at a violation.
func (c *crowd) pass(d time.Duration) {
	end := c.now.Add(d)
	for len(c.wrong) == 0 && len(c.queue) > 0 && !c.queue[0].at.After(end) {
		e := heap.Pop(&c.queue).(event)
		c.now = e.at
		e.do()
	}
	c.now = end
}

// clock is what the host's says. A host that was suspended has one that stood still
// meanwhile: a machine goes by how much time passes, and is told of the rest.
func (h *machine) clock() time.Time { return h.c.now.Add(h.skew) }

func (h *machine) runs() bool { return h.m != nil && h.asleep.IsZero() }

// join makes the certificate, and starts the daemon.
func (h *machine) join() {
	if h.card != nil {
		return
	}
	var card statedir.Membership
	if h.number == 0 {
		card = h.c.mesh.Found(h.c.t, h.keys, h.name)
	} else {
		card = h.c.mesh.Join(h.c.t, h.c.token, h.keys, h.name, h.clock())
	}
	cert, err := trust.ParseCertificate(card.Certificate, h.c.mesh.Charter.CA)
	if err != nil {
		h.c.t.Fatal(err)
	}
	h.card, h.cert, h.wanted = &card, cert, true
	h.boot()
}

// boot starts the daemon from what the disk has.
func (h *machine) boot() {
	if h.m != nil || !h.wanted || h.card == nil || h.out {
		return
	}
	if !h.down.IsZero() && h.c.now.Sub(h.down) > crowdTTL*9/10 {
		h.excuse = "was off for long"
	}
	if !h.down.IsZero() {
		h.wasAway(h.c.now.Sub(h.down))
	}
	h.down = time.Time{}
	h.disk.state.Epoch++
	h.nonces++
	cfg := h.card.Member(h.keys, uint64(h.number+1)<<32|h.nonces)
	cfg.TTL, cfg.HasSeeds, cfg.Parsed = crowdTTL, h.number > 0, &h.c.parsed
	if h.disk.charter != nil {
		cfg.Charter = h.disk.charter
	}
	if h.disk.certificate != nil {
		cfg.Certificate = h.disk.certificate
	}
	if h.disk.keyring != nil {
		cfg.Keyring = *h.disk.keyring
	}
	m, err := member.New(h.clock(), cfg, h.disk.state, slices.Clone(h.disk.table))
	if err != nil {
		h.c.violate("I6", "%s does not start: %v", h, err)
		return
	}
	h.m, h.view = m, nil
	h.life++
	m.SetEndpoints([]netip.AddrPort{netip.AddrPortFrom(address(h.number, 0), tunnelPort)})
	h.step()
	h.asks(h.life)
}

// kill is kill -9.
func (h *machine) kill() {
	if h.m == nil {
		return
	}
	h.m, h.view, h.asleep = nil, nil, time.Time{}
	h.life++
	h.down = h.c.now
}

// stop is SIGTERM: the table is saved.
func (h *machine) stop() {
	if h.runs() {
		h.disk.table = h.m.Table()
	}
	h.kill()
}

func (h *machine) String() string { return h.name }

// soon lets the daemon do something, unless it has ended by then, or the host
// sleeps.
func (h *machine) soon(d time.Duration, do func()) {
	life := h.life
	h.c.after(d, func() {
		if h.life == life && h.runs() {
			do()
		}
	})
}

// step has the machine do what is due.
func (h *machine) step() {
	out := h.m.Step(h.clock())
	if h.dies == beforeSave && out.Save != nil {
		h.dies = never
		h.kill()
		return
	}
	d := &h.disk
	if out.Charter != nil {
		d.charter = out.Charter
	}
	if out.Certificate != nil {
		d.certificate = out.Certificate
	}
	if out.Keyring != nil {
		d.keyring = out.Keyring
	}
	if out.Save != nil {
		d.state = *out.Save
	}
	if out.Keep != nil {
		d.state = *out.Keep
	}
	if out.Table {
		d.table = h.m.Table()
	}
	if h.dies == afterSave && (out.Save != nil || out.Table) {
		h.dies = never
		h.kill()
		return
	}
	if out.View != nil {
		h.look(out.View)
	}
	for _, raw := range out.Broadcast {
		h.spread(raw)
	}
	for _, hash := range out.Want {
		h.fetch(hash)
	}
	if out.Ask != 0 {
		ask := out.Ask
		h.soon(200*time.Millisecond, func() {
			for range 2 {
				if o := h.somebody(); o != nil {
					h.exchange(o)
				}
			}
			if h.runs() {
				h.m.Asked(ask)
				h.step()
			}
		})
	}
	if out.Clone {
		h.c.say("%s ends: a clone of it goes on", h)
		h.out = true
		h.kill()
		h.c.revokeAgain()
		return
	}
	if at, ok := h.m.Next(); ok {
		h.spins(at)
		h.soon(max(at.Sub(h.clock()), time.Millisecond), func() {
			if next, ok := h.m.Next(); ok && !next.After(h.clock()) {
				h.step()
			}
		})
	}
}

// maxInVain is how often in a row a machine may have more to do at once.
const maxInVain = 200

// spins judges a machine that asks for the next step at once, each time.
func (h *machine) spins(next time.Time) {
	if next.After(h.clock()) {
		h.inVain = 0
		return
	}
	if h.inVain++; h.inVain > maxInVain {
		h.c.violate("I6", "%s spins: Next is %s ago after each step", h, h.clock().Sub(next))
		h.inVain = 0
	}
}

// asks has the daemon compare tables with somebody every few seconds.
func (h *machine) asks(life int) {
	h.c.after(time.Second+time.Duration(h.c.random.Int64N(int64(3*time.Second))), func() {
		if h.life != life {
			return
		}
		if o := h.somebody(); h.runs() && o != nil {
			h.exchange(o)
		}
		h.asks(life)
	})
}

// somebody is another host, as seeds and cached addresses have it, whether it
// answers or not.
func (h *machine) somebody() *machine {
	var all []*machine
	for _, o := range h.c.hosts {
		if o != h && o.card != nil && !o.out {
			all = append(all, o)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[h.c.random.IntN(len(all))]
}

func (c *crowd) chance(p float64) bool { return p > 0 && c.random.Float64() < p }

// talks tells whether a stream between two gets through.
func (h *machine) talks(o *machine) bool {
	c := h.c
	return h.runs() && o.runs() && !c.cut[[2]int{h.number, o.number}] && !c.cut[[2]int{o.number, h.number}] && !c.chance(c.loss)
}

// exchange has two tell each other what they lack. It may end halfway.
func (h *machine) exchange(o *machine) {
	if !h.talks(o) {
		return
	}
	mine, theirs := h.m.Table(), o.m.Table()
	h.put(lacking(theirs, mine))
	h.m.Synced()
	h.step()
	if o.runs() && !h.c.chance(h.c.loss) {
		o.put(lacking(mine, theirs))
		o.m.Synced()
		o.step()
	}
}

// lacking gives what is in one table and not in the other.
func lacking(from, have [][]byte) (out [][]byte) {
	known := make(map[string]bool, len(have))
	for _, raw := range have {
		known[string(raw)] = true
	}
	for _, raw := range from {
		if !known[string(raw)] {
			out = append(out, raw)
		}
	}
	return out
}

func (h *machine) put(objects [][]byte) {
	for _, raw := range objects {
		h.receive(raw)
	}
}

func (h *machine) receive(raw []byte) {
	if err := h.m.Receive(raw); err != nil && !errors.Is(err, registry.ErrStale) {
		h.c.say("      %s refuses: %v", h, err)
	}
}

// spread sends an object to all others, as far as it gets.
func (h *machine) spread(raw []byte) {
	c := h.c
	if kind, err := trust.KindOf(raw); err == nil && kind == trust.KindTombstone {
		if t, err := trust.ParseTombstone(raw); err == nil {
			c.buried[t.Node] = true
		}
	}
	for _, o := range c.hosts {
		if o == h || c.cut[[2]int{h.number, o.number}] {
			continue
		}
		times := 1
		if c.chance(c.double) {
			times = 2
		}
		for range times {
			if c.chance(c.loss) {
				continue
			}
			c.after(time.Millisecond+time.Duration(c.random.Int64N(int64(80*time.Millisecond))), func() {
				if o.runs() {
					o.receive(raw)
					o.step()
				}
			})
		}
	}
}

// fetch asks somebody for a certificate.
func (h *machine) fetch(hash trust.Hash) {
	h.soon(100*time.Millisecond, func() {
		if o := h.somebody(); o != nil && h.talks(o) {
			h.put(o.m.Lookup(hash))
			h.step()
		}
	})
}

// held lists the subnets that a node holds, by a view.
func viewHeld(n mesh.Node) (all []netip.Prefix) {
	for _, l := range n.Leases {
		if l.State == mesh.Held && n.Expired == mesh.NotExpired {
			all = append(all, l.Prefixes...)
		}
	}
	return all
}

// renewed tells whether a view differs from the one before at most in when nodes
// were heard, by which nobody routes: it is what nearly all changes are.
func renewed(before, v *mesh.View) bool {
	now := *v
	now.Nodes, now.Health = before.Nodes, before.Health
	return now.Equal(before) && slices.EqualFunc(before.Nodes, v.Nodes, func(a, b mesh.Node) bool {
		b.Version, b.Heard = a.Version, a.Heard
		return a.Equal(b)
	})
}

// route judges where a daemon now routes: no two prefixes of its table overlap.
func (h *machine) route(v *mesh.View) {
	type entry struct {
		netip.Prefix
		whose mesh.NodeID
	}
	var all []entry
	tunnel := plan.Build(v, plan.Options{Link: "mesh0", MTU: 1420}).Tunnel
	for _, p := range tunnel.Own {
		all = append(all, entry{p, h.id})
	}
	for _, peer := range tunnel.Peers {
		for _, p := range peer.AllowedIPs {
			all = append(all, entry{p, peer.ID})
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return a.Compare(b.Prefix) })
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; a.Overlaps(b.Prefix) {
			h.c.violate("I1", "%s routes %s of %s and %s of %s", h, a.Prefix, a.whose.Short(), b.Prefix, b.whose.Short())
		}
	}
}

// look judges what a daemon now sees.
func (h *machine) look(v *mesh.View) {
	c := h.c
	before := h.view
	h.view = v
	if before == nil || !renewed(before, v) {
		h.route(v)
	}
	if before == nil || before.State != v.State {
		c.say("      %s is %s", h, v.State)
	}
	self, ok := v.Node(h.id)
	if !ok {
		return
	}
	if !self.Left && !c.revoked[h.id] {
		h.note(self.Leases)
	}
}

// note judges what becomes of a host's lease.
func (h *machine) note(leases []mesh.Lease) {
	c := h.c
	var now mesh.Lease
	if len(leases) > 0 {
		now = leases[0]
	}
	claimed := claim{Lease: now, owner: h.id, cert: h.cert}
	if i := c.standing(h.id); i < 0 || !claimed.same(&c.claims[i]) {
		c.end(h.id)
		if now.State != 0 {
			c.claims = append(c.claims, claimed)
		}
	}
	if h.first.State != 0 && !slices.Equal(h.first.Prefixes, now.Prefixes) {
		if h.excuse == "" && !slices.ContainsFunc(c.claims, h.wins) {
			c.violate("lease", "%s gives up %s, which nobody else had a better claim to", h, h.first.Prefixes[0])
		}
		h.first, h.excuse = claim{}, ""
		delete(c.buried, h.id)
	}
	if now.State != mesh.Held {
		return
	}
	if now.Since.Before(h.back.Add(-time.Second)) {
		c.violate("lease", "%s was away for longer than a lease lasts, and goes on to hold %s", h, now.Prefixes[0])
	}
	if h.first.State == 0 {
		c.say("      %s holds %s", h, now.Prefixes[0])
	}
	h.first = claimed
}

// wins tells whether a claim of somebody else is why a host has lost what it held:
// of whom somebody has said that it is gone, whatever was claimed since.
func (h *machine) wins(o claim) bool {
	return o.owner != h.id && o.contends() && o.overlaps(&h.first) && (h.c.buried[h.id] || o.beats(&h.first)) &&
		(o.until.IsZero() || h.c.now.Sub(o.until) < crowdTTL)
}

// standing finds the claim of a node that stands; -1: there is none.
func (c *crowd) standing(id mesh.NodeID) int {
	return slices.IndexFunc(c.claims, func(o claim) bool { return o.owner == id && o.until.IsZero() })
}

// end ends it.
func (c *crowd) end(id mesh.NodeID) {
	if i := c.standing(id); i >= 0 {
		c.claims[i].until = c.now
	}
}

// wasAway says that a host was off or asleep. After longer than a lease lasts all
// that it had is void.
func (h *machine) wasAway(d time.Duration) {
	if d > crowdTTL {
		h.back = h.clock()
		h.c.end(h.id)
	}
}

// say adds to the story.
func (c *crowd) say(format string, args ...any) {
	c.story = append(c.story, line{at: c.now.Sub(c.begin), text: fmt.Sprintf(format, args...)})
}

func (c *crowd) violate(invariant, format string, args ...any) {
	text := invariant + ": " + fmt.Sprintf(format, args...)
	if len(c.wrong) < maxWrong {
		c.wrong = append(c.wrong, fmt.Sprintf("%.3fs %s", c.now.Sub(c.begin).Seconds(), text))
	}
	c.say("VIOLATION %s", text)
}

func (c *crowd) tell(out io.Writer) {
	for _, l := range c.story {
		fmt.Fprintf(out, "%9.3fs  %s\n", l.at.Seconds(), l.text)
	}
}

// saveTables has a daemon save its table now and then.
func (c *crowd) saveTables() {
	c.after(time.Second, func() {
		for _, h := range c.hosts {
			// The kernel's table of whoever sleeps is of no use to anybody.
			if h.runs() && h.c.random.IntN(30) == 0 {
				h.disk.table = h.m.Table()
			}
		}
		c.saveTables()
	})
}

// members are the hosts that should have a subnet, if there are enough.
func (c *crowd) members() (all []*machine) {
	for _, h := range c.hosts {
		if h.card != nil && !h.out && !c.revoked[h.id] {
			all = append(all, h)
		}
	}
	return all
}

// unsettled says what is not as it should be; empty: all is well.
func (c *crowd) unsettled() string {
	owners := map[netip.Prefix]*machine{}
	identities := map[mesh.NodeID]*machine{}
	members := c.members()
	without := 0
	for _, h := range members {
		if o := identities[h.id]; o != nil {
			return fmt.Sprintf("%s and %s, which is its clone, both run", o, h)
		}
		identities[h.id] = h
		if h.view == nil {
			return fmt.Sprintf("%s does not run", h)
		}
		switch h.view.State {
		case mesh.Ready:
		case mesh.NoFreeSubnets:
			without++
			continue
		default:
			return fmt.Sprintf("%s is %s", h, h.view.State)
		}
		self, _ := h.view.Node(h.id)
		for _, p := range viewHeld(self) {
			if o := owners[p]; o != nil {
				return fmt.Sprintf("%s and %s both hold %s", o, h, p)
			}
			owners[p] = h
		}
	}
	// Of whom nobody has heard that it left, the subnet is free only when its lease ends.
	gone := 0
	for _, h := range c.hosts {
		if h.out {
			gone++
		}
	}
	if slots := c.mesh.Charter.Networks[0].Slots(); without > max(0, len(members)+gone-slots) {
		return fmt.Sprintf("%d of %d have no subnet, and there are %d", without, len(members), slots)
	}
	for _, h := range members {
		for _, n := range h.view.Nodes {
			if c.revoked[n.ID] {
				return fmt.Sprintf("%s has not heard that %s is revoked", h, n.Name)
			}
		}
		for _, o := range members {
			mine, ok := h.view.Node(o.id)
			theirs, _ := o.view.Node(o.id)
			if !ok || !slices.Equal(viewHeld(mine), viewHeld(theirs)) {
				return fmt.Sprintf("%s sees %s with %s, who has %s", h, o, viewHeld(mine), viewHeld(theirs))
			}
		}
	}
	return ""
}

// owners prints who has what.
func (c *crowd) owners() string {
	var out []string
	for _, h := range c.members() {
		self, _ := h.view.Node(h.id)
		out = append(out, fmt.Sprint(h, viewHeld(self)))
	}
	return strings.Join(out, " ")
}

// crowdBound is how soon after all faults have ended all is well: tables are
// compared every few seconds by pairs, and whoever was off for long has to look for
// another subnet then.
const crowdBound = 45 * time.Second

// settle ends all faults, and waits until all is well for good.
func (c *crowd) settle() (took time.Duration, err error) {
	c.say("all faults end")
	clear(c.cut)
	c.loss, c.double = 0, 0
	for _, h := range c.hosts {
		h.dies = never
		h.wake()
		if !h.out {
			h.again()
		}
	}
	begin := c.now
	for wrong := c.unsettled(); wrong != ""; wrong = c.unsettled() {
		if took = c.now.Sub(begin); took > crowdBound {
			return took, fmt.Errorf("not well within %s: %s", crowdBound, wrong)
		}
		c.pass(250 * time.Millisecond)
		if len(c.wrong) > 0 {
			return took, errors.New("a violation")
		}
	}
	took = c.now.Sub(begin)
	before := c.owners()
	c.say("all is well: %s", before)
	c.pass(crowdTTL / 3)
	if wrong := c.unsettled(); wrong != "" {
		return took, fmt.Errorf("not well for good: %s", wrong)
	}
	if after := c.owners(); after != before {
		return took, fmt.Errorf("owners change from %s to %s although all is well", before, after)
	}
	return took, nil
}

// sleep suspends the host.
func (h *machine) sleep() {
	if h.runs() {
		h.asleep = h.c.now
	}
}

// wake ends that.
func (h *machine) wake() {
	if h.m == nil || h.asleep.IsZero() {
		return
	}
	d := h.c.now.Sub(h.asleep)
	h.asleep, h.skew = time.Time{}, h.skew-d
	if d > crowdTTL*9/10 {
		h.excuse = "was suspended for long"
	}
	h.wasAway(d)
	h.m.Slept(h.clock(), d)
	h.step()
}
