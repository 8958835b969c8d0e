package gossip

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh"
	"meshd/mesh/exchange"
)

// Who missed a broadcast, in a partition too short for anybody to be taken for
// dead, finds that by a digest. Members compare theirs through tunnels; so that who
// has no tunnel yet does as well, answers to memberlist's probes carry one: every
// node compares with another one about every two seconds, for a few bytes.
//
//	probe ──►  ◄── ack, digest      same: all is well
//	probe ──►  ◄── ack, digest      differs, and so did the one before: exchange
const (
	// differAt is how many answers in a row must differ: one alone may have
	// crossed a broadcast that is under way.
	differAt = 2
	// An exchange that leaves a difference is followed by rarer ones: one node
	// may keep what all others refuse, and no exchange changes that.
	firstDiffer = 4 * time.Second
	lastDiffer  = 30 * time.Second
)

// answer is another node's digest.
type answer struct {
	name   string
	at     netip.AddrPort
	digest exchange.Digest
}

// AckPayload implements [memberlist.PingDelegate].
func (i *instance) AckPayload() []byte {
	digest := i.told.Load().set.Digest()
	return digest[:]
}

// NotifyPingComplete implements [memberlist.PingDelegate]. A version that sends
// no digest is not compared with.
func (i *instance) NotifyPingComplete(other *memberlist.Node, _ time.Duration, payload []byte) {
	address, ok := netip.AddrFromSlice(other.Addr)
	if !ok || len(payload) != len(exchange.Digest{}) {
		return
	}
	i.heard(other.Name, netip.AddrPortFrom(address, other.Port), exchange.Digest(payload))
}

// heard hands another node's digest over.
func (i *instance) heard(name string, at netip.AddrPort, digest exchange.Digest) {
	select {
	case i.answers <- answer{name, plain(at), digest}:
	default: // the next one will do
	}
}

// comparison decides when a difference is worth an exchange.
type comparison struct {
	own    exchange.Digest // when last compared
	differ int             // answers in a row
	at     time.Time
	pause  time.Duration
}

func (c *comparison) note(now time.Time, own, other exchange.Digest) (worth bool) {
	switch {
	case own == other:
		*c = comparison{own: own, at: c.at}
		return false
	case own != c.own: // news came just now: more may be on its way
		c.own, c.differ = own, 0
	}
	c.differ++
	if c.differ < differAt || now.Before(c.at) {
		return false
	}
	c.pause = min(max(2*c.pause, firstDiffer), lastDiffer)
	c.at = now.Add(c.pause)
	return true
}

// compare exchanges with whoever has another set for good.
func (l *loop) compare(a answer) {
	if l.inst == nil || l.parting.left || !l.differs.note(time.Now(), l.told.Load().set.Digest(), a.digest) {
		return
	}
	l.exchange(a.name, a.at)
}

// exchange exchanges with a live node, beside the loop.
func (l *loop) exchange(name string, at netip.AddrPort) {
	inst := l.inst
	id, _ := parseName(name)
	l.tasks.Go(func() { _ = l.exchangeNow(inst, id, at) })
}

// exchangeNow exchanges through the tunnel with a member that was met there, and with
// any other node by gossip: the tunnel of one that joins may not be up yet, and that
// takes seconds to notice.
func (l *loop) exchangeNow(inst *instance, id mesh.NodeID, at netip.AddrPort) error {
	if l.inside != nil && (l.inside.Met(id) || !at.IsValid()) {
		if err := l.inside.With(l.ctx, id); err == nil || !at.IsValid() {
			return err
		}
	}
	_, err := inst.list.Join([]string{at.String()})
	if err != nil && inst.ctx.Err() == nil {
		l.say.say(slog.LevelDebug, "tables not exchanged", "err", err)
	}
	return err
}
