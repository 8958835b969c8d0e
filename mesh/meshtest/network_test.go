package meshtest

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

func at(n byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 1) }

// pair makes two hosts, in a bubble.
func pair(t *testing.T, test func(t *testing.T, n *Network, a, b memberlist.Transport)) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b := must(n.Transport(at(1)))(t), must(n.Transport(at(2)))(t)
		test(t, n, a, b)
	})
}

// received gives what has come so far.
func received(to memberlist.Transport) (out []byte) {
	synctest.Wait()
	for {
		select {
		case p := <-to.PacketCh():
			out = append(out, p.Buf...)
		default:
			return out
		}
	}
}

func send(t *testing.T, from memberlist.Transport, to byte, payload ...byte) {
	t.Helper()
	for _, b := range payload {
		if _, err := from.WriteTo([]byte{b}, at(to).String()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneWayBlock(t *testing.T) {
	pair(t, func(t *testing.T, n *Network, a, b memberlist.Transport) {
		n.Block(func(from, _ netip.AddrPort) bool { return from == at(1) })
		send(t, a, 2, 1)
		send(t, b, 1, 2)
		if got := received(b); len(got) != 0 {
			t.Error("a packet passed the block")
		}
		if got := received(a); len(got) != 1 {
			t.Error("the other way is blocked too")
		}
		for _, x := range []struct {
			from memberlist.Transport
			to   byte
		}{{a, 2}, {b, 1}} {
			if _, err := x.from.DialTimeout(at(x.to).String(), time.Second); err == nil {
				t.Error("a stream opened, although one way is blocked")
			}
		}
	})
}

func TestBlockBreaksStreams(t *testing.T) {
	pair(t, func(t *testing.T, n *Network, a, b memberlist.Transport) {
		go func() { <-b.StreamCh() }()
		s := must(a.DialTimeout(at(2).String(), time.Second))(t)
		n.Block(func(_, to netip.AddrPort) bool { return to == at(1) })
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("a stream outlived the block")
		}
	})
}

func TestJitterReorders(t *testing.T) {
	pair(t, func(t *testing.T, n *Network, a, b memberlist.Transport) {
		n.SetJitter(time.Second)
		var all []byte
		for i := range byte(100) {
			all = append(all, i)
		}
		send(t, a, 2, all...)
		time.Sleep(time.Second)
		got := received(b)
		if slices.IsSorted(got) {
			t.Error("all came in order")
		}
		slices.Sort(got)
		if !slices.Equal(got, all) {
			t.Errorf("%d came, want each of 100 once", len(got))
		}
	})
}

func TestDuplicates(t *testing.T) {
	pair(t, func(t *testing.T, n *Network, a, b memberlist.Transport) {
		n.SetDuplicates(1)
		send(t, a, 2, 7)
		if got := received(b); len(got) != 2 {
			t.Errorf("%d came, want 2", len(got))
		}
		var arrived atomic.Int32
		n.Carry(at(1), at(2), func() { arrived.Add(1) })
		synctest.Wait()
		n.Block(func(netip.AddrPort, netip.AddrPort) bool { return true })
		n.Carry(at(1), at(2), func() { arrived.Add(1) })
		synctest.Wait()
		if got := arrived.Load(); got != 2 {
			t.Errorf("%d carried, want 2 before the block and none after", got)
		}
	})
}
