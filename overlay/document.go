package overlay

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/overlay/probe"
	"meshd/overlay/status"
	"meshd/overlay/tunnel"
)

// sessionLife is how long a tunnel session carries data after its handshake
// (WireGuard's REJECT_AFTER_TIME).
const sessionLife = 180 * time.Second

// Status tells how the node and its peers are doing, as far as was measured.
func (n *Node) Status() status.Document {
	view := n.view.Load()
	doc := status.Document{
		Version: status.Version, State: n.state(view), Health: n.findings(view),
		Node: status.Node{ID: n.opt.Self, Name: n.opt.Name},
	}
	name, stats := n.data.Stats()
	doc.Engine = status.Engine{Name: name, MTU: n.mtu(), Drops: stats.Drops}
	if c := n.opt.Containers; c != nil {
		doc.Attachments = status.CountAttachments(c.List())
	}
	if view == nil {
		return doc
	}
	doc.Mesh = status.Mesh{ID: view.Mesh, Name: view.MeshName, Revocations: view.Revocations}
	for _, network := range view.Networks {
		doc.Networks = append(doc.Networks, status.NewNetwork(network))
	}
	doc.Node.Epoch = view.Epoch
	probes, now := n.prober.Results(), time.Now()
	for _, m := range view.Nodes {
		if m.ID == view.Self {
			doc.Node.Name, doc.Node.Control, doc.Node.Labels = m.Name, &m.Control, m.Labels
			doc.Node.Leases, doc.Node.CertificateEnds, doc.Node.GossipKey = leasesOf(m, view.TTL), known(m.Ends), generations(m)
			continue
		}
		counters, measured := stats.Peers[m.ID]
		result := probes[m.ID]
		doc.Peers = append(doc.Peers, peerDocument(m, view.TTL, counters, measured, result, now))
	}
	slices.SortFunc(doc.Peers, func(a, b status.Peer) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.ID.Compare(b.ID))
	})
	return doc
}

// findings lists everything that is wrong, from all parts.
func (n *Node) findings(view *mesh.View) []status.Finding {
	all := n.opt.Mesh.Findings()
	if view != nil {
		all = append(all, view.Health...)
	}
	if planned := n.health.Load(); planned != nil {
		all = append(all, *planned...)
	}
	if c := n.opt.Containers; c != nil {
		all = append(all, c.Findings()...)
	}
	if n.unfiltered() {
		all = append(all, mesh.Finding{Level: "error", Code: "no_firewall", Message: ErrNoFirewall.Error()})
	}
	if o := n.obstacles.Load(); o != nil {
		for _, what := range *o {
			all = append(all, mesh.Finding{Level: "warning", Code: "packets_dropped", Message: what})
		}
	}
	for _, p := range n.loop.Problems() {
		all = append(all, mesh.Finding{Level: "error", Code: "not_applied", Message: fmt.Sprintf("%s: %v", p.Adapter, p.Err)})
	}
	if u := n.underlay.Load(); u != nil {
		if len(n.endpoints(*u)) == 0 {
			all = append(all, mesh.Finding{Level: "warning", Code: "no_underlay", Message: "this host has no address by which others could reach it: bring an interface up, or set advertise in the config file"})
		}
		if u.NoIPv6 {
			all = append(all, mesh.Finding{Level: "warning", Code: "no_ipv6", Message: "the kernel has no IPv6 for new interfaces, so peers cannot be probed and only IPv4 is carried: boot it without ipv6.disable=1, and set net.ipv6.conf.default.disable_ipv6=0"})
		}
		if u.NoForwarding {
			all = append(all, mesh.Finding{Level: "info", Code: "no_forwarding", Message: "the kernel does not forward packets, so this host is on the mesh and its containers are not: run `meshd --preflight` as root, as the systemd unit does, or set net.ipv4.ip_forward=1 and net.ipv6.conf.all.forwarding=1"})
		}
	}
	var out []status.Finding
	for _, f := range all {
		if s := status.Finding(f); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// leasesOf tells of a member's leases, and when others may take them.
func leasesOf(m mesh.Node, ttl time.Duration) (out []status.Lease) {
	for _, l := range m.Leases {
		one := status.NewLease(l)
		if one.Renewed = known(m.Heard); one.Renewed != nil && ttl > 0 && l.State != mesh.Released {
			one.Expires = known(m.Heard.Add(ttl))
		}
		out = append(out, one)
	}
	return out
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// generations are null while the member has said nothing.
func generations(m mesh.Node) *status.Generations {
	if m.Version == (mesh.Version{}) {
		return nil
	}
	return new(status.Generations(m.Keys))
}

// peerDocument tells of one peer; what was not measured stays nil.
func peerDocument(m mesh.Node, ttl time.Duration, counters tunnel.PeerStats, measured bool, r probe.Result, now time.Time) status.Peer {
	p := status.Peer{
		ID: m.ID, Name: m.Name, Control: &m.Control, State: status.PeerIdle, Path: status.PathNone,
		Suite: counters.Suite, Labels: m.Labels, Leases: leasesOf(m, ttl),
		Expired: m.Expired, CertificateEnds: known(m.Ends), GossipKey: generations(m),
	}
	if measured {
		p.RxBytes, p.TxBytes = &counters.RxBytes, &counters.TxBytes
		if e := counters.Endpoint; e.IsValid() {
			p.Endpoint, p.Path = &e, status.PathIdle
		}
		if t := counters.LastHandshake; !t.IsZero() {
			p.LastHandshake = &t
		}
	}
	if r.Probes > 0 {
		p.Loss = &r.Loss
	}
	if r.MTU > 0 {
		p.PathMTU = &r.MTU
	}
	if r.RTT > 0 {
		ms := float64(r.RTT.Microseconds()) / 1000
		p.RTTms = &ms
	}
	if t := r.Answered; !t.IsZero() {
		p.LastSeen = &t
	}
	session := p.LastHandshake != nil && now.Sub(*p.LastHandshake) < sessionLife
	switch {
	case m.Left:
		p.State, p.Path, p.Endpoint = status.PeerLeft, status.PathNone, nil
	case r.Down:
		p.State = status.PeerDown
	case r.Probes > 0 && !r.Answered.IsZero(), session:
		p.State = status.PeerUp
		if p.Endpoint != nil {
			p.Path = status.PathDirect
		}
	}
	return p
}
