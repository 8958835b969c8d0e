package sim

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/overlay/status"
)

// tick is how finely the world does what is due.
const tick = 100 * time.Millisecond

// pass lets time pass: service managers start what should run, and packets
// travel that must not go astray. It ends early at a violation.
func (w *world) pass(d time.Duration) {
	end := time.Now().Add(d)
	for now := time.Now(); now.Before(end) && !w.failed(); now = time.Now() {
		for _, h := range w.hosts {
			h.supervise(now)
			h.mu.Lock()
			late := !h.repairBy.IsZero() && now.After(h.repairBy)
			if late || h.guarded {
				h.repairBy = time.Time{}
			}
			bare := late && !h.guarded
			h.mu.Unlock()
			if bare {
				w.violate("I6", "%s has not put its routes back within %s", h, repairIn)
			}
		}
		w.sample()
		time.Sleep(min(tick, end.Sub(now)))
	}
}

// play does what the schedule says, when it says so, and heals everything at its
// end. It ends early at a violation.
func (w *world) play(s *schedule) {
	w.say("", "%s", s.Weather)
	for _, step := range s.Steps {
		if late := time.Since(w.begin); step.At > late {
			w.pass(step.At - late)
		}
		if w.failed() {
			return
		}
		w.say("", "%s", step.Text)
		step.do(w)
	}
	w.pass(s.End - time.Since(w.begin))
	w.heal()
}

// start lets the first host found the mesh, and then all others join it at one
// moment.
func (w *world) start() {
	w.hosts[0].come()
	w.pass(5 * time.Second)
	w.say("", "all others join")
	for _, h := range w.hosts[1:] {
		h.come()
	}
}

// readyOnce looks whether each host has held but one subnet, the one it still holds. It
// tells how many had to look for another before they held one.
func (w *world) readyOnce() (lost int, err error) {
	for _, h := range w.members() {
		var held, claimed []netip.Prefix
		for _, c := range w.truth.claims(h) {
			if c.State == mesh.Held && !slices.Contains(held, c.Prefixes[0]) {
				held = append(held, c.Prefixes[0])
			}
			if !slices.Contains(claimed, c.Prefixes[0]) {
				claimed = append(claimed, c.Prefixes[0])
			}
		}
		if len(held) != 1 {
			return lost, fmt.Errorf("%s held %s, one after the other", h, held)
		}
		if len(claimed) > 1 {
			lost++
		}
	}
	w.say("", "%d hosts had to look for another subnet", lost)
	return lost, nil
}

// unique waits until every member holds a subnet that no other one claims, by what they
// have signed, and tells how long that took.
func (w *world) unique(bound time.Duration) (time.Duration, error) {
	begin := time.Now()
	for {
		took, missing := time.Since(begin), w.truth.shared(w.members())
		switch {
		case missing == "" || w.failed():
			return took, nil
		case took > bound:
			return took, fmt.Errorf("not unique within %s: %s", bound, missing)
		}
		w.pass(tick)
	}
}

// heal ends all faults: every host that has joined and not left runs.
func (w *world) heal() {
	w.say("", "all faults end")
	clear(w.cut)
	w.silence = false
	w.rewire()
	w.weather(weather{Latency: 20 * time.Millisecond, Jitter: 5 * time.Millisecond})
	for _, h := range w.hosts {
		h.disk.Fail(false)
		h.kernel.Fail(0)
		h.setClock(right)
		if h.member != nil && !h.left {
			h.wanted, h.startAt = true, time.Time{}
		}
	}
}

// members lists the hosts that should be ready.
func (w *world) members() []*host {
	return slices.DeleteFunc(slices.Clone(w.hosts), func(h *host) bool {
		return h.member == nil || h.left || h.revoked || h.admitted == byNobody
	})
}

// bound is how soon all must be well when all faults have ended: a partition
// heals within 10 s. Who has yet to join, perhaps through a seed that was down,
// and who has to look for another subnet then, is given 15 s.
func (w *world) bound() time.Duration {
	owners := map[netip.Prefix]bool{}
	for _, h := range w.members() {
		claims := w.truth.claims(h)
		n := len(claims)
		if n == 0 || !claims[n-1].until.IsZero() || claims[n-1].State != mesh.Held || owners[claims[n-1].Prefixes[0]] {
			return 15 * time.Second
		}
		owners[claims[n-1].Prefixes[0]] = true
	}
	return 10 * time.Second
}

