package gossip

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"meshd/mesh/exchange"
)

// memberlist sends to whatever address a name is said to have, and fills up each
// packet with news: an answer to a probe as well. So whoever has the key could have
// all members send to a host that never asked. What goes where nobody has shown to be
// is bounded: nodes that join do with it, until they have opened a stream.
const (
	// unprovenBurst packets may go to one host at once, and one more each
	// unprovenEvery. Beyond that there are small ones only.
	unprovenBurst = 64
	unprovenEvery = time.Second
	// allBurst and allEvery are the same for all such hosts together.
	allBurst = 1024
	allEvery = 10 * time.Millisecond
	// smallPacket is above any question or answer of memberlist's alone. No answer
	// is longer than its question.
	smallPacket = 192
	// maxHosts bounds each list below.
	maxHosts = 4096
)

// bounds knows who has shown to be where. It is safe for concurrent use.
type bounds struct {
	mu      sync.Mutex
	members map[netip.Addr]bool                // by what they sign
	met     map[netip.Addr]bool                // at the other end of a stream
	hosts   map[netip.Addr]*exchange.Allowance // of all others
	all     exchange.Allowance
}

func newBounds() *bounds {
	return &bounds{met: map[netip.Addr]bool{}, hosts: map[netip.Addr]*exchange.Allowance{}, all: exchange.Allowance{Most: allBurst, Every: allEvery}}
}

// admit says where members are by what they sign.
func (b *bounds) admit(members map[netip.Addr]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members = members
}

// meet notes the other end of a stream.
func (b *bounds) meet(a netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.met) >= maxHosts {
		clear(b.met) // whoever is there will show it again
	}
	b.met[bare(a)] = true
}

// trim gives what of a packet may go to an address; nil: nothing.
func (b *bounds) trim(packet []byte, to netip.Addr, now time.Time) []byte {
	to = bare(to)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(packet) <= smallPacket || b.members[to] || b.met[to] {
		return packet
	}
	if to.Is6() { // whoever has one address there has them all
		to = netip.PrefixFrom(to, 64).Masked().Addr()
	}
	host := b.hosts[to]
	if host == nil {
		if len(b.hosts) >= maxHosts {
			clear(b.hosts)
		}
		host = &exchange.Allowance{Most: unprovenBurst, Every: unprovenEvery}
		b.hosts[to] = host
	}
	if host.Take(now) && b.all.Take(now) {
		return packet
	}
	if packet = firstPart(packet); len(packet) > smallPacket {
		return nil
	}
	return packet
}

// firstPart is what memberlist had to say before it filled the packet up; nil: there
// is no such part, or it is one of ours.
func firstPart(m []byte) []byte {
	if len(m) > 5 && m[0] == mlCRC {
		m = m[5:]
	}
	if len(m) >= 4 && m[0] == mlCompound {
		begin := 2 + 2*int(m[1])
		end := begin + int(binary.BigEndian.Uint16(m[2:]))
		if m[1] == 0 || end > len(m) {
			return nil
		}
		m = m[begin:end]
	}
	if len(m) == 0 || m[0] == mlUser {
		return nil
	}
	return m
}

// bare is the one form in which hosts are compared.
func bare(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
