package wg

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
)

var update = flag.Bool("update", false, "write testdata again")

var start = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// counting gives numbers that look random and are the same in each run.
type counting struct{ n uint64 }

func (c *counting) Read(b []byte) (int, error) {
	for i := range b {
		c.n = c.n*6364136223846793005 + 1442695040888963407
		b[i] = byte(c.n >> 56)
	}
	return len(b), nil
}

// world is some hosts, the time, and datagrams on their way. It writes down what
// happens as a story.
type world struct {
	t     *testing.T
	now   time.Time
	story strings.Builder
	hosts []*host
	air   []datagram
	sent  int
	names map[uint32]string // of sessions, by the initiator's index

	delay time.Duration
	lose  func(from, to *host, message string) bool // nil: nothing is lost
	brief bool                                      // leave out keepalives and data
}

type datagram struct {
	at       time.Time
	n        int // order of sending
	from     netip.AddrPort
	source   *host
	to       netip.AddrPort
	contents []byte
}

func newWorld(t *testing.T) *world {
	return &world{t: t, now: start, names: map[uint32]string{}, delay: 10 * time.Millisecond}
}

// host is an owner of a machine, as an engine would be one, with one worker.
type host struct {
	w       *world
	name    string
	machine *Machine
	private [32]byte
	addr    netip.AddrPort
	skew    time.Duration // of its clock
	seed    uint64
	stamp   time.Time // saved
	peers   map[mesh.Key]*remote
}

type remote struct {
	host    *host
	peer    Peer
	at      netip.AddrPort
	session *Session
	staged  []string
	got     int
}

func (w *world) host(name string) *host {
	w.t.Helper()
	n := byte(len(w.hosts) + 1)
	h := &host{
		w: w, name: name, private: [32]byte(bytes.Repeat([]byte{n}, 32)), seed: uint64(n),
		addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 51820), peers: map[mesh.Key]*remote{},
	}
	w.hosts = append(w.hosts, h)
	h.boot()
	return h
}

// boot makes a new machine, with what the old one has saved.
func (h *host) boot() {
	h.w.t.Helper()
	h.seed += 1000
	m, err := New(Config{PrivateKey: h.private, LastStamp: h.stamp, Rand: &counting{h.seed}})
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.machine = m
	for _, r := range h.peers {
		r.session, r.staged = nil, nil
	}
	h.setPeers()
}

func (h *host) time() time.Time { return h.w.now.Add(h.skew) }

// knows makes b a peer of h.
func (h *host) knows(b *host, p Peer) {
	h.w.t.Helper()
	p.Key = b.machine.PublicKey()
	p.Suite = cmp.Or(p.Suite, ChaCha20Poly1305)
	h.peers[p.Key] = &remote{host: b, peer: p, at: b.addr}
	h.setPeers()
}

func (h *host) setPeers() {
	h.w.t.Helper()
	var peers []Peer
	for key, r := range h.peers {
		if key == r.peer.Key { // else it was the key before
			peers = append(peers, r.peer)
		}
	}
	slices.SortFunc(peers, func(a, b Peer) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	actions, err := h.machine.SetPeers(h.time(), peers)
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.carryOut(actions)
}

// rotates gives the host another key, of which nobody hears yet.
func (h *host) rotates() {
	h.w.t.Helper()
	h.private[1]++
	if err := h.machine.SetKey(h.time(), h.private); err != nil {
		h.w.t.Fatal(err)
	}
}

// hears takes over the key that b has now.
func (h *host) hears(b *host) {
	h.w.t.Helper()
	r := h.remote(b)
	r.peer.Key = b.machine.PublicKey()
	h.peers[r.peer.Key] = r
	h.setPeers()
}

func (h *host) remote(b *host) *remote {
	for _, r := range h.peers {
		if r.host == b {
			return r
		}
	}
	return nil
}

// pair is two hosts that know each other.
func (w *world) pair(p Peer) (a, b *host) {
	w.t.Helper()
	a, b = w.host("a"), w.host("b")
	a.knows(b, p)
	b.knows(a, p)
	return a, b
}

func (w *world) say(format string, args ...any) {
	fmt.Fprintf(&w.story, "%9.3f  %s\n", w.now.Sub(start).Seconds(), fmt.Sprintf(format, args...))
}

// note is a line of its own.
func (w *world) note(text string) { fmt.Fprintf(&w.story, "\n# %s\n", text) }

// sessionName gives the same name to both ends.
func (w *world) sessionName(s *Session) string {
	if s == nil {
		return "no session"
	}
	index := s.remote
	if s.initiator {
		index = s.local
	}
	if w.names[index] == "" {
		w.names[index] = fmt.Sprint("session ", len(w.names)+1)
	}
	return w.names[index]
}

func (h *host) transmit(to netip.AddrPort, contents []byte) {
	w := h.w
	var target *host
	for _, t := range w.hosts {
		if t.addr == to {
			target = t
		}
	}
	name, message := "?", describe(contents)
	if target != nil {
		name = target.name
	}
	lost := target == nil || w.lose != nil && w.lose(h, target, message)
	if !w.brief || !strings.HasPrefix(message, "transport") && message != "keepalive" {
		w.say("%s -> %s  %s%s", h.name, name, message, map[bool]string{true: ", lost"}[lost])
	}
	if !lost {
		w.sent++
		w.air = append(w.air, datagram{w.now.Add(w.delay), w.sent, h.addr, h, to, bytes.Clone(contents)})
	}
}

func (h *host) carryOut(actions []Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case Send:
			for range a.Copies {
				h.transmit(h.peers[a.Peer].at, a.Packet)
			}
		case Reply:
			h.transmit(a.To, a.Packet)
		case Use:
			r := h.peers[a.Peer]
			if r == nil {
				continue
			}
			r.session = a.Session
			h.w.say("%s uses %s", h.name, h.w.sessionName(a.Session))
			staged := r.staged
			r.staged = nil
			for _, text := range staged {
				h.send(r.host, text)
			}
		case Move:
			r := h.peers[a.Peer]
			if r.at != a.Endpoint {
				h.w.say("%s: %s is at %s now", h.name, r.host.name, a.Endpoint)
			}
			r.at = a.Endpoint
		case GiveUp:
			r := h.peers[a.Peer]
			h.w.say("%s gives up on %s, drops %d", h.name, r.host.name, len(r.staged))
			r.staged = nil
		case Save:
			h.stamp = a.Stamp
			h.w.say("%s saves stamp, clock %+.1fs", h.name, a.Stamp.Sub(h.time()).Seconds())
		default:
			h.w.t.Fatalf("unknown action %T", a)
		}
	}
}

