package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh/trust"
)

// Who missed a broadcast, in a partition too short for anybody to be taken for
// dead, would learn of it with the next exchange of tables, a minute later
// or more. So each answer to a memberlist probe carries a digest of the table:
// every node compares with another one about every two seconds, for a few bytes.
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

// digestOf tells tables apart, whatever order they are in. Admissions are left
// out: of many for one certificate each node keeps the first few that it heard,
// so those differ for ever. A node that lacks the only one shows it by the record,
// which it cannot believe.
func digestOf(table, admissions map[[sha256.Size]byte]bool) (sum uint64) {
	for h := range table {
		if !admissions[h] {
			sum ^= binary.BigEndian.Uint64(h[:])
		}
	}
	return sum
}

// isAdmission tells whether an object is one.
func isAdmission(object []byte) bool {
	kind, err := trust.KindOf(object)
	return err == nil && kind == trust.KindAdmission
}

// answer is another member's digest.
type answer struct {
	from   netip.AddrPort
	digest uint64
}

// AckPayload implements [memberlist.PingDelegate].
func (i *instance) AckPayload() []byte {
	return binary.BigEndian.AppendUint64(nil, i.digest.Load())
}

// NotifyPingComplete implements [memberlist.PingDelegate]. A version that sends
// no digest is not compared with.
func (i *instance) NotifyPingComplete(other *memberlist.Node, _ time.Duration, payload []byte) {
	address, ok := netip.AddrFromSlice(other.Addr)
	if !ok || len(payload) != 8 {
		return
	}
	select {
	case i.answers <- answer{plain(netip.AddrPortFrom(address, other.Port)), binary.BigEndian.Uint64(payload)}:
	default: // the next one will do
	}
}

// comparison decides when a difference is worth an exchange.
type comparison struct {
	own    uint64 // digest, when last compared
	differ int    // answers in a row
	at     time.Time
	pause  time.Duration
}

func (c *comparison) note(now time.Time, own, other uint64) (exchange bool) {
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

// compare exchanges tables with whoever has another one for good.
func (l *loop) compare(a answer) {
	if l.inst == nil || l.left || !l.differs.note(time.Now(), l.digest.Load(), a.digest) {
		return
	}
	l.exchange(a.from)
}

// exchange exchanges tables with a member, beside the loop.
func (l *loop) exchange(with netip.AddrPort) {
	inst := l.inst
	l.tasks.Go(func() { l.exchangeNow(inst, with) })
}

func (l *loop) exchangeNow(inst *instance, with netip.AddrPort) {
	if _, err := inst.list.Join([]string{with.String()}); err != nil && inst.ctx.Err() == nil {
		l.say.say(slog.LevelDebug, "tables not exchanged", "err", err)
	}
}

// asked is how many members are asked before a claim is held. One may lack the
// same news as we.
const asked = 2

// askAround exchanges tables with a few members, and then has the core told.
func (l *loop) askAround(ask uint64) {
	inst := l.inst
	if inst == nil || inst.count() == 0 {
		l.answered = ask // nobody is there
		return
	}
	live := inst.others()
	var chosen []netip.AddrPort
	for _, name := range l.some(asked) {
		if at, ok := live[name]; ok { // it may have gone meanwhile
			chosen = append(chosen, at)
		}
	}
	l.tasks.Go(func() {
		var wait sync.WaitGroup
		for _, a := range chosen {
			wait.Go(func() { l.exchangeNow(inst, a) })
		}
		wait.Wait()
		select {
		case l.asked <- ask:
		case <-l.ctx.Done():
		}
	})
}
