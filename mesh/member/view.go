package member

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"meshd/mesh"
	"meshd/mesh/lease"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

// buildView tells everything that is known, with conflicts decided.
func (m *Member) buildView(now time.Time) *mesh.View {
	charter := m.reg.Charter()
	view := &mesh.View{
		Mesh: charter.ID(), MeshName: charter.Name, Control: charter.Control(),
		Networks: charter.Networks, Reserved: charter.Reserved, TTL: m.cfg.TTL,
		Revocations: len(m.reg.Revocations()), Self: m.id, Epoch: m.state.Epoch,
		// That of the home network, which every node has from its start on: a node
		// that waits for a lease in another one is no less ready for all else. The
		// others' states are those of their leases.
		State:    m.nets.holdings[0].alloc.State(),
		Withheld: m.withheld(), Contested: m.twin.contests,
	}
	if m.revoked() {
		return m.outcast(view)
	}
	admitted, _ := m.ownCertificate()
	if !admitted && view.State == mesh.Ready {
		view.State = mesh.WaitingForSeed // holds a lease from before, but cannot prove its admission yet
	}
	if m.waits() && view.State == mesh.Ready {
		view.State = mesh.Probing // whether its lease is another daemon's
	}
	members := slices.Clone(m.members(now))
	for i := range members {
		if members[i].ID == m.id {
			// Whatever a clone, or a tombstone that we answer to, says of us.
			members[i] = registry.Member{ID: m.id, Certificate: members[i].Certificate, Record: m.own.says}
			if admitted {
				members[i].Certificate = m.cert
			}
		}
	}
	claims, all := map[string][]lease.Claim{}, make([][]lease.Claim, len(members))
	for i, n := range members {
		if n.ID == m.id || m.believes() {
			all[i] = claimsOf(n, charter)
		}
		for _, c := range all[i] {
			claims[c.Network] = append(claims[c.Network], c)
		}
	}
	type owned struct {
		owner   mesh.NodeID
		network string
	}
	winners := map[owned]bool{}
	for _, of := range claims {
		for _, c := range lease.Routed(of) {
			winners[owned{c.Owner, c.Network}] = true
		}
	}
	view.Nodes = make([]mesh.Node, 0, len(members))
	for i, n := range members {
		node := m.nodeOf(n, view.Mesh)
		for _, c := range all[i] {
			l := c.Lease
			if l.State == mesh.Held && !winners[owned{n.ID, l.Network}] {
				l.State = mesh.Quarantined // lost, and has not noticed yet
			}
			node.Leases = append(node.Leases, l)
		}
		view.Nodes = append(view.Nodes, node)
	}
	view.Health = m.health(now, view)
	return view
}

// reaches tells whether rights permit any subnet of a network.
func reaches(r trust.Rights, n mesh.Network) bool {
	inside := func(all []netip.Prefix, p netip.Prefix) bool {
		ofFamily := func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }
		return !slices.ContainsFunc(all, ofFamily) || slices.ContainsFunc(all, p.Overlaps)
	}
	return !slices.ContainsFunc(n.Ranges(), func(p netip.Prefix) bool { return !inside(r.Pins, p) || !inside(r.Ranges, p) })
}

func (m *Member) nodeOf(n registry.Member, id mesh.ID) mesh.Node {
	node := mesh.Node{
		ID: n.ID, Name: n.Certificate.Name, Control: mesh.ControlAddr(id, n.ID),
		Pins: n.Certificate.Rights.Pins, Admitted: n.Certificate.Admitted, Ends: n.Certificate.NotAfter,
	}
	r := n.Record
	if r == nil {
		return node
	}
	node.Version, node.Key, node.Endpoints, node.Keys = r.Version, r.Key, r.Endpoints, mesh.Generations(r.Keys)
	node.Proven = len(r.Possession) > 0 // the registry takes no wrong one
	node.Suites, node.Labels, node.Left = r.Suites, r.Labels, r.Left
	if h, ok := m.watch.heard[n.ID]; ok {
		node.Heard = h.at.Round(0).UTC().Truncate(time.Second)
	}
	if n.ID == m.id {
		node.Heard = m.state.Renewed
	}
	node.Expired = n.Expired()
	return node
}

// outcast is the view of a node that was revoked: nobody is there any more, and its
// containers reach each other.
func (m *Member) outcast(view *mesh.View) *mesh.View {
	view.State = mesh.Revoked
	self := m.nodeOf(registry.Member{ID: m.id, Certificate: m.cert, Record: m.own.says}, view.Mesh)
	for _, l := range m.leases() {
		l.State = mesh.Quarantined
		self.Leases = append(self.Leases, l)
	}
	view.Nodes = []mesh.Node{self}
	view.Health = []mesh.Finding{{Level: "error", Code: "revoked", Message: "this node was revoked: no member talks to it any more; to make this host a member again, remove the state directory and join with a new token"}}
	return view
}

