package exchange

import (
	"cmp"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
)

const (
	// every is the pause between two exchanges of a node with nothing new, on
	// average: everybody hears of what it missed within two such pauses, or two of calm.
	every = 5 * time.Second
	// calm is the pause after stillFor without anything new, while everybody who was
	// asked has answered last: else exchanges are 4 kbit/s of each node of a mesh that is left alone,
	// and a quarter of what one of 50 sends.
	calm     = 10 * time.Second
	stillFor = time.Minute
	// haste is the pause while there is news to pass on, or nobody was met yet.
	haste = 300 * time.Millisecond
	// eager is how long a node that meets nobody tries often.
	eager = 30 * time.Second
	// firstAway and lastAway bound how long a member that did not answer in time is
	// left alone. It is short: after a partition of any length all is to be well soon,
	// and a member that is off costs little.
	firstAway, lastAway = 3 * time.Second, 5 * time.Second
	// lonely is after how many failures in a row a success means that the node was
	// cut off: then nobody is held for away any more.
	lonely = 3
)

// schedule decides whom to ask and when. Its owner guards it.
type schedule struct {
	peers map[mesh.NodeID]*peer
	at    time.Time // of the next exchange
	began time.Time // of being without company; zero: it has met somebody
	lost  int       // failures in a row
	news  int       // exchanges that are to follow in haste
	stir  time.Time // when there was news, or a new member
}

// peer is another member, as seen from here.
type peer struct {
	id      mesh.NodeID
	addr    netip.Addr
	asked   time.Time // last
	met     bool      // the last exchange went well
	failed  bool      // the last exchange did not; neither: there was none
	awayTo  time.Time // not to be asked before
	away    time.Duration
	asking  chan struct{} // closed when the exchange that we began ends; nil: there is none
	serving bool          // one that it began is under way
	granted Allowance
}

// set says who the others are.
func (s *schedule) set(now time.Time, others map[mesh.NodeID]netip.Addr) {
	if s.peers == nil {
		s.peers, s.at, s.began = map[mesh.NodeID]*peer{}, now, now
	}
	for id, p := range s.peers {
		if others[id] != p.addr {
			delete(s.peers, id)
		}
	}
	for id, addr := range others {
		if s.peers[id] == nil {
			s.stir = now
			s.peers[id] = &peer{id: id, addr: addr, granted: Allowance{Most: grantBurst, Every: grantEvery}}
		}
	}
}

// pick gives the member to ask now: one of those that were not asked for longest.
func (s *schedule) pick(now time.Time) *peer {
	var free []*peer
	for _, p := range s.peers {
		if p.asking == nil && !now.Before(p.awayTo) {
			free = append(free, p)
		}
	}
	if len(free) == 0 {
		return nil
	}
	slices.SortFunc(free, func(a, b *peer) int { return cmp.Or(a.asked.Compare(b.asked), a.id.Compare(b.id)) })
	return free[rand.IntN((len(free)+1)/2)]
}

// asked notes that an exchange begins, and when the next one is due.
func (s *schedule) asked(now time.Time, p *peer) {
	if p != nil {
		p.asked = now
	}
	switch {
	case s.news > 0:
		s.news--
		s.at = now.Add(around(haste))
	case !s.began.IsZero() && now.Sub(s.began) < eager:
		s.at = now.Add(around(haste))
	case now.Sub(s.stir) >= stillFor && s.whole():
		s.at = now.Add(around(calm))
	default:
		s.at = now.Add(around(every))
	}
	if p == nil {
		for _, o := range s.peers { // nobody was free: as soon as somebody is
			if o.awayTo.After(now) && o.awayTo.Before(s.at) {
				s.at = o.awayTo
			}
		}
	}
}

// whole tells whether nobody is missed. One that answers is no sign that all do: on
// one side of a partition, who hears of the others late hears late of what they know.
func (s *schedule) whole() bool {
	for _, p := range s.peers {
		if p.failed {
			return false
		}
	}
	return true
}

// hurry has the next exchange begin now, and some more follow soon: as many as it
// takes, on average, for all others to hear of it.
func (s *schedule) hurry(now time.Time) {
	s.news = bits.Len(uint(len(s.peers))) + 1
	s.at, s.stir = now, now
}

// met notes an exchange that went well, whoever began it.
func (s *schedule) met(now time.Time, p *peer, news bool) {
	if s.lost >= lonely {
		for _, o := range s.peers {
			o.awayTo, o.away = time.Time{}, 0
		}
		news = true
	}
	p.met, p.failed, p.awayTo, p.away = true, false, time.Time{}, 0
	s.lost, s.began = 0, time.Time{}
	if news {
		at := s.at
		s.hurry(now)
		s.at = now.Add(around(haste))
		if at.Before(s.at) {
			s.at = at
		}
	}
}

// failed notes one that did not. It is late if nothing was heard; an error at once
// may well be ours, or of a daemon that starts.
func (s *schedule) failed(now time.Time, p *peer, late bool) {
	p.met, p.failed = false, true
	s.lost++
	if s.lost == lonely && s.began.IsZero() {
		s.began = now
	}
	if late {
		p.away = min(max(2*p.away, firstAway), lastAway)
		p.awayTo = now.Add(p.away)
	}
}

// around gives about d, so that nodes do not go in step.
func around(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2) }

const (
	// grantBurst is how many exchanges a member may begin at once, and grantEvery how
	// often one more.
	grantBurst = 8
	grantEvery = time.Second
)
