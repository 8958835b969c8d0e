// Package sim runs whole nodes in virtual time: real membership, real gossip,
// real decisions, over a network, kernels and tunnel engines in memory.
//
//	draw(seed) ──► schedule ──► world.play ──► world.settle
//	 (pure)        faults,        │  faults as      └─ all is well again, in time
//	               in order       │  they are due
//	                              └─ every packet, record and configuration is
//	                                 watched; what must never be is a violation
//
// The watchers believe nobody's tables: they know what each node has signed, and
// look at where packets come out. One seed always gives the same hosts and the
// same faults at the same times. The order of goroutines, and what memberlist
// draws, are not ours, so a rare failure may take some replays.
//
// A world lives inside a bubble.
package sim

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/cryptotest"
	"time"

	"meshd/mesh"
	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
	"meshd/overlay/tunnel/tunneltest"
)

// Ports of all nodes.
const (
	tunnelPort = 51880
	gossipPort = 51881
)

// world is a mesh with everything around it.
type world struct {
	// fixed at construction
	t      *testing.T
	begin  time.Time
	mesh   *meshtest.Mesh
	tokens map[admission]*trust.Token
	net    *meshtest.Network
	fabric *tunneltest.Fabric
	hosts  []*host
	truth  *truth

	// owned by the test's goroutine
	random  *rand.Rand
	cut     map[[2]int]bool // from host, to host
	sky     weather
	silence bool // gossip does not get through, packets do

	calm atomic.Bool // all is well: who is revoked reaches nobody

	mu    sync.Mutex // guards all below
	story []line
	wrong []string
	trips map[uint64]*trip
	// knocks are the far ends of streams that nobody has opened to yet.
	knocks map[uint64]net.Conn
	next   uint64
}

// line is one of the story.
type line struct {
	at   time.Duration
	who  string
	text string
}

// bubble runs a test in virtual time, with keys and serials drawn from the seed.
func bubble(t *testing.T, seed uint64, test func(*testing.T)) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed) // out here, since in a bubble it would end before the goroutines do
	meshtest.Bubble(t, test)
}

// newWorld makes the world of a schedule; nobody runs yet.
func newWorld(t *testing.T, s *schedule) *world {
	t.Helper()
	w := &world{
		t: t, begin: time.Now(), mesh: meshtest.NewMesh(t, s.Network), net: meshtest.NewNetwork(s.Seed),
		random: rand.New(rand.NewPCG(s.Seed, 1)), cut: map[[2]int]bool{}, trips: map[uint64]*trip{}, knocks: map[uint64]net.Conn{},
	}
	w.fabric = tunneltest.NewFabric(w.net)
	w.truth = newTruth(w)
	w.tokens = map[admission]*trust.Token{
		byToken:   w.mesh.Token(t, nil),
		byAnother: w.mesh.Token(t, nil),
		byPin:     w.mesh.Token(t, func(c *trust.Credential) { c.Rights.Pins = s.Network.Slot(s.Pin)[:1] }),
		byNobody: w.mesh.Token(t, func(c *trust.Credential) {
			c.NotBefore, c.NotAfter = w.begin.Add(-3*time.Hour), w.begin.Add(-time.Hour)
		}),
	}
	for i, h := range s.Hosts {
		w.hosts = append(w.hosts, newHost(w, i, h))
	}
	w.weather(s.Weather)
	w.rewire()
	return w
}

// failed tells whether something was seen that must never be.
func (w *world) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.wrong) > 0
}

// violations lists what was seen that must never be.
func (w *world) violations() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.wrong...)
}

// tell writes the story so far: the faults, or with all everything that a node
// has logged too.
func (w *world) tell(out io.Writer, all bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.story {
		if l.who == "" {
			fmt.Fprintf(out, "%9.3fs  %s\n", l.at.Seconds(), l.text)
		} else if all {
			fmt.Fprintf(out, "%9.3fs      %s: %s\n", l.at.Seconds(), l.who, l.text)
		}
	}
}

// say adds to the story; who is empty for what happens to the world.
func (w *world) say(who, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.story = append(w.story, line{time.Since(w.begin), who, fmt.Sprintf(format, args...)})
}

// maxWrong is how many violations are kept: the first one matters.
const maxWrong = 8

// violate notes what must never be.
func (w *world) violate(invariant, format string, args ...any) {
	text := fmt.Sprintf("%s: %s", invariant, fmt.Sprintf(format, args...))
	w.mu.Lock()
	defer w.mu.Unlock()
	at := time.Since(w.begin)
	if len(w.wrong) < maxWrong {
		w.wrong = append(w.wrong, fmt.Sprintf("%.3fs %s", at.Seconds(), text))
		w.story = append(w.story, line{at, "", "VIOLATION " + text})
	}
}

// weather is how the underlay treats packets.
type weather struct {
	Latency, Jitter time.Duration
	Loss, Duplicate float64
}

func (x weather) String() string {
	return fmt.Sprintf("latency %s to %s, %.0f %% lost, %.0f %% twice",
		x.Latency.Round(time.Millisecond), (x.Latency + x.Jitter).Round(time.Millisecond), 100*x.Loss, 100*x.Duplicate)
}

func (w *world) weather(x weather) {
	w.sky = x
	w.net.SetLatency(x.Latency)
	w.net.SetJitter(x.Jitter)
	w.net.SetLoss(x.Loss)
	w.net.SetDuplicates(x.Duplicate)
}

// rewire makes the underlay as cut, silence and the hosts' addresses say.
func (w *world) rewire() {
	where := map[netip.Addr]int{}
	for _, h := range w.hosts {
		for _, a := range h.Addresses() {
			where[a] = h.number
		}
	}
	cut, silence := make(map[[2]int]bool, len(w.cut)), w.silence
	for pair := range w.cut {
		cut[pair] = true
	}
	w.net.Block(func(from, to netip.AddrPort) bool {
		a, here := where[from.Addr()]
		b, there := where[to.Addr()]
		return !here || !there || cut[[2]int{a, b}] || silence && to.Port() == gossipPort
	})
}

// storyLog makes what a node logs part of the story.
type storyLog struct{ l *life }

func (l storyLog) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{
		Level: slog.LevelInfo,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

func (l storyLog) Write(b []byte) (int, error) {
	if !l.l.dead.Load() {
		l.l.h.w.say(l.l.h.name, "%s", strings.TrimSuffix(string(b), "\n"))
	}
	return len(b), nil
}

// address is a host's n-th on the underlay.
func address(host, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(n), byte(host + 1)})
}

// controlOf is a node's control address.
func (w *world) controlOf(id mesh.NodeID) netip.Addr {
	return mesh.ControlAddr(w.mesh.Charter.ID(), id)
}
