package wg

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
)

// duel is two ends that both want a session at once, and a network that delivers
// in whatever order it is told to: choices[i] says which of the datagrams on
// their way is next, and, beyond their number, which of them is lost.
type duel struct {
	t                *testing.T
	ends             [2]*Machine
	keys             [2]mesh.Key
	current          [2]*Session
	air              []flying
	losses, lossLeft int
	old              *Session // of end 0, from before

	choices, fanout []int
	story           strings.Builder
}

type flying struct {
	to       int
	contents []byte
}

func newDuel(t *testing.T, choices []int, losses int, established, swapped bool) *duel {
	t.Helper()
	d := &duel{t: t, choices: choices}
	seeds := [2]byte{1, 2}
	if swapped {
		seeds = [2]byte{2, 1}
	}
	for i, seed := range seeds {
		private, public := keyPair(t, seed)
		m, err := New(Config{PrivateKey: private, Rand: &counting{uint64(i)}})
		if err != nil {
			t.Fatal(err)
		}
		d.ends[i], d.keys[i] = m, public
	}
	for i, m := range d.ends {
		if _, err := m.SetPeers(start, []Peer{{Key: d.keys[1-i], Suite: ChaCha20Poly1305}}); err != nil {
			t.Fatal(err)
		}
	}
	now := start
	if established {
		d.do(0, d.ends[0].Want(now, d.keys[1]))
		for len(d.air) > 0 {
			d.deliver(now, 0)
		}
		d.old = d.current[0]
		now = now.Add(RekeyTry + time.Second)
	}
	d.losses, d.lossLeft = losses, losses
	for i, m := range d.ends {
		m.peers[d.keys[1-i]].tryFor(now)
		d.do(i, m.flush())
	}
	d.play(now)
	return d
}

// play delivers until nothing is on its way.
func (d *duel) play(now time.Time) {
	for len(d.air) > 0 {
		n := len(d.air)
		if d.lossLeft > 0 {
			n *= 2
		}
		choice := 0
		if i := len(d.fanout); i < len(d.choices) {
			choice = d.choices[i]
		}
		d.fanout = append(d.fanout, n)
		if choice >= len(d.air) {
			d.lossLeft--
			i := choice - len(d.air)
			fmt.Fprintf(&d.story, "lost: %s to %d\n", describe(d.air[i].contents), d.air[i].to)
			d.air = slices.Delete(d.air, i, i+1)
			continue
		}
		d.deliver(now, choice)
	}
}

func (d *duel) deliver(now time.Time, i int) {
	f := d.air[i]
	d.air = slices.Delete(d.air, i, i+1)
	fmt.Fprintf(&d.story, "%s to %d\n", describe(f.contents), f.to)
	d.arrive(now, f.to, f.contents)
}

func (d *duel) arrive(now time.Time, to int, contents []byte) {
	d.t.Helper()
	m := d.ends[to]
	index, ok := SessionIndex(contents)
	if !ok {
		actions, err := m.Receive(now, contents, netip.AddrPort{})
		if err != nil {
			fmt.Fprintf(&d.story, "  %v\n", err)
		}
		d.do(to, actions)
		return
	}
	s := m.Table().Lookup(index)
	if s == nil {
		fmt.Fprintf(&d.story, "  no session\n")
		return
	}
	if _, err := s.Open(contents); err != nil {
		d.t.Fatal(err)
	}
	if s.NoteReceived(now, false, netip.AddrPort{}) {
		d.do(to, m.Step(now))
	}
}

func (d *duel) do(i int, actions []Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case Send:
			d.air = append(d.air, flying{1 - i, a.Packet})
		case Use:
			d.current[i] = a.Session
			if a.Session != nil {
				fmt.Fprintf(&d.story, "  %d uses that of %d\n", i, map[bool]int{true: i, false: 1 - i}[a.Session.initiator])
			}
		}
	}
}

// data sends one message with what the end would use, and tells whether the
// other end could read it.
func (d *duel) data(now time.Time, from int) bool {
	s := d.current[from]
	if s == nil {
		return false
	}
	counter, _ := s.Reserve(1)
	sealed := s.Seal(make([]byte, 0, 100), counter, []byte("data"))
	s.NoteSent(now, true)
	if index, _ := SessionIndex(sealed); d.ends[1-from].Table().Lookup(index) == nil {
		return false
	}
	d.arrive(now, 1-from, sealed)
	return true
}

// Two handshakes that cross end in one session at both ends, at once, in whatever
// order and with whichever datagram lost.
func TestCrossing(t *testing.T) {
	for _, losses := range []int{0, 1} {
		for _, established := range []bool{false, true} {
			for _, swapped := range []bool{false, true} {
				t.Run(fmt.Sprintf("losses %d, established %t, swapped %t", losses, established, swapped), func(t *testing.T) {
					orders := 0
					for choices := []int{}; choices != nil; orders++ {
						d := newDuel(t, choices, losses, established, swapped)
						d.verify(start.Add(RekeyTry + time.Second))
						choices = following(choices, d.fanout)
					}
					t.Log(orders, "orders")
				})
			}
		}
	}
}

// following gives the next sequence of choices, or nil.
func following(choices, fanout []int) []int {
	next := make([]int, len(fanout))
	copy(next, choices)
	for i := len(next) - 1; i >= 0; i-- {
		if next[i]++; next[i] < fanout[i] {
			return next[:i+1]
		}
	}
	return nil
}

func (d *duel) verify(now time.Time) {
	d.t.Helper()
	fail := func(what string) { d.t.Fatalf("%s:\n%s", what, &d.story) }
	// If a confirming message was lost, the other end's data does as well.
	for _, i := range []int{0, 1, 0, 1, 0, 1} {
		if d.current[i] == nil && d.lossLeft == 0 && d.losses > 0 {
			d.lossLeft = -1
			continue
		}
		if !d.data(now, i) {
			fail(fmt.Sprintf("%d can not read what the other sends", 1-i))
		}
	}
	a, b := d.current[0], d.current[1]
	if a.local != b.remote || a.remote != b.local {
		fail("the ends use different sessions")
	}
	if d.old != nil && (a == d.old || b == d.old) {
		fail("the old session is still used")
	}
}
