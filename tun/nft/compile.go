//go:build linux

package nft

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"meshd/tun"
)

// Names of chains and sets.
const (
	fromMesh, toMesh        = "from_mesh", "to_mesh"
	fromOthers, fromPort    = "from_others", "from_port"
	fromSegment, toSegment  = "from-", "to-" // and the segment's name; it may be "mesh"
	withinSegment           = "within-"      // the same
	linksOf                 = "links-"       // a set, and the segment's name
	toOthers, linksOfOthers = "to_others", "others"
)

// Where the kernel enters our chains.
var (
	// Before connections are tracked and destinations translated: what is dropped
	// here costs little, and has the destination that its sender gave it.
	arriving = &hook{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw, "raw"}
	// Before other firewalls, so that they can let pass whatever is on our links.
	passing = &hook{nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter - 10, "filter - 10"}
	// With those of others; the first one that translates does it.
	leaving = &hook{nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource - 5, "srcnat - 5"}
)

var (
	linkLocal   = netip.MustParsePrefix("fe80::/10")
	multicast   = netip.MustParsePrefix("ff00::/8")
	unspecified = netip.MustParsePrefix("::/128")
)

// ours are the names of all links of containers.
var ours = []string{tun.BridgePrefix + "*", tun.PortPrefix + "*"}

// dockersGateway is the bridge by which Docker publishes ports of containers that
// are on other drivers' networks.
const dockersGateway = "docker_gwbridge"

// compile says in tables of the kernel what is wanted.
func compile(want tun.Rules) []ruleset {
	want = want.Normal()
	tables := []ruleset{compileHost(want), compileBridge(want)}
	for i := range tables {
		tables[i].content = contentOf(tables[i])
	}
	return tables
}

// compileHost is for what the host sends, gets or forwards.
func compileHost(want tun.Rules) ruleset {
	if want.IsZero() {
		return ruleset{table: table}
	}
	prerouting := chain{name: "prerouting", hook: arriving, rules: []rule{
		jump(fromMesh, in(want.Link)), accept(in("lo")), call(fromPort, in(tun.PortPrefix+"*")),
	}}
	forward := chain{name: "forward", hook: passing, rules: []rule{jump(toMesh, out(want.Link))}}
	postrouting := chain{name: "postrouting", hook: leaving}
	var comeBack []rule
	others := chain{name: fromOthers}
	segments := []chain{meshIn(want)}
	all := ruleset{table: table}

	for _, s := range want.Segments {
		for _, p := range s.Own {
			if want.Masquerade && (len(s.Links) > 0 || s.Delegated) {
				postrouting.rules = append(postrouting.rules, masquerade(from(p)))
			}
		}
		if len(s.Links) == 0 {
			for _, p := range s.Own { // a bridge that somebody else made in our subnet
				others.rules = append(others.rules, accept(from(p)))
			}
			continue
		}
		all.sets = append(all.sets, interfaces(linksOf+s.Name, s.Links))
		prerouting.rules = append(prerouting.rules, jump(fromSegment+s.Name, member{expr.MetaKeyIIFNAME, linksOf + s.Name}))
		forward.rules = append(forward.rules, jump(toSegment+s.Name, member{expr.MetaKeyOIFNAME, linksOf + s.Name}))
		segments = append(segments, segmentIn(s, want), segmentOut(s))
		if hasInternals(want.Ports) {
			segments = append(segments, segmentInside(s))
		}
		for _, r := range s.Ranges {
			// Else who is asked by way of Docker's bridge would answer the mesh by
			// ours, with an address that it must not have there.
			comeBack = append(comeBack, masquerade(out(dockersGateway), from(r), published))
		}
	}
	others.rules = append(others.rules, drop())
	if len(want.Others) > 0 {
		all.sets = append(all.sets, interfaces(linksOfOthers, want.Others))
		for _, name := range ours {
			forward.rules = append(forward.rules, jump(toOthers, in(name), member{expr.MetaKeyOIFNAME, linksOfOthers}))
		}
		if want.HasLinks() {
			segments = append(segments, chain{name: toOthers, rules: []rule{accept(answered), accept(published), drop()}})
		}
	}

	for _, name := range ours {
		prerouting.rules = append(prerouting.rules, drop(in(name)))
		forward.rules = append(forward.rules, drop(out(name)))
	}
	stay := []rule{accept(out(want.Link)), accept(out("lo"))}
	for _, r := range ranges(want) {
		prerouting.rules = append(prerouting.rules, jump(fromOthers, from(r)))
		stay = append(stay, accept(to(r)))
	}
	all.chains = []chain{prerouting}
	// These have the kernel track each connection of the host, which costs much on
	// some: no host pays for it that has no containers at all.
	switch {
	case want.HasLinks():
		postrouting.rules = slices.Concat(comeBack, stay, postrouting.rules)
		all.chains = append(all.chains, forward, postrouting, meshOut(want))
	case len(want.Others) > 0: // the host may well be a router for others
		forward.rules = []rule{jump(toMesh, member{expr.MetaKeyIIFNAME, linksOfOthers}, out(want.Link))}
		all.chains = append(all.chains, forward, meshOut(want))
	}
	_, of4, of6 := held(want.Ports)
	all.sets = append(all.sets, of4, of6)
	if hasInternals(want.Ports) {
		in4, in6 := internals(want.Ports)
		all.sets = append(all.sets, in4, in6)
	}
	all.chains = append(append(all.chains, others, portIn()), segments...)
	return all
}

