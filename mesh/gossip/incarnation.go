package gossip

import (
	"sync/atomic"
	"time"
)

// memberlist numbers what is said of a name: a later word has a higher incarnation. Who
// is said to be dead denies it with the accusation's plus one. So whoever has the key
// could say the highest of all, which no denial exceeds: after it comes 0.
//
//	1 ──────────────────────── wornOut ────────────────────────── 2^32-1
//	  each is denied with the          and the name is given up for
//	  next one, which all believe      a new one, which begins at 1
//
// It does so too when its name is said to be at another address, which it cannot deny
// at all. Others may believe whatever they are told: it is of a name that nobody needs
// any more.
const (
	// wornOut leaves room for denials until the new name is there, and no name gets
	// there by denials: that would take a hundred a second for eight months.
	wornOut = 1 << 31
	// renewEvery bounds how often there is a new name for that reason. It costs an
	// exchange of tables, and others have room for maxInstances of one node: an old
	// name is live to them until they have probed it, 10 to 20 s.
	renewEvery = 10 * time.Second
)

// standing is what others say of our name. It is safe for concurrent use.
type standing struct {
	// fixed at construction
	name   string
	notify func() // that it is worn out

	worn atomic.Bool
}

// hear notes a word about our name.
func (s *standing) hear(incarnation uint64) {
	if incarnation >= wornOut {
		s.wear()
	}
}

// wear says that the name is worn out.
func (s *standing) wear() {
	if !s.worn.Swap(true) {
		s.notify()
	}
}

// is tells whether a name is ours.
func (s *standing) is(name []byte) bool { return s != nil && string(name) == s.name }

// checkWord takes off one map that says how a name is, and notes what it says of ours.
func checkWord(raw []byte, self *standing) (rest []byte, ok bool) {
	var ours bool
	var highest uint64
	rest, ok = eachField(raw, func(name []byte, value scalar) bool {
		switch string(name) {
		case "Node", "Name":
			ours = ours || self.is(value.text)
		case "Incarnation":
			highest = max(highest, value.number)
			return value.kind == number
		}
		return true
	})
	if ok && ours {
		self.hear(highest)
	}
	return rest, ok
}
