package wg

import (
	"net/netip"
	"testing"
	"time"
)

// Each test tells a story, in virtual time; what is to be expected of it is in
// testdata, to be read.

func TestStoryFirstContact(t *testing.T) {
	for _, suite := range []Suite{ChaCha20Poly1305, AES256GCM} {
		w := newWorld(t)
		a, b := w.pair(Peer{Suite: suite, PSK: [32]byte{7}})
		a.send(b, "first")
		w.run(time.Second)
		b.send(a, "answer")
		w.run(30 * time.Second)
		w.golden("first_contact") // the same for both
	}
}

func TestStoryRekey(t *testing.T) {
	w := newWorld(t)
	w.brief = true
	a, b := w.pair(Peer{})
	w.note("a sends once a second, b answers; a has initiated, so a renews")
	for range 300 {
		a.send(b, "ping")
		b.send(a, "pong")
		w.run(time.Second)
	}
	if got := b.peers[a.machine.PublicKey()].got; got != 300 {
		t.Errorf("b got %d of 300", got)
	}
	w.note("silence: the session ends, and nobody makes another")
	w.run(400 * time.Second)
	w.golden("rekey")
}

func TestStoryReceiveOnly(t *testing.T) {
	w := newWorld(t)
	w.brief = true
	a, b := w.pair(Peer{})
	a.send(b, "please send")
	w.run(time.Second)
	w.note("b has not initiated, so it does not renew; a does, since it sends keepalives")
	for range 130 {
		b.send(a, "data")
		w.run(time.Second)
	}
	if got := a.peers[b.machine.PublicKey()].got; got != 130 {
		t.Errorf("a got %d of 130", got)
	}
	w.note("silence until the last minute of the session; what comes then has a renew it at once")
	w.run(160 * time.Second)
	b.send(a, "data")
	b.send(a, "data")
	w.run(time.Second)
	b.send(a, "data")
	w.run(30 * time.Second)
	w.golden("receive_only")
}

func TestStoryLost(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	losses := map[string]int{"initiation": 1, "response": 1}
	w.lose = func(_, _ *host, message string) bool {
		losses[message]--
		return losses[message] >= 0
	}
	a.send(b, "first")
	w.run(20 * time.Second)
	w.note("a keepalive confirms; without it b may not send yet, and asks for a session of its own")
	b.boot()
	a.boot()
	losses["keepalive"] = 1
	a.carryOut(a.machine.Want(w.now, b.machine.PublicKey()))
	w.run(100 * time.Millisecond)
	b.send(a, "hello")
	w.run(30 * time.Second)
	w.golden("lost")
}

func TestStoryCrossing(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	a.send(b, "from a")
	b.send(a, "from b")
	w.run(time.Second)
	a.send(b, "more from a")
	b.send(a, "more from b")
	w.run(30 * time.Second)
	w.golden("crossing")
}

func TestStoryRoaming(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	a.send(b, "first")
	w.run(time.Second)
	w.note("a moves; what it sends tells b")
	a.addr = netip.MustParseAddrPort("198.51.100.9:4711")
	b.send(a, "to the old address")
	a.send(b, "from elsewhere")
	w.run(time.Second)
	b.send(a, "to the new address")
	w.run(time.Second)
	w.note("an old packet of a, sent again from another address, moves nothing")
	counter, _ := a.peers[b.machine.PublicKey()].session.Reserve(1)
	old := a.peers[b.machine.PublicKey()].session.Seal(make([]byte, 0, 100), counter, []byte("once"))
	a.transmit(b.addr, old)
	w.run(time.Second)
	home := a.addr
	a.addr = netip.MustParseAddrPort("203.0.113.66:666")
	a.transmit(b.addr, old)
	old[20] ^= 1
	a.transmit(b.addr, old)
	a.addr = home
	w.run(time.Second)
	b.send(a, "still there")
	w.run(time.Second)
	w.golden("roaming")
}

func TestStorySilence(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	a.send(b, "first")
	w.run(time.Second)
	w.note("b has nothing to send, and says so within 10 s")
	a.send(b, "one-way")
	w.run(14 * time.Second)
	w.note("b is restarted, and knows no session; a hears nothing for 15 s after it sent")
	b.boot()
	a.send(b, "unheard")
	w.run(20 * time.Second)
	a.send(b, "heard")
	w.run(20 * time.Second)
	w.golden("silence")
}

func TestStoryClockBack(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	a.send(b, "first")
	w.run(time.Second)
	w.note("a is restarted with its clock an hour back, and has what it saved")
	a.skew = -time.Hour
	a.boot()
	a.send(b, "second")
	w.run(time.Second)
	w.note("and again")
	a.boot()
	a.send(b, "third")
	w.run(time.Second)
	w.note("without what was saved, b refuses, and begins a handshake itself")
	a.stamp = time.Time{}
	a.boot()
	a.send(b, "fourth")
	w.run(12 * time.Second)
	w.golden("clock_back")
}

func TestStoryGiveUp(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	w.lose = func(from, _ *host, _ string) bool { return from == a }
	a.send(b, "one")
	a.send(b, "two")
	w.run(200 * time.Second)
	w.note("again, and then b can be reached")
	a.send(b, "three")
	w.run(2 * time.Second)
	w.lose = nil
	w.run(30 * time.Second)
	w.golden("give_up")
}

