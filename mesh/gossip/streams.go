package gossip

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// A message is read whole before it can be told whether its key is right, so what
// may come in is bounded here. The buffer doubles as it grows, which leaves
// smaller ones behind, and the garbage collector is late: under a flood memory
// grows by 6 bytes for each that is let in, 43 MiB with both pools full.
const (
	// strangerBytes is what all streams from strangers may bring. It is above
	// maxStreamBytes, so that any table gets in while nobody else wants the
	// room; one of 200 members weighs 150 KiB.
	strangerBytes = 3 << 20
	// memberBytes is the same for members' streams, and those that we opened.
	// No stranger can use it up.
	memberBytes = 4 << 20
	// maxStreamBytes is a whole table, and memberlist's own list of 2000 members
	// with 250 bytes each.
	maxStreamBytes = maxState + 512<<10
	// strangerStreams and memberStreams bound what others hold open, at 20 KB
	// each. Members exchange over streams that last milliseconds.
	strangerStreams = 32
	memberStreams   = 64
	// strangerWait is how long a stranger may take to say all. Half of what
	// memberlist grants, it is enough for 200 KiB on a line of 320 kbit/s.
	strangerWait = 5 * time.Second
)

// errNoRoom is what reading from a stream gives that had to make room.
var errNoRoom = errors.New("stream is too long, or others need its room")

// streams are the open streams of one transport, in two pools. When a pool is
// full, the host that uses most of it loses its oldest stream. Members are brief,
// so it takes many hosts to keep one of them out.
type streams struct {
	mu        sync.Mutex // guards all below, and the streams' bytes
	freed     *sync.Cond // something was closed
	open      map[*stream]bool
	closed    bool
	opened    uint64 // so far
	strangers pool
	members   pool
}

// pool is what some streams share.
type pool struct {
	maxStreams int
	maxBytes   int64

	streams int   // that others have opened
	bytes   int64 // that came in over those which are open
	held    int64 // and over those that lost their room, until memberlist lets go
}

func newStreams() *streams {
	o := &streams{
		open:      map[*stream]bool{},
		strangers: pool{maxStreams: strangerStreams, maxBytes: strangerBytes},
		members:   pool{maxStreams: memberStreams, maxBytes: memberBytes},
	}
	o.freed = sync.NewCond(&o.mu)
	return o
}

// stream is a connection that holds room in a pool until it is closed.
type stream struct {
	net.Conn
	// fixed when it is opened
	of     *streams
	pool   *pool
	host   netip.Addr // at the other end, or its network
	ours   bool       // we opened it
	number uint64     // in order of opening
	until  time.Time  // when all must be said; zero: as memberlist likes

	bytes int64 // that came in and are held; guarded by of.mu
}

// dialed takes in a connection that we opened.
func (o *streams) dialed(conn net.Conn, host netip.Addr) (*stream, bool) {
	return o.add(&stream{Conn: conn, pool: &o.members, host: host, ours: true})
}

// accepted takes in a connection that a host opened.
func (o *streams) accepted(conn net.Conn, host netip.Addr, member bool) (*stream, bool) {
	if member {
		return o.add(&stream{Conn: conn, pool: &o.members, host: host})
	}
	if host.Is6() {
		// Whoever has one address there has them all.
		host = netip.PrefixFrom(host, 64).Masked().Addr()
	}
	return o.add(&stream{Conn: conn, pool: &o.strangers, host: host, until: time.Now().Add(strangerWait)})
}

func (o *streams) add(s *stream) (*stream, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		_ = s.Conn.Close()
		return nil, false
	}
	o.opened++
	s.of, s.number = o, o.opened
	o.open[s] = true
	if !s.ours {
		s.pool.streams++
	}
	for s.pool.streams > s.pool.maxStreams {
		o.dropLocked(o.victimLocked(s.pool, func(s *stream) int64 {
			if s.ours {
				return 0
			}
			return 1
		}))
	}
	return s, true
}

// took notes what came in over a stream, waits for its room, and tells whether
// the stream may go on.
func (o *streams) took(s *stream, n int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.open[s] {
		return false
	}
	s.bytes += int64(n)
	s.pool.bytes += int64(n)
	s.pool.held += int64(n)
	if s.bytes > maxStreamBytes {
		o.dropLocked(s)
	}
	for s.pool.bytes > s.pool.maxBytes {
		o.dropLocked(o.victimLocked(s.pool, func(s *stream) int64 { return s.bytes }))
	}
	for o.open[s] && s.pool.held > s.pool.maxBytes {
		o.freed.Wait()
	}
	return o.open[s]
}

// victimLocked finds the oldest stream of the host whose streams weigh most.
func (o *streams) victimLocked(p *pool, weight func(*stream) int64) *stream {
	sums := map[netip.Addr]int64{}
	for s := range o.open {
		if s.pool == p {
			sums[s.host] += weight(s)
		}
	}
	var victim *stream
	for s := range o.open {
		if s.pool != p || weight(s) == 0 {
			continue
		}
		if victim == nil || sums[s.host] > sums[victim.host] || sums[s.host] == sums[victim.host] && s.number < victim.number {
			victim = s
		}
	}
	return victim
}

// dropLocked closes a connection. Whoever reads from it notices, and lets go of
// what it has read.
func (o *streams) dropLocked(s *stream) {
	if !o.open[s] {
		return
	}
	delete(o.open, s)
	s.pool.bytes -= s.bytes
	if !s.ours {
		s.pool.streams--
	}
	_ = s.Conn.Close()
	o.freed.Broadcast()
}

// close drops all, and whatever comes later.
func (o *streams) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for s := range o.open {
		o.dropLocked(s)
	}
}

// Read implements [net.Conn].
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if n > 0 && !s.of.took(s, n) {
		return 0, errNoRoom
	}
	return n, err
}

// SetDeadline implements [net.Conn]. memberlist gives each exchange a deadline
// when it begins, and one more when it has read all and answers.
func (s *stream) SetDeadline(at time.Time) error {
	reading := at
	if !s.until.IsZero() && (at.IsZero() || at.After(s.until)) {
		reading = s.until
	}
	return errors.Join(s.SetReadDeadline(reading), s.SetWriteDeadline(at))
}

// Close implements [net.Conn].
func (s *stream) Close() error {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.dropLocked(s)
	s.pool.held -= s.bytes
	s.bytes = 0
	s.of.freed.Broadcast()
	return nil
}
