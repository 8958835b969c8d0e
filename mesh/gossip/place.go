package gossip

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// place is where members reach us.
type place struct {
	address  netip.AddrPort
	createAt time.Time // no instance before
	renewAt  time.Time // no other name at the same address before
}

// move notes the address at which members reach us, unless it tells nothing.
func (l *loop) move(address netip.AddrPort) {
	if !address.IsValid() || address.Addr().IsUnspecified() {
		return
	}
	if address.Port() == 0 {
		if l.sockets == nil {
			return
		}
		address = netip.AddrPortFrom(address.Addr(), l.sockets.port())
	}
	l.place.address = plain(address)
}

// wornOut tells whether there has to be another name at the same address.
func (l *loop) wornOut() bool { return l.inst != nil && !l.parting.left && l.inst.said.worn.Load() }

// connect makes the memberlist instance, or a new one after a move, or when its name is
// worn out.
func (l *loop) connect(now time.Time) {
	if !l.place.address.IsValid() || now.Before(l.place.createAt) {
		return
	}
	if l.inst != nil {
		renew := l.wornOut() && !now.Before(l.place.renewAt)
		if l.parting.left || l.inst.address == l.place.address && !renew {
			return
		}
		if renew {
			l.place.renewAt, l.search.gently = now.Add(renewEvery), l.roster.others > atOnce
			l.say.say(slog.LevelWarn, "somebody with the gossip key forges what is said of this node, taking a new name in gossip")
		}
		l.inst.shutdown()
		l.inst = nil
	}
	inst, err := l.create(l.place.address)
	if err != nil {
		l.place.createAt = now.Add(createAgain)
		l.say.say(slog.LevelError, "gossip does not start, trying on", "address", l.place.address, "err", err)
		return
	}
	l.opt.Log.Debug("gossip runs", "name", inst.name, "address", inst.address)
	inst.admit(l.roster.admitted)
	l.inst, l.search.at = inst, now
	clear(l.book.reached)
	l.running.Store(inst)
	for _, o := range l.speech.said {
		inst.publish(o)
	}
	l.look()
}

func (l *loop) create(address netip.AddrPort) (*instance, error) {
	var t memberlist.Transport
	var err error
	if l.sockets != nil {
		t, err = l.sockets.transport(address)
	} else {
		t, err = l.opt.Transport(address)
	}
	if err != nil {
		return nil, err
	}
	return l.newInstance(address, t)
}

// look notes who is live.
func (l *loop) look() {
	if l.inst == nil {
		return
	}
	now, live := time.Now(), slices.Collect(maps.Values(l.inst.others()))
	wasAlone := !l.book.alone.IsZero()
	l.book.see(live, now)
	if !wasAlone && len(live) == 0 {
		l.search.at = now // the pause was for a node with company
	}
	if l.sockets != nil {
		l.sockets.know(live, l.book.known)
	}
}