func TestStoryUnderLoad(t *testing.T) {
	for _, suite := range []Suite{ChaCha20Poly1305, AES256GCM} {
		w := newWorld(t)
		a, b := w.pair(Peer{Suite: suite})
		b.machine.UnderLoad(true)
		a.send(b, "first")
		w.run(20 * time.Second)
		w.note("the cookie is good for two minutes")
		a.boot()
		a.send(b, "second")
		w.run(20 * time.Second)
		w.note("with a cookie from somebody else's address, another is sent")
		a.boot()
		a.send(b, "third")
		w.run(time.Second)
		a.addr = netip.MustParseAddrPort("198.51.100.9:4711")
		w.run(20 * time.Second)
		w.golden("under_load") // the same for both
	}
}

func TestStoryPersistentKeepalive(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	a.knows(b, Peer{Keepalive: 25 * time.Second})
	w.run(200 * time.Second)
	w.golden("persistent_keepalive")
}

func TestStoryRemoved(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	c := w.host("c")
	a.knows(c, Peer{})
	c.knows(a, Peer{})
	a.send(b, "to b")
	a.send(c, "to c")
	w.run(time.Second)
	w.note("b is no longer a peer; c's session goes on")
	r := a.peers[b.machine.PublicKey()]
	delete(a.peers, b.machine.PublicKey())
	a.setPeers()
	b.send(a, "unwanted")
	c.send(a, "wanted")
	w.run(time.Second)
	b.boot()
	b.send(a, "still unwanted")
	w.run(time.Second)
	w.note("b is one again, with another preshared key than it uses itself")
	r.peer.PSK = [32]byte{1}
	a.peers[r.peer.Key] = r
	a.setPeers()
	w.run(6 * time.Second)
	w.note("with the right one")
	r.peer.PSK = [32]byte{}
	a.setPeers()
	w.run(6 * time.Second)
	w.note("with another suite")
	r.peer.Suite = AES256GCM
	a.setPeers()
	b.boot()
	b.send(a, "other suite")
	w.run(time.Second)
	a.send(b, "other suite")
	w.run(time.Second)
	r.peer.Suite = ChaCha20Poly1305
	a.setPeers()
	a.send(b, "right suite")
	w.run(time.Second)
	w.golden("removed")
}

// A copy of a, made while that runs, has taken b over and is gone. b refuses what
// a says until a is ahead of the copy; that must not last until a's clock is.
func TestCopyIsOvertaken(t *testing.T) {
	w := newWorld(t)
	w.brief = true
	a, b := w.pair(Peer{})
	a.send(b, "ping")
	w.run(time.Second)
	c := w.host("copy of a")
	c.private, c.stamp = a.private, a.stamp
	c.boot()
	c.knows(b, Peer{})
	for range 3 {
		c.send(b, "it is me")
		w.run(time.Second)
	}
	w.lose = func(from, to *host, _ string) bool { return from == c || to == c }
	of := func(h, peer *host) int { return h.peers[peer.machine.PublicKey()].got }
	was, took := of(a, b), time.Duration(0)
	for ; of(a, b) == was && took < 2*time.Minute; took += time.Second {
		a.send(b, "ping")
		b.send(a, "pong")
		w.run(time.Second)
	}
	t.Logf("a hears b again after %s", took)
	if most := KeepAlive + RekeyTry + 3*firstTry; took > most {
		t.Errorf("a hears b again after %s, want %s", took, most)
	}
	if ahead := a.stamp.Sub(a.time()); ahead > 3*reserve {
		t.Errorf("its stamps are %s ahead", ahead)
	}
}

// What a restored backup does not know: which stamps it has shown since. Those who have
// seen them come to it.
func TestStoryRestored(t *testing.T) {
	w := newWorld(t)
	w.brief = true
	a, b := w.pair(Peer{})
	a.send(b, "one")
	old := w.air[0]
	w.run(time.Second)
	backup := a.stamp
	w.note("a is killed three times, each time its stamps are further ahead of its clock")
	for range 3 {
		a.boot()
		a.send(b, "on")
		w.run(2 * time.Second)
	}
	w.note("then it is restored from a backup; the first initiation is lost")
	a.stamp = backup
	a.boot()
	w.lose = func(*host, *host, string) bool { w.lose = nil; return true }
	before, from := b.remote(a).got, w.now
	a.send(b, "restored")
	for b.remote(a).got == before && w.now.Sub(from) < time.Minute {
		w.run(100 * time.Millisecond)
	}
	if took := w.now.Sub(from); took > 2*firstTry {
		t.Errorf("b is reached after %s", took)
	}
	w.note("somebody repeats what a said once, four times a second: a handshake in five seconds")
	before, all := b.remote(a).got, 0
	w.lose = func(_, _ *host, message string) bool {
		if message == "initiation" {
			all++
		}
		return false
	}
	for range 24 {
		old.at = w.now
		w.air = append(w.air, old)
		w.run(250 * time.Millisecond)
		a.send(b, "goes on")
	}
	w.run(time.Second)
	if got := b.remote(a).got - before; got != 24 {
		t.Errorf("b got %d of 24", got)
	}
	if all == 0 || all > 2 {
		t.Errorf("%d initiations in 6 s", all)
	}
	w.golden("restored")
}
