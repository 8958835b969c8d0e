//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
)

// Memberlist's states of a name.
const (
	mlAlive   = 0
	mlSuspect = 1
	mlDead    = 2
)

// said is what a node says of a name.
type said struct {
	state       int
	incarnation uint32
}

// listed exchanges with a node, and gives the name that it has now, and what it says of
// all names.
func (i *insider) listed(t *testing.T) (name string, list map[string]said) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	conn, err := i.host.Dial(ctx, "tcp", i.to.String())
	if err != nil {
		return "", nil // it may have a new name just now
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	question := pushPull(nil, nil)
	header := binary.BigEndian.AppendUint32([]byte{10}, uint32(len(question)+12+1+16))
	if _, err := conn.Write(append(header, i.seal(question, header)...)); err != nil {
		return "", nil
	}
	sealed, err := io.ReadAll(conn)
	if err != nil || len(sealed) < 5+13 {
		return "", nil
	}
	answer, err := i.seals.Open(nil, sealed[6:18], sealed[18:], sealed[:5])
	must(t, err)
	head, rest := mpMap(t, answer[1:])
	list = map[string]said{}
	for range head["Nodes"].(uint32) {
		var n map[string]any
		n, rest = mpMap(t, rest)
		list[n["Name"].(string)] = said{int(n["State"].(uint32)), n["Incarnation"].(uint32)}
	}
	length, size := binary.Uvarint(rest[1:]) // of ours: a type, then who sends
	return string(rest[1+size:][:length]), list
}

// mpMap reads a map of what memberlist sends.
func mpMap(t *testing.T, raw []byte) (m map[string]any, rest []byte) {
	t.Helper()
	fields, rest := int(raw[0]&0x0f), raw[1:]
	m = map[string]any{}
	for range fields {
		var name, value any
		name, rest = mpValue(t, rest)
		value, rest = mpValue(t, rest)
		m[name.(string)] = value
	}
	return m, rest
}

func mpValue(t *testing.T, raw []byte) (value any, rest []byte) {
	t.Helper()
	number := func(size int) uint32 {
		var n uint32
		for _, b := range raw[1 : 1+size] {
			n = n<<8 | uint32(b)
		}
		return n
	}
	text := func(size int, length uint32) (any, []byte) {
		return string(raw[1+size:][:length]), raw[1+size+int(length):]
	}
	switch first := raw[0]; {
	case first <= 0x7f:
		return uint32(first), raw[1:]
	case first&0xe0 == 0xa0:
		return text(0, uint32(first&0x1f))
	case first >= 0xc0 && first <= 0xc3:
		return first == 0xc3, raw[1:]
	case first >= 0xcc && first <= 0xce:
		size := 1 << (first - 0xcc)
		return number(size), raw[1+size:]
	case first >= 0xd0 && first <= 0xd2:
		size := 1 << (first - 0xd0)
		return number(size), raw[1+size:]
	case first >= 0xd9 && first <= 0xdb:
		size := 1 << (first - 0xd9)
		return text(size, number(size))
	case first >= 0xc4 && first <= 0xc6:
		size := 1 << (first - 0xc4)
		return text(size, number(size))
	}
	t.Fatalf("memberlist sends %x", raw[:min(len(raw), 20)])
	return nil, nil
}

// wordOf says in a packet how a name is.
func wordOf(state int, name string, at netip.AddrPort, incarnation uint32) []byte {
	number := mpField("Incarnation", mpUint(incarnation))
	if state == mlAlive {
		return bytes.Replace(aliveMessage(name, at), mpField("Incarnation", []byte{1}), number, 1)
	}
	kind := map[int]byte{mlSuspect: 3, mlDead: 5}[state]
	return bytes.Join([][]byte{{kind, 0x83}, mpField("Node", mpString(name)), mpField("From", mpString(instanceName())), number}, nil)
}

// listWith says the same in an exchange.
func listWith(state int, name string, at netip.AddrPort, incarnation uint32) []byte {
	n := bytes.Replace(listedNode(name, at), mpField("Incarnation", []byte{1}), mpField("Incarnation", mpUint(incarnation)), 1)
	n = bytes.Replace(n, mpField("State", []byte{mlAlive}), mpField("State", []byte{byte(state)}), 1)
	return pushPull([][]byte{n}, nil)
}

// Whoever has the gossip key can say that members are dead, with whatever number. No
// ping is lost by that, all leases stay, and some seconds later the members hear each
// other's gossip again.
func TestForgedDeaths(t *testing.T) {
	t.Parallel()
	const again = 15 * time.Second // one new name in 10 s, and then it has to get round
	s := besieged(t)
	nodes := []*cluster.Node{s.alpha, s.beta, s.gamma}
	var insiders []*insider
	for _, n := range nodes {
		insiders = append(insiders, newInsider(t, s.stranger, s.token, n))
	}
	// missing tells who does not hear whom.
	missing := func() string {
		var names []string
		var lists []map[string]said
		for _, i := range insiders {
			name, list := i.listed(t)
			names, lists = append(names, name), append(lists, list)
		}
		var out []string
		for a, list := range lists {
			for b, name := range names {
				if of, ok := list[name]; !ok || of.state != mlAlive {
					out = append(out, fmt.Sprintf("%s hears %s %v: %v", nodes[a].Name, nodes[b].Name, ok, of))
				}
			}
		}
		return strings.Join(out, "; ")
	}
	// heal waits until nobody is missing, three times in a row.
	heal := func(t *testing.T) {
		t.Helper()
		begin, calm := time.Now(), 0
		var whole time.Duration
		for calm < 3 {
			switch last := missing(); {
			case last == "" && calm == 0:
				calm, whole = 1, time.Since(begin)
			case last == "":
				calm++
			case time.Since(begin) > again:
				t.Fatalf("after %s %s", again, last)
			default:
				calm = 0
			}
			pause(t.Context(), 200*time.Millisecond)
		}
		t.Logf("all hear each other %s after that", whole.Round(100*time.Millisecond))
	}
	heal(t)

	say := func(t *testing.T, how func(to *insider, state int, name string, at netip.AddrPort, number uint32) error, number func(own uint32) uint32) {
		s.attack(t, 0, func(context.Context) {
			for v, states := range [][]int{{mlDead}, {mlSuspect}, {mlAlive, mlDead}} {
				name, list := insiders[v].listed(t)
				n := number(list[name].incarnation)
				for _, state := range states {
					for _, to := range insiders {
						must(t, how(to, state, name, insiders[v].to, n))
					}
				}
			}
		})
		heal(t)
	}
	for _, way := range []struct {
		name string
		how  func(to *insider, state int, name string, at netip.AddrPort, number uint32) error
	}{
		{"by packet", func(to *insider, state int, name string, at netip.AddrPort, number uint32) error {
			return to.packet(wordOf(state, name, at, number))
		}},
		{"in a list", func(to *insider, state int, name string, at netip.AddrPort, number uint32) error {
			return to.stream(t.Context(), listWith(state, name, at, number))
		}},
	} {
		for _, n := range []struct {
			name   string
			number func(own uint32) uint32
		}{
			{"their own numbers", func(own uint32) uint32 { return own }},
			{"the lowest of a name that is worn out", func(uint32) uint32 { return 1 << 31 }},
			{"the highest", func(uint32) uint32 { return 1<<32 - 1 }},
		} {
			t.Run(way.name+", "+n.name, func(t *testing.T) { say(t, way.how, n.number) })
		}
	}
}
