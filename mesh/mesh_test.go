package mesh_test

import (
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
)

func network(v4 string, len4 int, v6 string, len6 int) mesh.Network {
	n := mesh.Network{Name: "default", IPv4Len: len4, IPv6Len: len6}
	if v4 != "" {
		n.IPv4 = netip.MustParsePrefix(v4)
	}
	if v6 != "" {
		n.IPv6 = netip.MustParsePrefix(v6)
	}
	return n
}

func TestSlots(t *testing.T) {
	for _, c := range []struct {
		name   string
		net    mesh.Network
		slots  int
		index  int
		subnet string
	}{
		{"usual, first", network("10.86.0.0/16", 24, "fd12:3456:789a::/48", 64), 256, 0, "10.86.0.0/24 fd12:3456:789a::/64"},
		{"usual", network("10.86.0.0/16", 24, "fd12:3456:789a::/48", 64), 256, 17, "10.86.17.0/24 fd12:3456:789a:11::/64"},
		{"usual, last", network("10.86.0.0/16", 24, "fd12:3456:789a::/48", 64), 256, 255, "10.86.255.0/24 fd12:3456:789a:ff::/64"},
		{"odd lengths", network("10.0.16.0/20", 27, "", 0), 128, 9, "10.0.17.32/27"},
		{"odd lengths, last", network("10.0.16.0/20", 27, "", 0), 128, 127, "10.0.31.224/27"},
		{"across a byte", network("172.16.0.0/12", 21, "", 0), 512, 511, "172.31.248.0/21"},
		{"odd IPv6", network("", 0, "fd00::/45", 63), 1 << 18, 5, "fd00:0:0:a::/63"},
		{"IPv6 alone", network("", 0, "fd00:1:2::/48", 64), 65536, 65535, "fd00:1:2:ffff::/64"},
		{"IPv6 is the smaller", network("10.0.0.0/8", 24, "fd00::/60", 64), 16, 15, "10.0.15.0/24 fd00:0:0:f::/64"},
		{"two slots", network("192.168.7.0/24", 25, "", 0), 2, 1, "192.168.7.128/25"},
		{"/30", network("10.0.0.0/8", 30, "", 0), 1 << 22, 1<<22 - 1, "10.255.255.252/30"},
		{"huge", network("", 0, "fd00::/8", 64), 1 << 24, 1<<24 - 1, "fd00:0:ff:ffff::/64"},
		{"hugest", network("", 0, "2000::/4", 126), 1 << 24, 1, "2000::4/126"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.net.Slots(); got != c.slots {
				t.Fatalf("%d slots, want %d", got, c.slots)
			}
			got := c.net.Slot(c.index)
			if s := strings.Trim(fmt.Sprint(got), "[]"); s != c.subnet {
				t.Errorf("slot %d is %s, want %s", c.index, s, c.subnet)
			}
			for _, p := range got {
				if i, err := c.net.SlotOf(p); i != c.index || err != nil {
					t.Errorf("SlotOf(%s) = %d, %v", p, i, err)
				}
			}
		})
	}
}

// TestSlotsIn compares with a look at each slot.
func TestSlotsIn(t *testing.T) {
	n := network("10.0.16.0/20", 27, "fd00::/57", 64)
	for _, s := range []string{
		"10.0.0.0/8", "10.0.16.0/20", "10.0.17.0/24", "10.0.17.32/27", "10.0.17.32/28", "10.0.31.224/27", "10.1.0.0/16",
		"fd00::/16", "fd00::/57", "fd00:0:0:70::/60", "fd00:0:0:7f::/64", "fd00:0:0:80::/60", "fd01::/64",
	} {
		p := netip.MustParsePrefix(s)
		first, end := n.SlotsIn(p)
		for i := range n.Slots() {
			in := slices.ContainsFunc(n.Slot(i), func(q netip.Prefix) bool { return p.Bits() <= q.Bits() && p.Contains(q.Addr()) })
			if want := first <= i && i < end; in != want {
				t.Errorf("%s: slots %d to %d, and that of %d is in it: %v", p, first, end, i, in)
				break
			}
		}
	}
	if first, end := network("", 0, "fd00::/8", 64).SlotsIn(netip.MustParsePrefix("fd01::/40")); first < end {
		t.Errorf("slots %d to %d are beyond the last", first, end)
	}
}

