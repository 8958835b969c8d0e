package probe

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
)

// Timers of the schedule.
const (
	// every is the time between probes of a peer that answers, by either side:
	// often enough that who is dead is down within 25 s, rare enough to cost a
	// mesh of 50 nodes 6 packets a second per node.
	every = 16 * time.Second
	// perPeer makes it longer in a mesh of more than 80 nodes, so that no node
	// sends more than 5 probes a second, or 3 where the peers ask too.
	perPeer = time.Second / 5
	// ownEvery is how many times that long a node measures nothing itself while
	// the peer keeps asking.
	ownEvery = 4
	// slack is how much too early a probe may be: those of a second leave as one,
	// since what waking up costs is more than what a probe does.
	slack = time.Second
	// newEvery is the time between first probes of new peers, as a node has them
	// when it starts. Each makes a handshake, and an engine that gets more than 128
	// at a time asks for proofs of address, which cost each of them 5 s.
	newEvery = 25 * time.Millisecond
	// patience is how long an answer may take.
	patience = time.Second
	// retry is the time between probes of a peer that does not answer.
	retry = 5 * time.Second
	// perLost makes both times longer where more than 20 do not answer: then it is this
	// node's network, or a machine that has too much to do, and more probes are no help.
	perLost = time.Second / 20
	// downAfter is the number of probes lost in a row, one every second or so, that
	// make a peer down. A handshake that gets lost is repeated after up to 5.4 s, so
	// what spans less than 6 s proves nothing.
	downAfter = 7
	// window is the number of probes over which loss is told.
	window = 32
)

// Result is what probes have shown of one peer.
type Result struct {
	RTT      time.Duration // of the last answer that did not wait for a handshake; 0: none
	Loss     float64       // 0 to 1, over the last probes; meaningless before the first outcome
	Probes   int           // outcomes so far
	Answered time.Time     // last answer; zero: never
	Down     bool          // several probes in a row were lost
	MTU      int           // of the path, inside of the tunnel, where it is less than that of the device; 0: it is not
}

// peer is the schedule of one peer.
type peer struct {
	addr    netip.Addr
	due     time.Time
	id      uint64    // of the probe on its way; 0: none
	sent    time.Time // when it left
	history uint32    // the last outcomes, bit 0 the newest, 1: answered
	count   int       // outcomes in history, at most window
	lost    int       // in a row
	warm    bool      // the last probe was answered, so a session stands
	told    bool      // result.Down, as changes has told it
	result  Result
	at      []netip.AddrPort // where it is, as it says
	path    path
}

// healthy tells whether the peer has been measured, and answered last.
func (p *peer) healthy() bool { return p.id == 0 && p.warm && p.result.RTT != 0 }

// schedule decides whom to probe when. It takes the time and gives back work.
type schedule struct {
	peers map[mesh.NodeID]*peer
	newAt time.Time        // when the next new peer is due
	lost  int              // how many did not answer last, at the last step
	mtu   int              // of the TUN device; 0: not known, so no path is measured
	at    []netip.AddrPort // where we are
	rand  *rand.Rand
}

func newSchedule(seed uint64) *schedule {
	return &schedule{peers: map[mesh.NodeID]*peer{}, rand: rand.New(rand.NewPCG(seed, 0))}
}

// target is a peer to be probed.
type target struct {
	ID   mesh.NodeID
	Addr netip.Addr
	At   []netip.AddrPort // outside of the mesh
}

// set replaces the peers; what is known of those that stay is kept. New ones are
// due at once, one after the other, which also makes the first handshake; so are
// those to which the path may be another. at is where we are ourselves.
func (s *schedule) set(now time.Time, targets []target, at ...netip.AddrPort) {
	old := s.peers
	moved := !slices.Equal(s.at, at)
	s.at = at
	s.peers = make(map[mesh.NodeID]*peer, len(targets))
	if s.newAt.Before(now) {
		s.newAt = now
	}
	for _, i := range s.rand.Perm(len(targets)) { // else all nodes begin with the same peer
		t := targets[i]
		if p := old[t.ID]; p != nil && p.addr == t.Addr {
			s.peers[t.ID] = p
			if !moved && slices.Equal(p.at, t.At) {
				continue
			}
			p.at = t.At
			p.path.anew()
			if !p.healthy() || s.newAt.After(p.due) {
				continue // tried again soon anyway
			}
			p.due = s.newAt
		} else {
			s.peers[t.ID] = &peer{addr: t.Addr, at: t.At, due: s.newAt}
		}
		s.newAt = s.newAt.Add(newEvery)
	}
}

// setMTU says what the TUN device takes. With another one, paths are measured anew.
func (s *schedule) setMTU(mtu int) {
	if mtu == s.mtu {
		return
	}
	s.mtu = mtu
	for _, p := range s.peers {
		p.path.anew()
	}
}

// outgoing is one probe to send.
type outgoing struct {
	Addr netip.Addr
	ID   uint64
	Size int // in bytes of UDP
}

