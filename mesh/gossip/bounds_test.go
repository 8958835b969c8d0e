package gossip

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// Whoever has the key names a host that never asked: it gets little, by far less than
// it takes to hurt, and members and those who have opened a stream get all.
func TestBounds(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	answer := append([]byte{mlAck}, make([]byte, 40)...)
	full := compound(answer, append([]byte{mlUser}, make([]byte, 1200)...))
	b := newBounds()
	victim, member, guest := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("::ffff:192.0.2.3")
	b.admit(map[netip.Addr]bool{member: true})
	b.meet(guest)
	sent := map[netip.Addr]int{}
	for i := range 60 * 25 { // so many packets a second, for a minute
		at := now.Add(time.Duration(i) * 40 * time.Millisecond)
		for _, to := range []netip.Addr{victim, member, guest} {
			sent[to] += len(b.trim(full, to, at))
		}
	}
	if sent[member] != 1500*len(full) || sent[guest] != 1500*len(full) {
		t.Errorf("a member got %d bytes, one that has opened a stream %d, want all %d", sent[member], sent[guest], 1500*len(full))
	}
	if most := (unprovenBurst+61)*len(full) + 1500*len(answer); sent[victim] > most {
		t.Errorf("the victim got %d bytes, want at most %d", sent[victim], most)
	}
	// Its probes are answered all the time, else it would be held for dead.
	if got := b.trim(full, victim, now.Add(time.Minute)); len(got) == 0 || !bytes.HasPrefix(full[len(full)-len(got):], got) && !bytes.Equal(got, answer) {
		t.Errorf("a probe is answered with %d bytes", len(got))
	}
	// Many victims at a time are no way around, nor many addresses of one.
	total := 0
	for i := range 20_000 {
		total += len(b.trim(full, netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:%x::%x", i%16, i>>8, i)), now.Add(2*time.Minute)))
	}
	if most := allBurst*len(full) + 20_000*len(answer); total > most {
		t.Errorf("20000 hosts got %d bytes at once, want at most %d", total, most)
	}
	if len(b.hosts) > maxHosts {
		t.Errorf("%d hosts are remembered", len(b.hosts))
	}
}

func TestFirstPart(t *testing.T) {
	ack, news := []byte{mlAck, 1, 2}, []byte{mlUser, 7, 7, 7}
	for name, c := range map[string]struct{ packet, want []byte }{
		"alone":               {ack, ack},
		"with news":           {compound(ack, news), ack},
		"with a checksum":     {withCRC(compound(ack, news)), ack},
		"news alone":          {news, nil},
		"news first":          {compound(news, ack), nil},
		"empty":               {nil, nil},
		"no parts":            {[]byte{mlCompound, 0, 0, 0}, nil},
		"longer than it says": {[]byte{mlCompound, 1, 0, 9, 1}, nil},
	} {
		if got := firstPart(c.packet); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %x, want %x", name, got, c.want)
		}
	}
}