func TestSlotsAreDisjointAndComplete(t *testing.T) {
	n := network("10.0.16.0/20", 27, "fd00::/57", 64)
	seen := map[netip.Prefix]bool{}
	for i := range n.Slots() {
		ps := n.Slot(i)
		if len(ps) != 2 {
			t.Fatalf("slot %d has %v", i, ps)
		}
		for j, p := range ps {
			if p != p.Masked() || seen[p] || !n.Ranges()[j].Contains(p.Addr()) {
				t.Fatalf("slot %d: %s", i, p)
			}
			seen[p] = true
			if got, err := n.SlotOf(p); got != i || err != nil {
				t.Fatalf("SlotOf(%s) = %d, %v, want %d", p, got, err, i)
			}
		}
	}
}

func TestSlotOfRefuses(t *testing.T) {
	n := network("10.86.0.0/16", 24, "fd12:3456:789a::/48", 64)
	narrow := network("10.86.0.0/24", 28, "fd00::/48", 64)
	for _, c := range []struct {
		name string
		net  mesh.Network
		p    netip.Prefix
	}{
		{"outside", n, netip.MustParsePrefix("10.87.0.0/24")},
		{"shorter", n, netip.MustParsePrefix("10.86.0.0/23")},
		{"longer", n, netip.MustParsePrefix("10.86.0.0/25")},
		{"host bits", n, netip.MustParsePrefix("10.86.1.1/24")},
		{"zero", n, netip.Prefix{}},
		{"IPv6 outside", n, netip.MustParsePrefix("fd12:3456:789b::/64")},
		{"v4-mapped", n, netip.MustParsePrefix("::ffff:10.86.1.0/120")},
		{"the other family's length", n, netip.MustParsePrefix("fd12:3456:789a::/24")},
		{"beyond the smaller range", n, netip.MustParsePrefix("fd12:3456:789a:100::/64")},
		{"far beyond the smaller range", narrow, netip.MustParsePrefix("fd00:0:0:ffff::/64")},
		{"beyond every slot", network("", 0, "2000::/4", 126), netip.MustParsePrefix("2fff:ffff::/126")},
		{"family that the network lacks", network("10.86.0.0/16", 24, "", 0), netip.MustParsePrefix("fd00::/64")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if i, err := c.net.SlotOf(c.p); !errors.Is(err, mesh.ErrNoSlot) {
				t.Errorf("SlotOf(%s) = %d, %v", c.p, i, err)
			}
		})
	}
}

