package probe

import (
	"math/bits"
	"net/netip"
	"slices"
	"time"
)

// Sizes of packets, in bytes, with which a path is measured besides the MTU of the
// TUN device. A tunnel adds up to 80.
const (
	plainMTU = 1420 // Ethernet, where our own device takes more
	ipv6MTU  = 1280 // the least that all of IPv6 works with inside
	// leastMTU fits into 1280, which all that carries IPv6 has to carry. It is also
	// what shows that the peer answers questions of size at all.
	leastMTU = 1200

	headers = 40 + 8 // of a probe: IPv6, UDP
)

const (
	// rounds in which the largest has to get lost; up to mostRounds where some of all
	// sizes are.
	rounds, mostRounds = 7, 12
	// plenty is in how many of six in a row a smaller one has to be answered, so that it was
	// not chance that took the largest: of wide paths that lose one packet in five
	// each way, one measurement in 2000 is taken for narrow.
	plenty = 5
	// roundSlack and twice the round trip is when the next round goes.
	roundSlack = 60 * time.Millisecond
	// measureEvery is the time between measurements of a path that shows no sign of
	// being another one. Each is one packet of full size and back where that passes;
	// with those of the peers it is 1.5 kbit/s of each node in a mesh of 50.
	measureEvery = 30 * time.Minute
	// measureAgain is that after one which has shown nothing, and the least where
	// probes get lost.
	measureAgain = time.Minute
)

// path is what is known of how long packets get to a peer and back, and its
// measurement:
//
//	due, and a probe was answered ─► round 1: one of full size
//	                                 rounds 2 to 7, or so: all sizes
//	answered at full size         ─► it carries all
//	else, in half a second or so  ─► the largest that was answered, if one was in
//	                                 plenty of rounds
//	none was                      ─► says nothing, and what was known stays
type path struct {
	mtu  int       // inside of the tunnel; 0: all that the device sends, as far as is known
	told int       // mtu, as narrowed has told it
	due  time.Time // when it may be measured; zero: now
	from time.Time // when the last measurement began

	active bool          // it is being measured
	at     time.Time     // when the next round goes, or the last one is judged
	round  int           // rounds that went
	id     uint64        // of the first question; the others count on, round by round
	sizes  []int         // the largest first
	hits   []uint16      // of each size, the rounds that were answered, as bits
	second time.Time     // when the second round went
	took   time.Duration // from then until anything was answered
}

// sizesBelow lists what is measured on a device of that MTU.
func sizesBelow(mtu int) []int {
	sizes := []int{mtu}
	for _, s := range []int{plainMTU, ipv6MTU, leastMTU} {
		if s < mtu {
			sizes = append(sizes, s)
		}
	}
	return sizes
}

// begin starts a measurement, if it is time for one.
func (p *path) begin(now time.Time, id uint64, mtu int) {
	if !p.active && mtu > leastMTU && !now.Before(p.due) {
		sizes := sizesBelow(mtu)
		*p = path{mtu: p.mtu, told: p.told, from: now, active: true, at: now, id: id, sizes: sizes, hits: make([]uint16, len(sizes))}
	}
}

// anew has it measured at the next chance, from the start: it may be another path.
func (p *path) anew() { p.end(p.mtu, time.Time{}) }

// sooner has it measured earlier: something got lost, which may be by chance.
func (p *path) sooner() {
	if at := p.from.Add(measureAgain); at.Before(p.due) {
		p.due = at
	}
}

// step lists the questions to ask now. jitter spreads the next measurements.
func (p *path) step(now time.Time, to netip.Addr, rtt, jitter time.Duration) []outgoing {
	if !p.active || now.Before(p.at) {
		return nil
	}
	last := p.last()
	if p.round >= last {
		if best := p.best(); best == 0 {
			p.end(p.mtu, now.Add(measureAgain))
		} else {
			p.end(best, now.Add(measureEvery-jitter))
		}
		return nil
	}
	p.round++
	p.at = now.Add(min(roundSlack+2*rtt, patience))
	sizes := p.sizes
	switch {
	case p.round == 1:
		sizes = sizes[:1]
	case p.round == 2:
		p.second = now
	case p.round >= last && p.took == 0:
		p.at = now.Add(patience)
	case p.round >= last: // what was asked earlier, in a greater packet, has had its time
		p.at = now.Add(min(roundSlack+2*p.took, patience))
	}
	// The smallest first: of packets that get smaller an engine may make one for the
	// kernel, which a virtual router drops whole.
	var out []outgoing
	for i, size := range slices.Backward(sizes) {
		out = append(out, outgoing{to, p.id + uint64((p.round-1)*len(p.sizes)+i), size - headers})
	}
	return out
}

// last is how many rounds there are.
func (p *path) last() int {
	if p.best() == 0 && slices.Max(p.hits) != 0 {
		return mostRounds
	}
	return rounds
}

// question finds one of the questions by its id.
func (p *path) question(id uint64) (round, i int, ok bool) {
	n := id - p.id
	if !p.active || n >= uint64(p.round*len(p.sizes)) {
		return 0, 0, false
	}
	return int(n) / len(p.sizes), int(n) % len(p.sizes), true
}

// best is what the largest that was answered says of the path; 0: nothing.
func (p *path) best() int {
	best, enough := 0, false
	for i, hits := range p.hits {
		if hits != 0 && best == 0 {
			best = p.sizes[i]
		}
		for ; hits != 0; hits >>= 1 {
			enough = enough || bits.OnesCount16(hits&(1<<(rounds-1)-1)) >= plenty
		}
	}
	if !enough {
		return 0
	}
	return best
}

// answer takes an answer in, of so many bytes.
func (p *path) answer(now time.Time, id uint64, n int, jitter time.Duration) {
	round, i, ok := p.question(id)
	if !ok || n != p.sizes[i]-headers {
		return
	}
	if p.took == 0 {
		p.took = now.Sub(p.second)
	}
	if p.hits[i] |= 1 << round; i == 0 {
		p.end(0, now.Add(measureEvery-jitter))
	}
}

// refused takes in that the kernel did not take a question: the device is narrower
// than was said, or the like. That is nothing about the path.
func (p *path) refused(now time.Time, id uint64) {
	if _, _, ok := p.question(id); ok {
		p.end(p.mtu, now.Add(measureAgain))
	}
}

func (p *path) end(mtu int, due time.Time) {
	*p = path{mtu: mtu, told: p.told, due: due, from: p.from}
}
