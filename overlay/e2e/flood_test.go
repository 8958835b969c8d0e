//go:build linux

package e2e

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"meshd/mesh/trust"
	"meshd/overlay/e2e/cluster"
)

// Whoever ever had a token has the gossip key. That is good for a hearing, and
// for nothing else.
func TestFloodByInsider(t *testing.T) {
	s := besieged(t)
	i := newInsider(t, s.stranger, s.token, s.alpha)
	other := newInsider(t, s.stranger, s.token, s.beta)
	peers := func() int { return len(document(t, s.alpha).Peers) }
	known := peers()
	send := func(t *testing.T, messages [][]byte, how func(*insider, []byte) error) func(context.Context) {
		return func(ctx context.Context) {
			for n, m := range messages {
				to := i
				if n%4 == 3 {
					to = other
				}
				if err := how(to, m); err != nil {
					t.Error(err)
					return
				}
				if ctx.Err() != nil {
					t.Logf("after %s %d of %d are sent", soon, n, len(messages))
					return // enough is enough
				}
			}
		}
	}
	packet := func(i *insider, m []byte) error { return i.packet(m) }
	stream := func(i *insider, m []byte) error { return i.stream(t.Context(), m) }
	messages := func(n int, make func() []byte) (all [][]byte) {
		for range n {
			all = append(all, make())
		}
		return all
	}

	// Made first, since they are of use only when their token has expired.
	late := shortToken(t, s.alpha, s.token, 10*time.Second) // 1 000 signatures are made in that, on a slow machine too
	var unwitnessed [][]byte
	for range 500 {
		certificate, record := unadmitted(t, late)
		unwitnessed = append(unwitnessed, userStream(objectsMessage(certificate)), userPacket(objectsMessage(record)))
	}

	t.Run("junk objects", func(t *testing.T) {
		s.attack(t, 0, send(t, messages(10_000, func() []byte { return userPacket(objectsMessage(randomBytes(900))) }), packet))
	})
	t.Run("records without a certificate", func(t *testing.T) {
		s.attack(t, 0, send(t, messages(10_000, func() []byte { return userPacket(objectsMessage(orphanRecord(t))) }), packet))
	})
	t.Run("whole tables of junk", func(t *testing.T) {
		table := pushPull(nil, stateMessage(instanceName(), junkObjects(2000, 1000)...))
		s.attack(t, 0, send(t, messages(20, func() []byte { return table }), stream))
	})
	t.Run("tables of tiny objects", func(t *testing.T) {
		table := pushPull(nil, stateMessage(instanceName(), junkObjects(16<<10, 1)...))
		s.attack(t, 0, send(t, messages(20, func() []byte { return table }), stream))
	})
	t.Run("huge objects", func(t *testing.T) {
		message := userStream(objectsMessage(junkObjects(100, trust.MaxObject)...))
		s.attack(t, 0, send(t, messages(50, func() []byte { return message }), stream))
	})
	t.Run("wants", func(t *testing.T) {
		s.attack(t, 0, send(t, messages(10_000, func() []byte { return userPacket(wantMessage(instanceName(), 32)) }), packet))
	})
	t.Run("names that nobody has", func(t *testing.T) {
		at := netip.AddrPortFrom(netip.MustParseAddr("198.18.0.250"), gossipPort)
		s.attack(t, 0, send(t, messages(10_000, func() []byte { return aliveMessage(instanceName(), at) }), packet))
		list := messages(5000, func() []byte { return listedNode(instanceName(), at) })
		s.attack(t, 0, send(t, messages(10, func() []byte { return pushPull(list, stateMessage(instanceName())) }), stream))
	})
	t.Run("what would harm", func(t *testing.T) {
		harm := [][]byte{
			{}, {0}, {6}, {9, 0x80}, {10, 0, 0, 0, 29},
			append([]byte{6, 0x83}, bytes.Join([][]byte{mpField("Nodes", mpUint(1<<20)), mpField("UserStateLen", mpUint(20<<20)), mpField("Join", []byte{0xc2})}, nil)...),
			append([]byte{8, 0x81}, mpField("UserMsgLen", mpUint(20<<20))...),
		}
		var all [][]byte
		for range 50 {
			all = append(all, harm...)
		}
		s.attack(t, 0, send(t, all, stream))
		s.attack(t, 0, send(t, all, packet))
	})
	t.Run("certificates that nobody admits", func(t *testing.T) {
		pause(t.Context(), time.Until(late.Credential.NotAfter.Add(1500*time.Millisecond)))
		s.attack(t, 0, send(t, unwitnessed, func(i *insider, m []byte) error {
			if len(m) > 1300 || m[1] == 0x81 {
				return i.stream(t.Context(), m)
			}
			return i.packet(m)
		}))
	})
	t.Run("versions that nobody speaks", func(t *testing.T) {
		at := netip.AddrPortFrom(netip.MustParseAddr("198.18.0.250"), gossipPort)
		s.attack(t, 0, send(t, messages(50, func() []byte {
			return bytes.Replace(aliveMessage(instanceName(), at), []byte(versions), []byte("\x09\x09\x09\x09\x09\x09"), 1)
		}), packet))
		// Whoever knows nobody still gets the table.
		must(t, s.gamma.Stop(bounded(t)))
		must(t, os.Remove(filepath.Join(s.gamma.StateDir(), "table")))
		must(t, s.gamma.Start())
		must(t, cluster.WaitPairs(bounded(t), s.alpha, s.beta, s.gamma))
	})
	if now := peers(); now != known {
		t.Errorf("alpha had %d peers and has %d", known, now)
	}
}
