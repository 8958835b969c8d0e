package plan_test

import (
	"net/netip"
	"strings"
	"testing"

	"meshd/mesh"
	"meshd/overlay/plan"
	"meshd/tun"
)

func TestOverlaps(t *testing.T) {
	v := view(mesh.Ready, node(1, "alpha", 17, mesh.Held), node(2, "beta", 80, mesh.Held))
	for _, c := range []struct {
		use      string
		discards bool
		collides bool
	}{
		{use: "192.168.1.0/24"},
		{use: "10.85.0.0/16"},
		{use: "10.87.0.0/16"},
		{use: "10.86.80.0/24", collides: true}, // it would take a part of the mesh
		{use: "10.86.80.7/32", collides: true}, // a gateway, a seed, an address
		{use: "10.86.0.0/16", collides: true},
		{use: "10.0.0.0/8", collides: true}, // the mesh would take a part of it
		{use: "10.64.0.0/10", collides: true},

		{use: "0.0.0.0/0"},
		{use: "0.0.0.0/1"}, // a VPN's, with 128.0.0.0/1
		{use: "8.0.0.0/5"}, // a VPN's that spares some addresses
		{use: "::/0"},
		{use: "8000::/1"},
		{use: "2000::/3"},
		{use: "fc00::/7"},
		{use: "fd00::/8"},

		{use: "10.86.17.0/24"},
		{use: "10.86.17.128/25"}, // a bridge in our own lease
		{use: "10.86.16.0/23", collides: true},

		{use: "10.0.0.0/8", discards: true}, // no private address leaves this router
		{use: "10.86.0.0/16", discards: true, collides: true},
		{use: "10.86.80.0/24", discards: true, collides: true},

		{use: "fd00:86::/40", collides: true},
		{use: "fd00:86::1/128", collides: true},
		{use: "fd00:87::/48"},
		{use: "fd00:86::/40", discards: true},
		{use: mesh.ControlRange(meshID).String(), collides: true},
		{use: v.Nodes[0].Control.String() + "/128"}, // our own
		{use: v.Nodes[1].Control.String() + "/128", collides: true},
	} {
		use := tun.Use{Prefix: netip.MustParsePrefix(c.use), What: "it", Discards: c.discards}
		if got := plan.Overlaps(v.Ranges(), plan.Own(v.Nodes[0].Control, v.Nodes[0].Leases), []tun.Use{use}); (len(got) > 0) != c.collides {
			t.Errorf("%s, discards %v: %v, want a collision: %v", c.use, c.discards, got, c.collides)
		}
	}
}

// Ten thousand routes in one range are one thing to tell.
func TestOverlapsAreFew(t *testing.T) {
	r := netip.MustParsePrefix("10.86.0.0/16")
	uses := []tun.Use{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), What: "the default route"},
		{Prefix: netip.MustParsePrefix("10.86.1.0/24"), What: "the route to 10.86.1.0/24 on eth0"},
		{Prefix: netip.MustParsePrefix("10.86.2.0/24"), What: "the route to 10.86.2.0/24 on eth0"},
		{Prefix: netip.MustParsePrefix("10.86.3.0/24"), What: "the route to 10.86.3.0/24 on eth0"},
	}
	got := plan.Overlaps([]netip.Prefix{r}, nil, uses)
	if len(got) != 1 || got[0].More != 2 {
		t.Fatalf("overlaps %v, want one with two more", got)
	}
	for _, part := range []string{"10.86.0.0/16", "10.86.1.0/24 on eth0 and 2 more", "another"} {
		if !strings.Contains(got[0].String(), part) {
			t.Errorf("it says %q, want %q in it", got[0], part)
		}
	}
}

func TestNamed(t *testing.T) {
	var got []string
	for _, u := range plan.Named("seed", "10.86.0.5:51881", "[fd00:86::5]:51881", "10.86.0.6", "seed.example.org:51881", "junk") {
		got = append(got, u.Prefix.String()+" "+u.What)
	}
	want := "10.86.0.5/32 seed 10.86.0.5:51881, fd00:86::5/128 seed [fd00:86::5]:51881, 10.86.0.6/32 seed 10.86.0.6"
	if strings.Join(got, ", ") != want {
		t.Errorf("%q, want %q", strings.Join(got, ", "), want)
	}
}

func TestStranded(t *testing.T) {
	at := func(n mesh.Node, endpoints ...string) mesh.Node {
		n.Endpoints = nil
		for _, e := range endpoints {
			n.Endpoints = append(n.Endpoints, netip.MustParseAddrPort(e))
		}
		return n
	}
	found := plan.Stranded(view(mesh.Ready,
		at(node(1, "alpha", 17, mesh.Held), "10.86.17.1:51880"), // ourselves
		at(node(2, "beta", 80, mesh.Held), "10.86.3.4:51880", "203.0.113.9:51880"),
		at(node(3, "gamma", 81, mesh.Held), "10.86.3.4:51880", "[fd00:86::7]:51880"),
		node(4, "delta", 82, mesh.Held)))
	if len(found) != 1 || found[0].Level != "info" || !strings.Contains(found[0].Message, "gamma") || !strings.Contains(found[0].Message, "10.86.3.4:51880") {
		t.Errorf("findings %v, want one about gamma", found)
	}
}
