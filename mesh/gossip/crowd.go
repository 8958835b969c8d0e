package gossip

import (
	"errors"
	"time"

	"meshd/mesh"
	"meshd/mesh/exchange"
)

const (
	// maxStrangers is how many instances of nodes that are not admitted may seem
	// live: those which join just now. A mesh of 200 may boot at once. Each takes its share of
	// what is sent.
	maxStrangers = 256
	// maxInstances is how many of one member may: the one that runs, and those
	// before it that are not known to be dead yet.
	maxInstances = 4
	// namesBurst is how many members may come up at once, as after a partition;
	// strangers may be maxStrangers.
	namesBurst = 2048
	// namesEvery is how often one more may. memberlist remembers a name for half
	// a minute after its end, in half a kilobyte.
	namesEvery = time.Second / 16
)

var errCrowd = errors.New("too many names")

// crowd decides which names memberlist takes up. Whoever has the key can make up
// any number of them. Its owner guards it.
type crowd struct {
	admitted  map[mesh.NodeID]bool // nil: not known yet, so all are strangers
	instances map[mesh.NodeID]int  // live ones
	strangers int                  // of these, of nodes that are not admitted

	members, others exchange.Allowance
}

func newCrowd() *crowd {
	return &crowd{instances: map[mesh.NodeID]int{}, members: exchange.Allowance{Most: namesBurst, Every: namesEvery}, others: exchange.Allowance{Most: maxStrangers, Every: namesEvery}}
}

// admit says who is a member.
func (c *crowd) admit(members map[mesh.NodeID]bool) {
	c.admitted, c.strangers = members, 0
	for id, n := range c.instances {
		if !members[id] {
			c.strangers += n
		}
	}
}

// room tells whether another name of a node may come up.
func (c *crowd) room(id mesh.NodeID, now time.Time) bool {
	switch {
	case c.instances[id] >= maxInstances:
		return false
	case c.admitted[id]:
		return c.members.Take(now)
	}
	return c.strangers < maxStrangers && c.others.Take(now)
}

// came notes that a name of a node is live.
func (c *crowd) came(id mesh.NodeID) {
	c.instances[id]++
	if !c.admitted[id] {
		c.strangers++
	}
}

// went notes that a name of a node is not any longer.
func (c *crowd) went(id mesh.NodeID) {
	if c.instances[id]--; c.instances[id] == 0 {
		delete(c.instances, id)
	}
	if !c.admitted[id] {
		c.strangers--
	}
}