func (h *host) send(to *host, text string) {
	r, now := h.remote(to), h.time()
	if r.session == nil || !r.session.Alive(now) {
		r.staged = append(r.staged, text)
		h.carryOut(h.machine.Want(now, r.peer.Key))
		return
	}
	counter, ok := r.session.Reserve(1)
	if !ok {
		h.w.t.Fatalf("%s: no counter left", h.name)
	}
	h.transmit(r.at, r.session.SealPadded(make([]byte, 0, 2000), counter, []byte(text), Padded(len(text), 1420)))
	if r.session.NoteSent(now, true) {
		h.carryOut(h.machine.Want(now, r.peer.Key))
	}
}

func (h *host) receive(d datagram) {
	w, now := h.w, h.time()
	index, ok := SessionIndex(d.contents)
	if !ok {
		message := describe(d.contents)
		actions, err := h.machine.Receive(now, d.contents, d.from)
		switch {
		case errors.Is(err, ErrCopy):
			w.say("%s answers a copy", h.name)
		case err != nil:
			w.say("%s refuses %s: %v", h.name, message, err)
		}
		h.carryOut(actions)
		return
	}
	s := h.machine.Table().Lookup(index)
	if s == nil || !s.Alive(now) {
		w.say("%s does not know the session", h.name)
		return
	}
	packet, err := s.Open(d.contents)
	if err != nil {
		w.say("%s refuses %s: %v", h.name, w.sessionName(s), err)
		return
	}
	if r := h.peers[s.Peer()]; len(packet) > 0 {
		r.got++
		if text := strings.TrimRight(string(packet), "\x00"); !w.brief {
			w.say("%s got %q", h.name, text)
		}
	}
	if s.NoteReceived(now, len(packet) > 0, d.from) {
		h.carryOut(h.machine.Step(now))
	}
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	end := w.now.Add(d)
	for resting := 0; ; {
		next, act := end, (func())(nil)
		for _, h := range w.hosts {
			if at, ok := h.machine.Next(); ok && at.Add(-h.skew).Before(next) {
				next, act = at.Add(-h.skew), func() { h.carryOut(h.machine.Step(h.time())) }
			}
		}
		slices.SortFunc(w.air, func(a, b datagram) int { return cmp.Or(a.at.Compare(b.at), a.n-b.n) })
		if len(w.air) > 0 && w.air[0].at.Before(next) {
			d := w.air[0]
			next, act = d.at, func() {
				w.air = w.air[1:]
				for _, h := range w.hosts {
					if h.addr == d.to {
						h.receive(d)
					}
				}
			}
		}
		if act == nil {
			w.now = end
			return
		}
		if next.After(w.now) {
			w.now, resting = next, 0
		} else if resting++; resting > 100 {
			w.t.Fatalf("a machine does not rest:\n%s", &w.story)
		}
		act()
	}
}

// golden compares the story with testdata/NAME.txt.
func (w *world) golden(name string) {
	w.t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(w.story.String()), 0o644); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	if got := w.story.String(); got != string(want) {
		w.t.Errorf("the story is not that of %s (-update writes it):\n%s", path, diff(string(want), got))
	}
}

// diff shows the first lines that differ.
func diff(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	show := func(lines []string) string {
		return strings.Join(lines[max(0, min(i-3, len(lines))):min(i+5, len(lines))], "\n")
	}
	return fmt.Sprintf("line %d\n--- want\n%s\n--- got\n%s", i+1, show(a), show(b))
}

// describe names a datagram: "initiation", "keepalive", "transport 64".
func describe(datagram []byte) string {
	switch _, k, ok := classify(datagram); {
	case !ok:
		return "not a message"
	case k == transport && len(datagram) == Overhead:
		return "keepalive"
	case k == transport:
		return fmt.Sprintf("transport %d", len(datagram)-Overhead)
	default:
		return []string{initiation: "initiation", response: "response", cookieReply: "cookie reply"}[k]
	}
}
