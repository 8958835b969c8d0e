//go:build linux

package nft

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"meshd/tun"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func pfxs(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// wants are what hosts may want, by the name of their golden file.
func wants() map[string]tun.Rules {
	control := tun.Segment{Name: "control", Ranges: pfxs("fdcc::/48"), Own: pfxs("fdcc::17/128")}
	web := tun.Segment{
		Name: "default", Ranges: pfxs("10.86.0.0/16", "fd86::/48"),
		Own: pfxs("10.86.17.0/24", "fd86:0:0:11::/64"), Links: []string{"mbr-default", "mv-aaaaaaaaaa"},
	}
	db := tun.Segment{Name: "db", Ranges: pfxs("10.87.0.0/16"), Own: pfxs("10.87.3.0/26"), Links: []string{"mbr-db"}}
	without := func(s tun.Segment) tun.Segment { s.Links = nil; return s }
	delegated := without(web)
	delegated.Delegated = true
	ports := []tun.Port{
		{Name: "mv-aaaaaaaaaa", MAC: "02:00:00:00:00:0a", Addresses: []netip.Addr{netip.MustParseAddr("10.86.17.10"), netip.MustParseAddr("fd86:0:0:11::a")}},
		{Name: "mv-bbbbbbbbbb", MAC: "02:00:00:00:00:0b", Addresses: []netip.Addr{netip.MustParseAddr("10.87.3.11")}},
	}
	return map[string]tun.Rules{
		"no_containers": {Link: "mesh0", Segments: []tun.Segment{control, without(web)}},
		"two_networks":  {Link: "mesh0", Masquerade: true, Segments: []tun.Segment{control, web, db}},
		"with_ports":    {Link: "mesh0", Masquerade: true, Segments: []tun.Segment{control, web, db}, Ports: ports},
		"internal": {Link: "mesh0", Masquerade: true, Segments: []tun.Segment{control, web, db}, Ports: []tun.Port{
			{Kind: tun.PortPTP, Name: "mv-aaaaaaaaaa", MAC: "02:00:00:00:00:0a", Addresses: ports[0].Addresses, Internal: true},
			{Kind: tun.PortBridge, Parent: "mbr-db", Name: "mv-bbbbbbbbbb", MAC: "02:00:00:00:00:0b", Addresses: ports[1].Addresses, Internal: true},
			{Kind: tun.PortBridge, Parent: "mbr-db", Name: "mv-cccccccccc", MAC: "02:00:00:00:00:0c", Addresses: []netip.Addr{netip.MustParseAddr("10.87.3.12")}},
		}},
		"no_masquerade": {Link: "mesh0", Segments: []tun.Segment{control, web, db}},
		"one_of_two":    {Link: "mesh0", Masquerade: true, Segments: []tun.Segment{control, web, without(db)}},
		"delegated":     {Link: "mesh0", Masquerade: true, Segments: []tun.Segment{control, delegated, db}},
		"others":        {Link: "mesh0", Masquerade: true, Segments: []tun.Segment{control, web}, Others: []string{"docker0", "br-0123456789ab"}},
		"others_alone":  {Link: "mesh0", Masquerade: true, Segments: []tun.Segment{control, without(web)}, Others: []string{"docker0"}},
		"no_lease":      {Link: "mesh0", Masquerade: true, Segments: []tun.Segment{control, {Name: "db", Ranges: db.Ranges, Links: db.Links, Former: pfxs("10.87.9.0/26")}}},
	}
}

func TestCompile(t *testing.T) {
	for name, want := range wants() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".nft")
			tables := compile(want)
			got := tables[0].String()
			if tracked := strings.Contains(got, "ct s") || strings.Contains(got, "masquerade"); tracked != (want.HasLinks() || len(want.Others) > 0) {
				t.Errorf("connections are tracked: %t", tracked)
			}
			if len(want.Ports) > 0 {
				got += tables[1].String()
			}
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(golden) {
				t.Errorf("rules are\n%swant\n%s", got, golden)
			}
		})
	}
}
