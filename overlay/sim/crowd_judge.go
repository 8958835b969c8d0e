package sim

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/overlay/plan"
)

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
	if before != nil {
		h.keeps(before, v)
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

// keeps judges whom a daemon no longer takes for a member: nobody's certificate ends,
// whatever its clock shows.
func (h *machine) keeps(before, v *mesh.View) {
	if h.c.purge {
		return // perhaps it was revoked who has admitted somebody
	}
	for _, n := range before.Nodes {
		if _, still := v.Node(n.ID); !still && !n.Left {
			h.c.violate("clock", "%s drops %s", h, n.Name)
		}
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
		// Of whom somebody has said that it is gone, a lease from before its last start is void.
		void := h.first.ClaimEpoch <= c.buried[h.id] && h.first.ClaimEpoch < h.disk.state.Epoch
		if h.excuse == "" && !void && !slices.ContainsFunc(c.claims, h.wins) {
			c.violate("lease", "%s gives up %s, which nobody else had a better claim to", h, h.first.Prefixes[0])
		}
		h.first, h.excuse = claim{}, ""
	}
	if now.State != mesh.Held {
		return
	}
	if slices.ContainsFunc(c.claims[:h.void], func(o claim) bool { return o.owner == h.id && o.same(&claimed) }) {
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
	return o.owner != h.id && o.contends() && o.overlaps(&h.first) && (h.first.ClaimEpoch <= h.c.buried[h.id] || o.beats(&h.first)) &&
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

// wasAway says that a host was off or asleep, and for how long as far as it can tell.
// After longer than a lease lasts all that it had is void.
func (h *machine) wasAway(d, shown time.Duration) {
	if max(d, shown) > crowdTTL*9/10 {
		h.excuse = "was away for long"
	}
	if d > crowdTTL {
		h.c.end(h.id)
	}
	if min(d, shown) > crowdTTL {
		h.void = len(h.c.claims)
	}
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

// owners says of each host that has something what that is.
func (c *crowd) owners() (all []string) {
	for _, h := range c.members() {
		self, _ := h.view.Node(h.id)
		if has := viewHeld(self); len(has) > 0 {
			all = append(all, fmt.Sprint(h, has))
		}
	}
	return all
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
		if c.brief != nil { // else they stay as they are: it is no fault that others notice
			h.setClock(right)
		}
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
	after := c.owners()
	for _, o := range before { // who has none may still hear that somebody has left
		if !slices.Contains(after, o) {
			return took, fmt.Errorf("owners change from %s to %s although all is well", before, after)
		}
	}
	return took, nil
}
