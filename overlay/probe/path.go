package probe

import (
	"net/netip"
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
	// rounds in which the largest has to get lost: of those that lose one packet in
	// five by chance, one in 600 is taken for narrow.
	rounds = 4
	// roundSlack and twice the round trip is when the next round goes.
	roundSlack = 100 * time.Millisecond
	// measureEvery is the time between measurements of a path; each is one packet of
	// full size where that passes, 2 kbit/s of each node in a mesh of 50.
	measureEvery = 10 * time.Minute
	// measureAgain is that after one which has shown nothing.
	measureAgain = time.Minute
)

// path is what is known of how long packets get to a peer and back, and its
// measurement:
//
//	due, and a probe was answered ─► round 1: one of full size
//	                                 rounds 2, 3, 4: all sizes
//	answered at full size         ─► it carries all
//	else, in half a second or so  ─► the largest that was answered
//	none was                      ─► says nothing, and what was known stays
type path struct {
	mtu  int       // inside of the tunnel; 0: all that the device sends, as far as is known
	told int       // mtu, as narrowed has told it
	due  time.Time // when it may be measured; zero: now

	active bool          // it is being measured
	at     time.Time     // when the next round goes, or the last one is judged
	round  int           // rounds that went
	id     uint64        // of the questions: that of sizes[i] is id+i
	sizes  []int         // the largest first
	best   int           // answered
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
		*p = path{mtu: p.mtu, told: p.told, active: true, at: now, id: id, sizes: sizesBelow(mtu)}
	}
}

// step lists the questions to ask now. jitter spreads the next measurements.
func (p *path) step(now time.Time, to netip.Addr, rtt, jitter time.Duration) []outgoing {
	if !p.active || now.Before(p.at) {
		return nil
	}
	if p.round == rounds {
		if p.best == 0 {
			p.end(p.mtu, now.Add(measureAgain))
		} else {
			p.end(p.best, now.Add(measureEvery-jitter))
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
	case p.round == rounds && p.took == 0:
		p.at = now.Add(patience)
	case p.round == rounds: // what was asked earlier, in a greater packet, has had its time
		p.at = now.Add(min(roundSlack+2*p.took, patience))
	}
	var out []outgoing
	for i, size := range sizes {
		out = append(out, outgoing{to, p.id + uint64(i), size - headers})
	}
	return out
}

// answer takes an answer in, of so many bytes.
func (p *path) answer(now time.Time, id uint64, n int, jitter time.Duration) {
	i := id - p.id
	if !p.active || i >= uint64(len(p.sizes)) || n != p.sizes[i]-headers {
		return
	}
	if p.took == 0 {
		p.took = now.Sub(p.second)
	}
	if p.best = max(p.best, p.sizes[i]); i == 0 {
		p.end(0, now.Add(measureEvery-jitter))
	}
}

// refused takes in that the kernel did not take a question: the device is narrower
// than was said, or the like. That is nothing about the path.
func (p *path) refused(now time.Time, id uint64) {
	if p.active && id-p.id < uint64(len(p.sizes)) {
		p.end(p.mtu, now.Add(measureAgain))
	}
}

func (p *path) end(mtu int, due time.Time) { *p = path{mtu: mtu, told: p.told, due: due} }