// rival names the subnet of a network that this node keeps or is pinned to, and who
// has it in its place.
func (m *Member) rival(view *mesh.View, h *holding) (subnet, owner string) {
	own, _ := h.alloc.Lease()
	slot := own.Prefixes
	for _, pin := range m.cert.Rights.Pins {
		if i, err := h.network.SlotOf(pin); err == nil && len(slot) == 0 {
			slot = h.network.Slot(i)
		}
	}
	words := make([]string, len(slot))
	for i, p := range slot {
		words[i] = p.String()
	}
	owner = "another node"
	for _, n := range view.Nodes {
		for _, l := range n.Leases {
			has := func(p netip.Prefix) bool { return slices.ContainsFunc(slot, p.Overlaps) }
			if n.ID != m.id && !n.Left && n.Expired == mesh.NotExpired && l.Network == h.network.Name && l.State == mesh.Held && slices.ContainsFunc(l.Prefixes, has) {
				owner = fmt.Sprintf("node %s (%s)", n.Name, n.ID.Short())
			}
		}
	}
	return strings.Join(words, ", "), owner
}

// health lists what an operator should know.
func (m *Member) health(now time.Time, view *mesh.View) []mesh.Finding {
	var out []mesh.Finding
	find := func(level, code, format string, args ...any) {
		out = append(out, mesh.Finding{Level: level, Code: code, Message: fmt.Sprintf(format, args...)})
	}
	m.certificateFindings(now, view, find)
	admitted, _ := m.ownCertificate()
	late := now.Sub(m.started) >= complainAfter
	switch {
	case !m.contact.synced && !admitted && m.contact.otherKey && late:
		find("error", "no_seed", "a seed is there and hangs up, since it has another gossip key: the token is older than the last rotation; join again with a new one")
	case !m.contact.synced && !m.cfg.HasSeeds && late:
		find("warning", "no_seed", "no seed is configured and nobody has contacted this node: add one to seeds in the config file")
	case !m.contact.synced && late:
		find("warning", "no_seed", "no seed answers: check that one of them runs and that its gossip port is open (TCP and UDP)")
	case !admitted && m.contact.synced && late:
		find("error", "no_admission", "no member has admitted this node: its token may have expired or be used up; join again with a new one")
	}
	switch view.State {
	case mesh.NoFreeSubnets:
		find("error", "no_free_subnets", "every subnet that this node may lease is taken")
	case mesh.Conflict:
		subnet, owner := m.rival(view, m.nets.holdings[0])
		find("error", "pin_conflict", "the subnet %s that this node is pinned to belongs to %s with the same pin", subnet, owner)
	case mesh.Quarantine:
		subnet, owner := m.rival(view, m.nets.holdings[0])
		find("error", "quarantined", "this node's subnet %s belongs to %s: traffic stays local until that one gives it back", subnet, owner)
	default: // nothing is wrong, or it is said above
	}
	for _, h := range m.nets.holdings[1:] {
		subnet, owner := m.rival(view, h)
		switch h.alloc.State() {
		case mesh.NoFreeSubnets:
			if !reaches(m.cert.Rights, h.network) {
				find("error", "no_free_subnets", "this node's certificate lets it lease nothing in network %s: the token that it joined with named a subnet elsewhere", h.network.Name)
				continue
			}
			find("error", "no_free_subnets", "every subnet of network %s that this node may lease is taken", h.network.Name)
		case mesh.Quarantine:
			find("error", "quarantined", "this node's subnet %s of network %s belongs to %s: its traffic stays local until that one gives it back", subnet, h.network.Name, owner)
		case mesh.Conflict:
			find("error", "pin_conflict", "the subnet %s of network %s that this node is pinned to belongs to %s with the same pin", subnet, h.network.Name, owner)
		default: // nothing is wrong
		}
	}
	if m.reg.Forked() {
		find("error", "charter_fork", "the CA key has signed two charters of version %d, and all nodes follow one of them: see `meshctl network list`, and make what is missing again", m.reg.Charter().Version)
	}
	if m.waits() {
		find("warning", "withheld", "this node starts where it was not before, or another one speaks as it: its tunnels wait for some seconds, or half a minute if it reaches nobody, in case its state is a copy of one that is in use")
	}
	if !m.twin.heard.IsZero() && now.Sub(m.twin.heard) < time.Minute {
		find("warning", "identity_in_use", "records with this node's identity came from elsewhere: a clone runs, or this state was restored from a backup")
	}
	if by := m.accusers(now); len(by) > 0 {
		find("warning", "buried_alive", "%s said that this node is gone, while it runs: it was not heard there for long, or somebody lies", strings.Join(by, ", "))
	}
	names := map[string][]string{}
	for _, n := range view.Nodes {
		if !n.Left && n.Expired == mesh.NotExpired {
			id := n.ID.Short()
			if len(n.Leases) > 0 { // by which a person tells them apart
				id += " with " + n.Leases[0].Prefixes[0].String()
			}
			names[n.Name] = append(names[n.Name], id)
		}
	}
	for _, n := range view.Nodes {
		if ids := names[n.Name]; len(ids) > 1 {
			find("warning", "duplicate_name", "%d nodes are called %s: use their ids, %s", len(ids), n.Name, strings.Join(ids, ", "))
			delete(names, n.Name)
		}
	}
	for _, reason := range m.guests.reasons(now) {
		find("info", "admission_refused", "%s", reason) // the guest's trouble, not the mesh's
	}
	return out
}