// settle waits until every member is ready with a subnet of its own, all see the
// same owners, and all pairs reach each other. It fails if that takes longer than
// the bound, and tells what was missing then, and whether it came later.
func (w *world) settle(bound time.Duration) (took time.Duration, err error) {
	begin, missing := time.Now(), ""
	for {
		if w.failed() {
			return time.Since(begin), errors.New("not well: a violation")
		}
		took = time.Since(begin)
		now := w.unsettled()
		if now == "" {
			now = w.unreached(w.members())
		}
		switch {
		case now == "" && took <= bound:
			return took, nil
		case now == "":
			return took, fmt.Errorf("not well within %s, but after %s: at first, %s", bound, took, missing)
		case took > forEver:
			return took, fmt.Errorf("not well within %s, nor in %s: %s", bound, took, now)
		case took <= bound:
			missing = now
		}
		w.pass(tick)
	}
}

// forEver is how long the world looks on, to tell late from never.
const forEver = 2 * time.Minute

// quiet lets time pass in which nothing may change any more, and in which every
// node comes to see its peers as they are.
func (w *world) quiet(d time.Duration) error {
	before := w.owners()
	w.calm.Store(true)
	defer w.calm.Store(false)
	w.pass(d)
	if wrong := w.unsettled(); wrong != "" {
		return fmt.Errorf("not well for good: %s", wrong)
	}
	if after := w.owners(); !slices.Equal(before, after) {
		return fmt.Errorf("owners change from %s to %s although all is well", before, after)
	}
	for _, h := range w.members() {
		for _, p := range h.life.node.Status().Peers {
			// Of who left they may know nothing but its certificate, if all who had heard of it
			// have crashed before they saved their tables.
			left := slices.ContainsFunc(w.hosts, func(o *host) bool { return o.id == p.ID && o.left })
			if left == (p.State == status.PeerUp) {
				return fmt.Errorf("all is well, and %s sees %s %s", h, p.Name, p.State)
			}
		}
	}
	if lost := w.unreached(w.members()); lost != "" {
		return fmt.Errorf("not well for good: %s", lost)
	}
	return nil
}

// owners prints who has what.
func (w *world) owners() []string {
	var out []string
	for _, h := range w.members() {
		out = append(out, fmt.Sprint(h, heldBy(h.life.node.Status().Node.Leases)))
	}
	return out
}

func heldBy(leases []status.Lease) (held []netip.Prefix) {
	for _, l := range leases {
		if l.State == mesh.Held.String() {
			held = append(held, l.Prefixes...)
		}
	}
	return held
}

// unsettled says what is not as it should be; empty: all is well.
func (w *world) unsettled() string {
	owners := map[netip.Prefix]*host{}
	leases := map[mesh.NodeID][]netip.Prefix{}
	documents := map[*host]status.Document{}
	for _, h := range w.members() {
		if h.life == nil {
			return fmt.Sprintf("%s does not run", h)
		}
		doc := h.life.node.Status()
		documents[h] = doc
		if doc.State != mesh.Ready {
			return fmt.Sprintf("%s is %s", h, doc.State)
		}
		for _, f := range doc.Health {
			if f.Level != "info" && f.Code != "clock" { // a clock that was set is doubted for a day
				return fmt.Sprintf("%s says %s: %s", h, f.Code, f.Message)
			}
		}
		for _, p := range heldBy(doc.Node.Leases) {
			if other := owners[p]; other != nil {
				return fmt.Sprintf("%s and %s both hold %s", h, other, p)
			}
			owners[p] = h
		}
		leases[h.id] = heldBy(doc.Node.Leases)
		if len(leases[h.id]) == 0 {
			return fmt.Sprintf("%s holds nothing", h)
		}
	}
	for _, h := range w.members() {
		for _, o := range w.hosts {
			if o.revoked && slices.ContainsFunc(documents[h].Peers, func(p status.Peer) bool { return p.ID == o.id }) {
				return fmt.Sprintf("%s has not heard that %s is revoked", h, o)
			}
		}
		for id, held := range leases {
			if id == h.id {
				continue
			}
			peers := documents[h].Peers
			i := slices.IndexFunc(peers, func(p status.Peer) bool { return p.ID == id })
			if i < 0 {
				return fmt.Sprintf("%s does not know %s", h, id.Short())
			}
			if why := peers[i].Expired; why != mesh.NotExpired {
				return fmt.Sprintf("%s takes the leases of %s for void: %s", h, peers[i].Name, why)
			}
			if seen := heldBy(peers[i].Leases); !slices.Equal(seen, held) {
				return fmt.Sprintf("%s sees %s with %s, who has %s", h, peers[i].Name, seen, held)
			}
		}
	}
	return ""
}