// meshIn is for what comes from the TUN device.
func meshIn(want tun.Rules) chain {
	c := chain{name: fromMesh}
	for _, s := range want.Segments {
		for _, r := range s.Ranges {
			c.rules = append(c.rules, accept(from(r), to(r)))
		}
	}
	c.rules = append(c.rules, drop())
	return c
}

// meshOut is for what is forwarded into the TUN device.
func meshOut(want tun.Rules) chain {
	c := chain{name: toMesh}
	for _, s := range want.Segments {
		for _, own := range s.Own {
			for _, r := range s.Ranges {
				if r.Addr().Is4() == own.Addr().Is4() {
					c.rules = append(c.rules, accept(from(own), to(r)))
				}
			}
		}
	}
	c.rules = append(c.rules, accept(answered), accept(published), drop())
	return c
}

// segmentIn is for what comes from the containers of a segment.
func segmentIn(s tun.Segment, want tun.Rules) chain {
	c := chain{name: fromSegment + s.Name}
	for _, r := range ranges(want) {
		if !slices.Contains(s.Ranges, r) {
			c.rules = append(c.rules, drop(to(r)))
		}
	}
	if hasInternals(want.Ports) {
		inside := withinSegment + s.Name
		c.rules = append(c.rules, jump(inside, overIP, holder{ipSource, internal4}), jump(inside, overIPv6, holder{ip6Source, internal6}))
	}
	for _, p := range s.Own {
		c.rules = append(c.rules, accept(from(p)))
	}
	for _, p := range s.Former { // from one port of a bridge to another, where the kernel filters that here
		c.rules = append(c.rules, accept(from(p), to(p)))
	}
	// Neighbours are found by these, which the kernel forwards nowhere (RFC 4291,
	// 2.5.2 and 2.5.6).
	c.rules = append(c.rules, accept(from(linkLocal)), accept(from(unspecified)), drop())
	return c
}

// segmentInside is for what comes from containers that get no further than their
// segment. By IPv6 they look for each other with multicast.
func segmentInside(s tun.Segment) chain {
	c := chain{name: withinSegment + s.Name}
	for _, r := range s.Ranges {
		c.rules = append(c.rules, accept(to(r)))
	}
	c.rules = append(c.rules, accept(to(linkLocal)), accept(to(multicast)), drop())
	return c
}

func hasInternals(ports []tun.Port) bool {
	return slices.ContainsFunc(ports, func(p tun.Port) bool { return p.Internal })
}

// segmentOut is for what is forwarded to the containers of a segment.
func segmentOut(s tun.Segment) chain {
	c := chain{name: toSegment + s.Name}
	for _, r := range s.Ranges {
		c.rules = append(c.rules, accept(from(r)))
	}
	c.rules = append(c.rules, accept(answered), accept(published), drop())
	return c
}

// ranges lists those of all segments.
func ranges(r tun.Rules) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range r.Segments {
		all = append(all, s.Ranges...)
	}
	return all
}
