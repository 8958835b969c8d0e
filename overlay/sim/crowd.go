package sim

import (
	"cmp"
	"container/heap"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/meshtest"
	"meshd/mesh/registry"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
)

// crowd is a mesh of membership machines, and of nothing else: no memberlist, no
// kernels, no engines, no goroutines.
//
//	Broadcast ──► to each of the others, late, twice or never
//	tables    ──► compared by pairs, every few seconds
//	disks     ──► keep what was saved, and nothing else
//
// So a day takes a second, leases may expire, and a seed tells the same story each
// time, to the last byte.
type crowd struct {
	// fixed at construction
	t     *testing.T
	begin time.Time
	mesh  *meshtest.Mesh
	token *trust.Token
	brief *trust.Token // for certificates that end by a clock that is a day ahead; nil: nobody gets one

	parsed registry.Parsed // by any host

	random *rand.Rand // of what befalls messages
	now    time.Time
	queue  queue
	seq    int
	hosts  []*machine
	cut    map[[2]int]bool
	loss   float64
	double float64
	round  time.Duration                   // after which a daemon takes all that has come meanwhile; 0: it takes each by itself
	heard  map[*machine]bool               // who has something to take
	asked  map[*machine]map[trust.Hash]int // certificates that are being fetched, by the number of the daemon

	claims      []claim                // of all, in the order in which they became known
	buried      map[mesh.NodeID]uint64 // up to which epoch somebody has said of them that they are gone
	revoked     map[mesh.NodeID]bool
	purge       bool               // somebody was revoked, or is being so
	revocations []trust.Revocation // that were handed in
	story       []line
	wrong       []string
}

// event is something that is due.
type event struct {
	at  time.Time
	seq int
	do  func()
}

type queue []event

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	return cmp.Or(q[i].at.Compare(q[j].at), q[i].seq-q[j].seq) < 0
}

func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

func (q *queue) Push(x any) { *q = append(*q, x.(event)) }

func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// crowdTTL is how long leases last in a crowd.
const crowdTTL = 2 * time.Minute

func newCrowd(t *testing.T, s *crowdSchedule) *crowd {
	t.Helper()
	c := &crowd{
		t: t, begin: time.Now(), now: time.Now(), mesh: meshtest.NewMesh(t, s.Network), random: rand.New(rand.NewPCG(s.Seed, 11)),
		cut: map[[2]int]bool{}, heard: map[*machine]bool{}, asked: map[*machine]map[trust.Hash]int{},
		buried: map[mesh.NodeID]uint64{}, revoked: map[mesh.NodeID]bool{},
	}
	c.token = c.mesh.Token(t, nil)
	if s.Short != nil {
		c.brief = c.mesh.Token(t, func(c *trust.Credential) { c.MaxCertLife = day / 2 })
	}
	for i, skew := range s.Skews {
		c.add(fmt.Sprintf("n%d", i), statedir.NewKeys(), skew).short = s.Short != nil && s.Short[i]
	}
	c.saveTables()
	return c
}

func (c *crowd) add(name string, keys statedir.Keys, skew time.Duration) *machine {
	h := &machine{c: c, number: len(c.hosts), name: name, keys: keys, id: idOf(keys.Identity), clock: clock{skew: skew}}
	c.hosts, c.asked[h] = append(c.hosts, h), map[trust.Hash]int{}
	return h
}

// after lets something happen later.
func (c *crowd) after(d time.Duration, do func()) {
	c.seq++
	heap.Push(&c.queue, event{c.now.Add(d), c.seq, do})
}

// pass lets time pass. It ends early at a violation.
func (c *crowd) pass(d time.Duration) {
	end := c.now.Add(d)
	for len(c.wrong) == 0 && len(c.queue) > 0 && !c.queue[0].at.After(end) {
		e := heap.Pop(&c.queue).(event)
		c.now = e.at
		e.do()
	}
	c.now = end
}

func (c *crowd) chance(p float64) bool { return p > 0 && c.random.Float64() < p }

// say adds to the story.
func (c *crowd) say(format string, args ...any) {
	c.story = append(c.story, line{at: c.now.Sub(c.begin), text: fmt.Sprintf(format, args...)})
}

func (c *crowd) violate(invariant, format string, args ...any) {
	text := invariant + ": " + fmt.Sprintf(format, args...)
	if len(c.wrong) < maxWrong {
		c.wrong = append(c.wrong, fmt.Sprintf("%.3fs %s", c.now.Sub(c.begin).Seconds(), text))
	}
	c.say("VIOLATION %s", text)
}

func (c *crowd) tell(out io.Writer) {
	for _, l := range c.story {
		fmt.Fprintf(out, "%9.3fs  %s\n", l.at.Seconds(), l.text)
	}
}

// saveTables has a daemon save its table now and then.
func (c *crowd) saveTables() {
	c.after(time.Second, func() {
		for _, h := range c.hosts {
			// The kernel's table of whoever sleeps is of no use to anybody.
			if h.runs() && h.c.random.IntN(30) == 0 {
				h.disk.table = h.m.Table()
			}
		}
		c.saveTables()
	})
}
