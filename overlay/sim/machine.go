package sim

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
)

// machine is a host with a disk, and a daemon that may run on it.
type machine struct {
	c      *crowd
	number int
	name   string
	keys   statedir.Keys
	id     mesh.NodeID
	card   *statedir.Membership // nil: not joined yet
	cert   *trust.Certificate   // in it
	short  bool                 // it is for half a day
	clock  clock

	disk   record // what is saved
	backup record // of some time ago
	m      *member.Member
	life   int // number of the daemon; events of others are void
	view   *mesh.View
	wanted bool // the daemon should run
	asleep time.Time
	down   time.Time     // since when it is off or asleep
	out    bool          // for good: it has left, or a clone of it goes on
	void   int           // so many claims were known when it came back after longer than a lease lasts
	told   time.Duration // what the daemon knows of clock.set
	first  claim         // the last one that it held
	excuse string        // why it may have another subnet than first
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
	midSave          // the first part is, of two at least, as when a member is revoked
	afterSave        // all of it is saved, and nothing is said
)

// record is what a disk has.
type record struct {
	charter, certificate []byte
	keyring              *member.Keyring
	state                member.State
	table                [][]byte

	dies int // before which part of a save the daemon dies, from 1; 0: it does not
}

func (r *record) SaveCharter(charter []byte) error {
	return r.save(func() { r.charter = charter })
}

func (r *record) SaveCertificate(certificate []byte) error {
	return r.save(func() { r.certificate = certificate })
}

func (r *record) SaveKeyring(k member.Keyring) error { return r.save(func() { r.keyring = &k }) }
func (r *record) SaveTable(table [][]byte) error     { return r.save(func() { r.table = table }) }
func (r *record) SaveState(state member.State) error { return r.save(func() { r.state = state }) }

var errDies = errors.New("the daemon dies")

func (r *record) save(part func()) error {
	if r.dies == 1 {
		return errDies
	}
	r.dies = max(0, r.dies-1)
	part()
	return nil
}

func (r record) clone() record {
	r.table = slices.Clone(r.table)
	r.state.Leases = slices.Clone(r.state.Leases)
	return r
}

// now is what time.Now gives the daemon.
func (h *machine) now() time.Time { return h.clock.now(h.c.now) }

func (h *machine) runs() bool { return h.m != nil && h.asleep.IsZero() }

// join makes the certificate, and starts the daemon.
func (h *machine) join() {
	if h.card != nil {
		return
	}
	var card statedir.Membership
	token := h.c.token
	if h.short {
		token = h.c.brief
	}
	if h.number == 0 {
		card = h.c.mesh.Found(h.c.t, h.keys, h.name)
	} else {
		card = h.c.mesh.Join(h.c.t, token, h.keys, h.name, h.now())
	}
	cert, err := trust.ParseCertificate(card.Certificate, h.c.mesh.Charter.CA)
	if err != nil {
		h.c.t.Fatal(err)
	}
	h.card, h.cert, h.wanted = &card, cert, true
	if h.c.chance(0.5) {
		h.dies = midSave
	}
	h.boot()
}

// boot starts the daemon from what the disk has.
func (h *machine) boot() {
	if h.m != nil || !h.wanted || h.card == nil || h.out {
		return
	}
	if !h.down.IsZero() {
		h.wasAway(h.c.now.Sub(h.down), h.clock.wall(h.c.now).Sub(h.disk.state.Renewed))
	}
	h.down, h.told = time.Time{}, h.clock.set
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
	m, err := member.New(h.now(), cfg, h.disk.state, slices.Clone(h.disk.table))
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

// renumber is meshctl lease renumber.
func (h *machine) renumber() {
	if !h.runs() {
		return
	}
	if err := h.m.Renumber(h.now(), "default", false); err == nil {
		h.excuse = "it was renumbered"
		h.step()
	}
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
	out := h.m.Step(h.now())
	if h.dies == beforeSave && out.State != nil {
		h.dies = never
		h.kill()
		return
	}
	die := h.dies == afterSave && (out.State != nil || out.Table)
	if h.dies == midSave && out.Table && out.State != nil {
		h.disk.dies = 2
	}
	if out.SaveTo(&h.disk, h.m.Table) != nil { // only if it dies
		h.disk.dies, die = 0, true
		h.c.say("%s: kill -9 while it saves", h)
		h.c.after(2*time.Second, h.boot)
	}
	if out.Keep != nil {
		h.disk.state = *out.Keep
	}
	if die {
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
			for _, o := range append(h.elders(2), h.somebody()) {
				if o != nil {
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
		h.soon(max(at.Sub(h.now()), time.Millisecond), func() {
			if next, ok := h.m.Next(); ok && !next.After(h.now()) {
				h.step()
			}
		})
	}
}

// maxInVain is how often in a row a machine may have more to do at once.
const maxInVain = 200

// spins judges a machine that asks for the next step at once, each time.
func (h *machine) spins(next time.Time) {
	if next.After(h.now()) {
		h.inVain = 0
		return
	}
	if h.inVain++; h.inVain > maxInVain {
		h.c.violate("I6", "%s spins: Next is %s ago after each step", h, h.now().Sub(next))
		h.inVain = 0
	}
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
	h.asleep = time.Time{}
	h.clock.still += d
	h.wasAway(d, d)
	h.m.Slept(h.now(), d)
	h.lookAtClock()
	h.step()
}
