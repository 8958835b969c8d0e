package gossip_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh/gossip"
	"meshd/mesh/meshtest"
)

// forger has the key of the gossip, and says of members what it likes.
type forger struct {
	memberlist.Transport
	t     *testing.T
	names map[*node]string // as it has learnt them once
}

func (f *forger) name(of *node) string {
	if f.names[of] == "" {
		f.names[of] = of.Stats().Name
	}
	return f.names[of]
}

func newForger(t *testing.T, net *meshtest.Network) *forger {
	t.Helper()
	tr, err := net.Transport(address(99))
	if err != nil {
		t.Fatal(err)
	}
	return &forger{tr, t, map[*node]string{}}
}

func (f *forger) packet(to *node, message []byte) {
	f.t.Helper()
	if _, err := f.WriteTo(gossip.SealPacket(testKey, message), to.at.String()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *forger) stream(to *node, message []byte) {
	f.t.Helper()
	conn, err := f.DialTimeout(to.at.String(), time.Second)
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(gossip.SealStream(testKey, message)); err != nil {
		f.t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, conn)
}

// The types of memberlist's messages, and its states of names in a list.
const (
	suspectWord, aliveWord, deadWord = 3, 4, 5

	aliveState, suspectState, deadState, leftState = 0, 1, 2, 3
)

// field is one of a map in MessagePack.
func field(name string, value ...byte) []byte { return append(text(name), value...) }

func text(s string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0xda}, uint16(len(s))), s...)
}

func incarnation(n uint32) []byte {
	return field("Incarnation", binary.BigEndian.AppendUint32([]byte{0xce}, n)...)
}

func place(at netip.AddrPort) []byte {
	return bytes.Join([][]byte{
		field("Addr", text(string(at.Addr().AsSlice()))...), field("Port", binary.BigEndian.AppendUint16([]byte{0xcd}, at.Port())...),
		field("Meta", 0xc0), field("Vsn", text("\x01\x05\x02\x00\x00\x00")...),
	}, nil)
}

// word says one thing of a name.
func word(kind byte, name string, at netip.AddrPort, from string, n uint32) []byte {
	out := append([]byte{kind}, 0x83)
	if kind == aliveWord {
		out = append([]byte{kind, 0x86}, place(at)...)
	} else {
		out = append(out, field("From", text(from)...)...)
	}
	return append(append(out, incarnation(n)...), field("Node", text(name)...)...)
}

// list says the same in an exchange of tables, which nothing else is in.
func list(state byte, name string, at netip.AddrPort, n uint32) []byte {
	sender := "nobody"
	table := append([]byte{3, byte(len(sender))}, sender...)
	return bytes.Join([][]byte{
		{6, 0x83}, field("Nodes", 1), field("UserStateLen", byte(len(table))), field("Join", 0xc3),
		{0x87}, field("Name", text(name)...), field("State", state), place(at), incarnation(n), table,
	}, nil)
}

// compoundOf is one packet of several messages.
func compoundOf(parts ...[]byte) []byte {
	out := []byte{7, byte(len(parts))}
	for _, p := range parts {
		out = binary.BigEndian.AppendUint16(out, uint16(len(p)))
	}
	return append(out, bytes.Join(parts, nil)...)
}

// whole tells whether all hear each other by the names that they have now.
func whole(nodes []*node) func() bool { return func() bool { return len(deaf(nodes)) == 0 } }

// deaf lists who does not hear whom.
func deaf(nodes []*node) (out []string) {
	for _, a := range nodes {
		for _, b := range nodes {
			if name := b.Stats().Name; a != b && !a.Hears(name, b.at) {
				out = append(out, fmt.Sprintf("%s does not hear %s (%s)", a.at.Addr(), b.at.Addr(), name))
			}
		}
	}
	return out
}

// again is how soon all hear each other: a member takes a new name twice at most, since
// some words may come after the first time.
const again = gossip.RenewEvery + 10*time.Second

// Whatever is said of a member with whatever number, some seconds later all hear it
// again, by each way in which such a word can come.
func TestForgedIncarnations(t *testing.T) {
	ways := map[string]func(f *forger, to, victim *node, n uint32){
		"dead": func(f *forger, to, v *node, n uint32) {
			f.packet(to, word(deadWord, f.name(v), v.at, "nobody", n))
		},
		"left": func(f *forger, to, v *node, n uint32) {
			f.packet(to, word(deadWord, f.name(v), v.at, f.name(v), n))
		},
		"left, then alive elsewhere": func(f *forger, to, v *node, n uint32) {
			name := f.name(v)
			f.packet(to, word(deadWord, name, v.at, name, n))
			time.Sleep(5 * time.Millisecond) // or memberlist takes it up first
			f.packet(to, word(aliveWord, name, address(99), "", n+1))
		},
		"suspect": func(f *forger, to, v *node, n uint32) {
			f.packet(to, word(suspectWord, f.name(v), v.at, "nobody", n))
		},
		"alive, then dead": func(f *forger, to, v *node, n uint32) {
			f.packet(to, compoundOf(word(aliveWord, f.name(v), v.at, "", n), word(deadWord, f.name(v), v.at, "nobody", n)))
		},
		"listed as dead": func(f *forger, to, v *node, n uint32) { f.stream(to, list(deadState, f.name(v), v.at, n)) },
		"listed as left": func(f *forger, to, v *node, n uint32) { f.stream(to, list(leftState, f.name(v), v.at, n)) },
		"listed as suspect": func(f *forger, to, v *node, n uint32) {
			f.stream(to, list(suspectState, f.name(v), v.at, n))
		},
		"listed as alive, then dead": func(f *forger, to, v *node, n uint32) {
			name := f.name(v)
			f.stream(to, list(aliveState, name, v.at, n))
			f.packet(to, word(deadWord, name, v.at, "nobody", n))
		},
	}
	for way, say := range ways {
		for _, n := range []uint32{1, 100, gossip.WornOut - 1, gossip.WornOut, gossip.WornOut + 1, 1<<32 - 2, 1<<32 - 1} {
			for _, victims := range []int{1, 5} {
				t.Run(fmt.Sprintf("%s, %d, of %d", way, n, victims), func(t *testing.T) {
					meshtest.Bubble(t, func(t *testing.T) {
						net := meshtest.NewNetwork(7)
						net.SetLatency(10 * time.Millisecond)
						nodes := startAll(t, net, 5)
						within(t, 10*time.Second, "all hear each other", whole(nodes))
						time.Sleep(time.Minute)
						f := newForger(t, net)
						for _, v := range nodes[5-victims:] {
							for _, to := range nodes {
								say(f, to, v, n)
							}
						}
						time.Sleep(time.Second)
						begin := time.Now()
						within(t, again, "all hear each other again", whole(nodes))
						t.Logf("whole after %s", time.Since(begin))
						time.Sleep(again - time.Since(begin))
						for time.Since(begin) < 2*time.Minute {
							if !whole(nodes)() {
								t.Fatalf("after %s no more: %s", time.Since(begin), deaf(nodes))
							}
							time.Sleep(time.Second)
						}
					})
				})
			}
		}
	}
}
