//go:build linux

package nft_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
)

const answerWithin = 5 * time.Second

// As Docker leaves it: nothing passes this host but what somebody accepted.
func TestForwardUnderDrop(t *testing.T) {
	l := newLab(t)
	policy := nftables.ChainPolicyDrop
	var chains []*nftables.Chain
	l.a.in(func() error {
		c := new(nftables.Conn)
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			chains = append(chains, c.AddChain(&nftables.Chain{
				Name: "FORWARD", Table: c.AddTable(&nftables.Table{Name: "filter", Family: family}),
				Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
			}))
		}
		return c.Flush()
	})
	var forbidden []trip
	for _, at := range []func(string, int, int) netip.Addr{v4, v6} {
		forbidden = append(forbidden,
			trip{"across", l.webA, at("web", 17, 5), l.webB, at("web", 80, 5), l.none},
			trip{"back", l.webB, at("web", 80, 5), l.webA, at("web", 17, 5), l.none})
	}
	run(t, forbidden)

	l.a.apply(l.a.rules())
	all := append(l.within(),
		trip{"to the outside", l.webA, v4("web", 17, 5), l.outside, l.out, netip.MustParseAddr("192.0.2.1")},
		trip{"between networks", l.webA, v4("web", 17, 5), l.dbA, v4("db", 17, 5), l.none},
		trip{"from outside", l.outside, l.out, l.webA, v4("web", 17, 5), l.none})
	run(t, all)
	echo(t, l.webA, v4("web", 17, 5), l.outside, l.out)

	// A reload of the firewall.
	l.a.in(func() error {
		c := new(nftables.Conn)
		for _, ch := range chains {
			c.FlushChain(ch)
		}
		return c.Flush()
	})
	run(t, forbidden)
	l.a.apply(l.a.rules())
	run(t, all)
}

// A daemon that crashed leaves its rules, and whoever comes next finds them.
func TestCrashAndCleanup(t *testing.T) {
	l := newLab(t)
	crossing := trip{"between networks", l.webA, v4("web", 17, 5), l.dbA, v4("db", 17, 5), l.none}
	l.a.apply(l.a.rules())
	run(t, []trip{crossing})

	next := newFirewall(l.a)
	if err := next.Apply(t.Context(), l.a.rules()); err != nil {
		t.Fatal(err)
	}
	run(t, []trip{crossing})
	removed, err := newFirewall(l.a).Remove(t.Context())
	if err != nil || len(removed) == 0 {
		t.Fatalf("Remove = %q, %v", removed, err)
	}
	crossing.want = crossing.from
	run(t, []trip{crossing})
}
