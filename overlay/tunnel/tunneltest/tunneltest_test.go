package tunneltest

import (
	"net/netip"
	"testing"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

func TestFakePrintsWhatWasApplied(t *testing.T) {
	var f Fake
	if got := f.String(); got != "" {
		t.Errorf("nothing applied, printed %q", got)
	}
	config := tunnel.Config{
		Own: []netip.Prefix{netip.MustParsePrefix("10.86.17.0/24"), netip.MustParsePrefix("fd00:0:0:11::/64")},
		Peers: []tunnel.Peer{
			{ID: mesh.NodeID{}, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.86.18.0/24")}},
			{ID: mesh.NodeID{0xff}},
		},
	}
	if err := f.Apply(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	const want = `own 10.86.17.0/24 fd00:0:0:11::/64
peer aaaaaaaa via 192.0.2.1:51820 allowed 10.86.18.0/24
peer 74aaaaaa via none allowed none
`
	if got := f.String(); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
}
