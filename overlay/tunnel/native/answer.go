package native

import (
	"net/netip"
	"time"

	"meshd/tun/packet"
)

// beyond is from where a packet's sender is answered: its destination. The kernel
// takes no packet from a device whose source is an address of its own, and none
// (rp_filter) that it would not send there.
func beyond(p []byte) netip.Addr {
	_, dst, _ := packet.Addresses(p)
	return dst
}

// tell answers a packet's sender on this host, if not too often. message lies in
// s.answer; nil: there is none to send.
func (s *sender) tell(message []byte) {
	if message == nil || !s.answers.take(time.Now()) {
		return
	}
	packet.Offload{}.Put(s.answer)
	_, _ = s.queue.WritePacket([][]byte{s.answer[:packet.OffloadLen], message}) // as lost as its cause
}

// allowance bounds how many answers go out: a hundred a second.
type allowance struct {
	left int
	at   time.Time
}

const answersPerSecond = 100

func (a *allowance) take(now time.Time) bool {
	if now.Sub(a.at) >= time.Second {
		a.left, a.at = answersPerSecond, now
	}
	a.left--
	return a.left >= 0
}
