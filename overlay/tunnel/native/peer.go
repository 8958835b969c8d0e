package native

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/wg"
	"meshd/overlay/udp"
)

// peer is what workers and control know of one peer. It lives as long as the
// peer is configured.
type peer struct {
	// Read by workers without a lock.
	session atomic.Pointer[wg.Session] // to send with; nil: none
	path    atomic.Pointer[path]       // where to send to; nil: unknown
	rx, tx  atomic.Uint64              // bytes of datagrams
	shaken  atomic.Pointer[time.Time]  // when the session in use was made
	// needsSession: a worker wants a handshake.
	needsSession atomic.Bool
	suite        atomic.Pointer[string] // its name
	mtu          atomic.Int32           // of the path to it; 0: at least that of the device

	mu     sync.Mutex
	staged staged    // guarded by mu; empty while there is a session that is alive
	asked  time.Time // guarded by mu: when a session was last asked for; zero: there is one

	// owned by control
	config  tunnel.Peer
	tries   int            // initiations since something was heard
	learned netip.AddrPort // an endpoint that is not among those of config, but was good
	seen    uint64         // rx when tries was 0
}

// path is where a peer is, and which of our addresses it knows.
type path struct {
	remote netip.AddrPort
	local  udp.Source
}

// configure takes over what is wanted of the peer. Where it is now stays, if it is
// not inside the mesh, until there are other candidates.
func (p *peer) configure(want tunnel.Peer, inside []netip.Prefix) {
	changed := !slices.Equal(p.config.Endpoints, want.Endpoints)
	p.config = want
	p.suite.Store(&want.Suite)
	p.mtu.Store(int32(want.MTU))
	if contains(inside, p.learned.Addr()) {
		p.learned = netip.AddrPort{}
	}
	lost := contains(inside, p.endpoint().Addr())
	switch {
	case len(want.Endpoints) == 0 && lost:
		p.moveTo(netip.AddrPort{})
	case lost, changed && len(want.Endpoints) > 0 && !slices.Contains(want.Endpoints, p.endpoint()):
		if !lost {
			p.learned = p.endpoint() // tried again in its turn
		}
		p.tries = 0
		p.moveTo(want.Endpoints[0])
	}
}

// moveTo sets where the peer is. Our address stays only with the place.
func (p *peer) moveTo(remote netip.AddrPort) {
	old := p.path.Load()
	switch {
	case !remote.IsValid():
		p.path.Store(nil)
	case old == nil || old.remote != remote:
		p.path.Store(&path{remote: remote})
	}
}

// came notes by which of our addresses the peer reaches us.
func (p *peer) came(remote netip.AddrPort, local udp.Source) {
	old := p.path.Load()
	if old != nil && old.remote == remote && old.local != local {
		p.path.CompareAndSwap(old, &path{remote, local})
	}
}

// carries gives the longest packet that gets to the peer, or from it, from a device
// of that MTU.
func (p *peer) carries(mtu int) int {
	if m := int(p.mtu.Load()); m != 0 {
		return min(m, mtu)
	}
	return mtu
}

// endpoint is where the peer is.
func (p *peer) endpoint() netip.AddrPort {
	if at := p.path.Load(); at != nil {
		return at.remote
	}
	return netip.AddrPort{}
}

// next is the endpoint to try after the present one: all candidates in turn, and
// what was learned.
func (p *peer) next() netip.AddrPort {
	now := p.endpoint()
	candidates := p.config.Endpoints
	if now.IsValid() && !slices.Contains(candidates, now) {
		p.learned = now
	}
	if p.learned.IsValid() && !slices.Contains(candidates, p.learned) {
		candidates = append(slices.Clone(candidates), p.learned)
	}
	if len(candidates) == 0 {
		return now
	}
	return candidates[(slices.Index(candidates, now)+1)%len(candidates)]
}

// maxStaged is how many packets wait for a session: what a few flows send before
// they wait themselves. Beyond, the oldest goes, which is the least of use.
const maxStaged = 32

// staged are packets that wait, copied, the oldest first.
type staged struct {
	packets [][]byte
}

// add keeps a copy of a packet, and tells whether another had to go, whose memory
// it gets: who floods a peer that is gone allocates nothing.
func (s *staged) add(packet []byte) (dropped bool) {
	var room []byte
	if len(s.packets) == maxStaged {
		room = s.packets[0][:0]
		s.packets = append(s.packets[:0], s.packets[1:]...)
		dropped = true
	}
	s.packets = append(s.packets, append(room, packet...))
	return dropped
}

// askEvery is how often a session is asked for while packets wait: who floods a
// peer that is gone keeps control from nothing.
const askEvery = time.Second

// stage keeps a packet until there is a session, unless there is one now. ask
// tells that it is time to ask for one.
func (p *peer) stage(packet []byte, now time.Time) (s *wg.Session, dropped, ask bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.session.Load(); s != nil && s.Alive(now) {
		return s, false, false
	}
	if ask = p.asked.IsZero() || now.Sub(p.asked) >= askEvery; ask {
		p.asked = now
	}
	return nil, p.staged.add(packet), ask
}

// use sends with another session from now on, and gives what waited for it.
func (p *peer) use(s *wg.Session) [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session.Store(s)
	p.asked = time.Time{}
	if s == nil {
		return nil
	}
	at := s.Created()
	p.shaken.Store(&at)
	return p.unstage()
}

// unstage gives up what waits.
func (p *peer) unstage() [][]byte {
	waited := p.staged.packets
	p.staged.packets = nil
	return waited
}

// giveUp drops what waits, and tells how much.
func (p *peer) giveUp() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.unstage())
}
