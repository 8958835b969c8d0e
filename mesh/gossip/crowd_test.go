package gossip

import (
	"net"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh"
)

func TestCrowd(t *testing.T) {
	id := func(n int) mesh.NodeID { return mesh.NodeID{1, byte(n >> 8), byte(n)} }
	now := time.Unix(1000, 0)
	c := newCrowd()
	enter := func(from, to int) (n int) {
		for i := from; i < to; i++ {
			if c.room(id(i), now) {
				c.came(id(i))
				n++
			}
		}
		return n
	}
	if n := enter(0, 1000); n != maxStrangers {
		t.Errorf("%d strangers are let in", n)
	}
	members := map[mesh.NodeID]bool{}
	for i := 500; i < 1000; i++ {
		members[id(i)] = true
	}
	c.admit(members)
	if n := enter(500, 1000); n != 500 {
		t.Errorf("%d of 500 members are let in beside strangers", n)
	}
	for n := 1; n <= 10; n++ {
		if ok := c.room(id(500), now); ok != (n < maxInstances) {
			t.Errorf("%d names more of one member: let in %t", n, ok)
		} else if ok {
			c.came(id(500))
		}
	}

	// Strangers that go make room, but only so often.
	for i := range maxStrangers {
		c.went(id(i))
	}
	if n := enter(0, 500); n != 0 {
		t.Errorf("%d are let in at once", n)
	}
	now = now.Add(2 * time.Second)
	if n := enter(0, 500); n != 32 {
		t.Errorf("after two seconds %d are let in", n)
	}
	now = now.Add(time.Hour)
	if n := enter(100, 500); n != maxStrangers-32 {
		t.Errorf("after an hour %d are let in", n)
	}

	// Who is admitted takes no stranger's place any more.
	for i := range 500 {
		members[id(i)] = true
	}
	c.admit(members)
	now = now.Add(time.Hour)
	if n := enter(2000, 3000); n != maxStrangers {
		t.Errorf("%d strangers are let in when those before are members", n)
	}
	for i := range 3000 {
		for c.instances[id(i)] > 0 {
			c.went(id(i))
		}
	}
	if c.strangers != 0 || len(c.instances) != 0 {
		t.Errorf("%d strangers and %d nodes are left", c.strangers, len(c.instances))
	}
}

// A name at an address where nobody can be is not taken up.
func TestNobodyIsThere(t *testing.T) {
	i := &instance{crowd: newCrowd()}
	name := newName(mesh.NodeID{1})
	for what, n := range map[string]memberlist.Node{
		"no name":        {Name: "alpha", Addr: net.IPv4(192, 0, 2, 1), Port: 1},
		"escapes":        {Name: "\x1b[31m" + name, Addr: net.IPv4(192, 0, 2, 1), Port: 1},
		"no address":     {Name: name, Port: 1},
		"3 bytes":        {Name: name, Addr: net.IP{1, 2, 3}, Port: 1},
		"no port":        {Name: name, Addr: net.IPv4(192, 0, 2, 1)},
		"multicast":      {Name: name, Addr: net.IPv4(224, 0, 0, 1), Port: 1},
		"nowhere at all": {Name: name, Addr: net.IPv6zero, Port: 1},
		"metadata":       {Name: name, Addr: net.IPv4(192, 0, 2, 1), Port: 1, Meta: []byte{1}},
	} {
		n.PMin, n.PMax, n.PCur = 1, 5, 2
		if i.NotifyAlive(&n) == nil {
			t.Errorf("%s passes", what)
		}
	}
	if err := i.NotifyAlive(&memberlist.Node{Name: name, Addr: net.IPv4(192, 0, 2, 1), Port: 1, PMin: 1, PMax: 5, PCur: 2}); err != nil {
		t.Error(err)
	}
}
