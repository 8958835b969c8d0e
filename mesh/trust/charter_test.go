package trust

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"meshd/mesh"
)

// A reserved subnet is one of a network, and goes with it.
func TestReserved(t *testing.T) {
	c := testCharter()
	c.Reserved = []netip.Prefix{prefix("10.86.9.0/24")}
	read := must(ParseCharter(must(c.Sign(key("ca")))(t), mesh.ID{}))(t)
	if !read.IsReserved([]netip.Prefix{prefix("10.86.9.0/24"), prefix("fd86:1:2:9::/64")}) || read.IsReserved([]netip.Prefix{prefix("10.86.8.0/24")}) {
		t.Error("not what was reserved:", read.Reserved)
	}
	if next := read.Next(start, read.Networks); !slices.Equal(next.Reserved, read.Reserved) {
		t.Error("lost with the next charter:", next.Reserved)
	}
	if next := read.Next(start, []mesh.Network{{Name: "b", IPv4: prefix("10.9.0.0/16"), IPv4Len: 24}}); len(next.Reserved) > 0 {
		t.Error("outlived its network:", next.Reserved)
	}
	for name, reserved := range map[string][]netip.Prefix{
		"no subnet":      {prefix("10.86.9.0/25")},
		"outside":        {prefix("10.87.9.0/24")},
		"twice the same": {prefix("10.86.9.0/24"), prefix("10.86.9.0/24")},
	} {
		c.Reserved = reserved
		if _, err := c.Sign(key("ca")); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