// step expires what was not answered, and lists the probes to send now.
func (s *schedule) step(now time.Time) []outgoing {
	var out []outgoing
	next, ok := s.next()
	due := ok && !now.Before(next) // else somebody just looks in
	s.lost = 0
	for _, p := range s.peers {
		if p.lost > 0 {
			s.lost++
		}
	}
	for _, p := range s.peers {
		if p.id != 0 && now.Sub(p.sent) >= patience {
			p.outcome(false)
			p.id = 0
			p.due = p.sent.Add(s.after(p))
		}
		early := time.Duration(0)
		if p.healthy() && due {
			early = slack
		}
		if p.id == 0 && !now.Before(p.due.Add(-early)) {
			p.id, p.sent = s.rand.Uint64()|1, now
			out = append(out, outgoing{p.addr, p.id, size})
		}
		out = append(out, p.path.step(now, p.addr, p.result.RTT, s.jitter())...)
	}
	return out
}

// question takes in that a peer asks us. It lives, so it need not be asked for a
// while; if we have lost it, it may be back. The result tells whether step is due
// earlier than before.
func (s *schedule) question(now time.Time, from netip.Addr) (sooner bool) {
	for _, p := range s.peers {
		switch {
		case p.addr != from:
			continue
		case p.lost > 0 && p.id == 0:
			p.due = now
			return true
		case p.healthy() && now.Sub(p.sent) < ownEvery*s.every():
			p.due = now.Add(s.after(p))
		}
		break
	}
	return false
}

// every is the time between two probes of a peer that answers.
func (s *schedule) every() time.Duration { return max(every, time.Duration(len(s.peers))*perPeer) }

// next is when step is due.
func (s *schedule) next() (time.Time, bool) {
	var first time.Time
	for _, p := range s.peers {
		t := p.due
		if p.id != 0 {
			t = p.sent.Add(patience)
		}
		if p.path.active && p.path.at.Before(t) {
			t = p.path.at
		}
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	return first, !first.IsZero()
}

// answer takes an answer in. One that is late, or that nobody asked for, counts
// for nothing.
func (s *schedule) answer(now time.Time, from netip.Addr, id uint64, n int) {
	for _, p := range s.peers {
		if p.addr != from {
			continue
		}
		if p.id == 0 || p.id != id {
			p.path.answer(now, id, n, s.jitter())
			continue
		}
		if p.warm {
			p.result.RTT = max(now.Sub(p.sent), 1) // 0: not measured
		}
		if p.result.Answered.IsZero() || p.result.Down {
			p.history, p.count = 0, 0 // there was no tunnel to lose anything: count afresh
		}
		switch { // it may come by another way
		case p.result.Down:
			p.path.anew()
		case p.lost > 0:
			p.path.sooner()
		}
		p.outcome(true)
		p.result.Answered, p.id = now, 0
		p.due = now.Add(s.after(p))
		if p.result.RTT == 0 {
			p.due = now // the first answer waited for the handshake: measure again
		} else {
			p.path.begin(now, s.rand.Uint64(), s.mtu)
		}
		return
	}
}

// refused takes in that a probe could not be sent.
func (s *schedule) refused(now time.Time, o outgoing) {
	for _, p := range s.peers {
		if p.addr == o.Addr {
			p.path.refused(now, o.ID)
		}
	}
}

func (s *schedule) jitter() time.Duration {
	return time.Duration(s.rand.Int64N(int64(measureEvery / 5)))
}

// after is the time to the next probe, with jitter so that nodes which start
// together do not keep step.
func (s *schedule) after(p *peer) time.Duration {
	base := s.every()
	switch {
	case p.lost > 0 && p.lost < downAfter:
		base = max(patience, time.Duration(s.lost)*perLost)
	case p.lost >= downAfter:
		base = max(retry, time.Duration(s.lost)*perLost)
	}
	return base*19/20 + time.Duration(s.rand.Int64N(int64(base/10)))
}

// outcome notes one probe's fate.
func (p *peer) outcome(answered bool) {
	p.history <<= 1
	p.count = min(p.count+1, window)
	p.result.Probes++
	p.warm = answered
	if answered {
		p.history |= 1
		p.lost = 0
	} else {
		p.lost++
	}
	p.result.Down = p.lost >= downAfter
	hits := 0
	for i := range p.count {
		hits += int(p.history >> i & 1)
	}
	p.result.Loss = float64(p.count-hits) / float64(p.count)
}

// changes lists the peers that went down, or came back, since the last call.
func (s *schedule) changes() map[mesh.NodeID]bool {
	var out map[mesh.NodeID]bool
	for id, p := range s.peers {
		if p.result.Down != p.told {
			if out == nil {
				out = map[mesh.NodeID]bool{}
			}
			p.told = p.result.Down
			out[id] = p.told
		}
	}
	return out
}

// narrowed lists the peers to which the path carries another size than at the last
// call, and how much.
func (s *schedule) narrowed() map[mesh.NodeID]int {
	var out map[mesh.NodeID]int
	for id, p := range s.peers {
		if p.path.mtu != p.path.told {
			if out == nil {
				out = map[mesh.NodeID]int{}
			}
			p.path.told = p.path.mtu
			out[id] = p.path.mtu
		}
	}
	return out
}

// results lists what is known.
func (s *schedule) results() map[mesh.NodeID]Result {
	out := make(map[mesh.NodeID]Result, len(s.peers))
	for id, p := range s.peers {
		if p.result.Probes > 0 {
			r := p.result
			r.MTU = p.path.mtu
			out[id] = r
		}
	}
	return out
}
