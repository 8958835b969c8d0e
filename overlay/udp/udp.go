// Package udp is the underlay: sockets that move trains of datagrams.
//
// A [Train] is a row of datagrams of one size from one peer, or for one, which
// crosses the kernel in one call (UDP_SEGMENT, UDP_GRO). A [Group] is the sockets
// of one port: for each queue one IPv4 and one IPv6 [Socket]. The kernel spreads
// the peers over the queues, and keeps each to one of them.
//
// Calls never wait: they fail with EAGAIN. What to wait for is [Socket.File].
// Nothing on the way of a packet allocates or locks. Where the kernel or a
// network card refuses trains, datagrams go one by one, and nobody notices.
//
// Outer packets may be fragmented, as those of WireGuard in the kernel: too large
// an inner MTU costs speed and not the connection. (So "don't fragment" is off.
// IPv6 learns the MTU of a path, since only the sender can fragment there.)
//
// The owner gives each goroutine its own handle, see [Socket], and closes the
// Group, after which all handles fail with [os.ErrClosed].
package udp

import (
	"iter"
	"net/netip"
)

const (
	// MaxTrain is the room that Receive needs to take every train.
	MaxTrain = 1 << 16
	// MaxDatagrams and MaxPayload are the datagrams and the bytes that Send gives to
	// one call: UDP_MAX_SEGMENTS before Linux 6.9, and an IPv4 packet's 65535 bytes
	// without the headers.
	MaxDatagrams = 64
	MaxPayload   = 65535 - 20 - 8
)

// Train is datagrams that lie one behind the other in Data: each has Size bytes,
// only the last may have fewer. Data is the caller's: Receive lets it refer to the
// buffer that it was given, and Send is done with it when it returns.
type Train struct {
	Data   []byte
	Size   int            // 0 is len(Data): one datagram
	Remote netip.AddrPort // the peer
	Local  Source         // our side of it
	ECN    byte           // of the outer IP header, RFC 3168: 0 to 3
}

// Source is the address of ours that a train came to, and should be answered
// from: on a host with several, the peer expects no other. The zero value leaves
// the choice to the kernel.
type Source struct {
	Addr netip.Addr
	// Interface is where a train came in to a link-local address, and answers have
	// to leave; 0: the kernel's routes say.
	Interface uint32
}

// Datagrams gives the datagrams in order.
func (t *Train) Datagrams() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for rest := t.Data; len(rest) > 0; {
			n := len(rest)
			if t.Size > 0 {
				n = min(n, t.Size)
			}
			if !yield(rest[:n:n]) {
				return
			}
			rest = rest[n:]
		}
	}
}