func TestFirstHost(t *testing.T) {
	for in, want := range map[string]string{
		"10.86.17.0/24": "10.86.17.1", "10.86.17.4/30": "10.86.17.5", "10.86.17.9/24": "10.86.17.1",
		"10.0.0.6/31": "10.0.0.6", "10.0.0.7/32": "10.0.0.7",
		"fd00:1::/64": "fd00:1::1", "fd00::4/126": "fd00::5", "fd00::2/127": "fd00::2", "fd00::3/128": "fd00::3",
	} {
		if got := mesh.FirstHost(netip.MustParsePrefix(in)); got.String() != want {
			t.Errorf("FirstHost(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestControlAddr(t *testing.T) {
	a, b := mesh.ID{1}, mesh.ID{2}
	ranges := []netip.Prefix{mesh.ControlRange(a), mesh.ControlRange(b), mesh.DefaultIPv6(a), mesh.DefaultIPv6(b)}
	for i, r := range ranges {
		if r.Bits() != 48 || r != r.Masked() || !netip.MustParsePrefix("fd00::/8").Contains(r.Addr()) {
			t.Errorf("%s is not a unique local /48", r)
		}
		if slices.ContainsFunc(ranges[:i], r.Overlaps) {
			t.Errorf("%s is there twice", r)
		}
	}
	node, other := mesh.ID{9, 9: 7}, mesh.ID{9, 9: 8}
	addr := mesh.ControlAddr(a, node)
	if !ranges[0].Contains(addr) || addr == mesh.ControlAddr(a, other) || addr != mesh.ControlAddr(a, node) {
		t.Errorf("control address %s", addr)
	}
}

func TestID(t *testing.T) {
	var (
		_ encoding.TextMarshaler   = mesh.ID{}
		_ encoding.TextUnmarshaler = &mesh.ID{}
	)
	id := mesh.ID{0xff, 1, 2, 19: 0xaa}
	got, err := mesh.ParseID(id.String())
	if err != nil || got != id {
		t.Errorf("ParseID(%s) = %s, %v", id, got, err)
	}
	if len(id.String()) != 32 || !strings.HasPrefix(id.String(), id.Short()) || id.IsZero() || !(mesh.ID{}).IsZero() {
		t.Errorf("%s, %s", id, id.Short())
	}
	good := id.String()
	for _, s := range []string{"", good[:31], good + "a", strings.ToUpper(good), good[:31] + "1", good[:31] + "=", good + "\n", good[:16] + "\n" + good[16:]} {
		var id mesh.ID
		if err := id.UnmarshalText([]byte(s)); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
	if (mesh.ID{1}).Compare(mesh.ID{2}) >= 0 || (mesh.ID{0, 1}).Compare(mesh.ID{1}) >= 0 || id.Compare(id) != 0 {
		t.Error("order of IDs")
	}
}

func TestVersionCompare(t *testing.T) {
	order := []mesh.Version{{}, {Seq: 1}, {Epoch: 1}, {Epoch: 1, Seq: 5}, {Epoch: 2}, {Epoch: 1 << 63}}
	for i, a := range order {
		for j, b := range order {
			if got, want := a.Compare(b), min(1, max(-1, i-j)); got != want {
				t.Errorf("%v against %v: %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestLeaseStateString(t *testing.T) {
	for s, want := range map[mesh.LeaseState]string{
		0: "state(0)", mesh.Pending: "pending", mesh.Held: "held", mesh.Quarantined: "quarantined",
		mesh.Released: "released", 5: "state(5)", 255: "state(255)",
	} {
		if s.String() != want {
			t.Errorf("%d is %s, want %s", uint8(s), s, want)
		}
	}
}

func TestViewNode(t *testing.T) {
	v := mesh.View{Control: netip.MustParsePrefix("fd00::/48"), Networks: []mesh.Network{network("10.86.0.0/16", 24, "", 0)},
		Nodes: []mesh.Node{{ID: mesh.ID{1}, Name: "a"}, {ID: mesh.ID{3}, Name: "c"}}}
	if n, ok := v.Node(mesh.ID{3}); !ok || n.Name != "c" {
		t.Errorf("got %v, %v", n, ok)
	}
	if n, ok := v.Node(mesh.ID{2}); ok {
		t.Errorf("found %v", n)
	}
	if got := fmt.Sprint(v.Ranges()); got != "[fd00::/48 10.86.0.0/16]" {
		t.Errorf("ranges %s", got)
	}
}

func ExampleNetwork_Slot() {
	n := mesh.Network{
		IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24,
		IPv6: netip.MustParsePrefix("fd12:3456:789a::/48"), IPv6Len: 64,
	}
	fmt.Println(n.Slots(), "slots")
	fmt.Println(n.Slot(17))
	fmt.Println(n.SlotOf(netip.MustParsePrefix("fd12:3456:789a:11::/64")))
	fmt.Println(mesh.FirstHost(n.Slot(17)[0]))
	// Output:
	// 256 slots
	// [10.86.17.0/24 fd12:3456:789a:11::/64]
	// 17 <nil>
	// 10.86.17.1
}

func ExampleControlAddr() {
	// These bytes are part of the protocol: all nodes must compute the same.
	meshID, _ := mesh.ParseID("abcdefghijklmnopqrstuvwxyz234567")
	node, _ := mesh.ParseID("765432zyxwvutsrqponmlkjihgfedcba")
	fmt.Println(mesh.ControlRange(meshID))
	fmt.Println(mesh.ControlAddr(meshID, node))
	fmt.Println(mesh.DefaultIPv6(meshID))
	// Output:
	// fdf1:3768:7b2d::/48
	// fdf1:3768:7b2d:ffbb:cdeb:38bd:ab49:ca30
	// fd21:d691:800c::/48
}

func ExampleID_String() {
	id := mesh.ID{0xde, 0xad, 0xbe, 0xef}
	fmt.Println(id)
	fmt.Println(id.Short())
	// Output:
	// 32w353yaaaaaaaaaaaaaaaaaaaaaaaaa
	// 32w353ya
}

func TestElders(t *testing.T) {
	at := func(id byte, admitted int64, left bool) mesh.Node {
		return mesh.Node{ID: mesh.NodeID{id}, Admitted: time.Unix(admitted, 0), Left: left}
	}
	v := mesh.View{Self: mesh.NodeID{2}, Nodes: []mesh.Node{at(1, 30, false), at(2, 10, false), at(3, 20, false), at(4, 20, false), at(5, 10, true)}}
	want := []mesh.NodeID{{3}, {4}, {1}}
	if got := v.Elders(); !slices.Equal(got, want) {
		t.Errorf("elders %v, want %v", got, want)
	}
}
