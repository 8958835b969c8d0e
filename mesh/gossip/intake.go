package gossip

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"meshd/mesh/exchange"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

// intake is what came, so that the core is given each object once, and each is relayed
// once.
type intake struct {
	known   map[[sha256.Size]byte]bool // hashes of the table's objects
	seen    recent                     // objects that came, for relaying each once
	updates updates
}

// receive hands one message to the core.
func (l *loop) receive(m message) {
	defer l.inbox.done(m)
	switch m.kind {
	case msgObjects:
		for _, o := range m.objects {
			if !l.intake.updates.tooMany(o, time.Now()) && l.take(o) {
				l.pass(o)
			}
		}
	case msgWant:
		l.answer(m)
	case msgState:
		if l.seals.gaveUp(m.key) {
			return // it was read just before: who sends with that key would become a member, and hear nothing
		}
		l.takeAll(m.objects, maxSpread)
		l.opt.Core.Synced()
	}
}

// takeAll gives what an exchange has brought to the core, but for records of who says
// too much, and relays of what is news as many objects as it may. It tells what the core
// has had, and how many more may be relayed.
func (l *loop) takeAll(objects [][]byte, spread int) (given [][]byte, _ int) {
	for _, o := range objects {
		if l.intake.updates.tooManyRecords(o, time.Now()) {
			continue
		}
		given = append(given, o)
		if l.take(o) && spread > 0 {
			l.pass(o)
			spread--
		}
	}
	return given, spread
}

// Set implements [exchange.Objects].
func (l *loop) Set() *exchange.Set { return l.told.Load().set }

// Get implements [exchange.Objects].
func (l *loop) Get(ctx context.Context, hashes []trust.Hash) (out [][]byte, err error) {
	err = l.Do(ctx, func(time.Time) {
		if l.saver.saved() { // else something might rest on what is not
			out = l.opt.Core.Lookup(hashes...)
		}
	})
	return out, err
}

// Put implements [exchange.Objects]. Others get their turn after each batch, and no
// object waits in a queue.
func (l *loop) Put(ctx context.Context, objects [][]byte, whole bool) (decided [][]byte, err error) {
	spread := maxSpread
	for rest := newest(objects); ; {
		now, later := rest[:min(len(rest), batch)], rest[min(len(rest), batch):]
		err := l.Do(ctx, func(time.Time) {
			var given [][]byte
			if given, spread = l.takeAll(now, spread); whole && len(later) == 0 {
				l.opt.Core.Synced()
			}
			decided = append(decided, given...)
		})
		if err != nil || len(later) == 0 {
			return decided, err
		}
		rest = later
	}
}

// take gives one object to the core, and tells whether it is news.
func (l *loop) take(object []byte) bool {
	hash := sha256.Sum256(object)
	now := time.Now()
	if l.taken.has(hash, now) {
		return false
	}
	if l.intake.known[hash] {
		l.taken.add(hash)
		return false
	}
	err := l.opt.Core.Receive(object)
	if errors.Is(err, registry.ErrStale) {
		l.taken.add(hash)
		return false // whoever lacks what is newer gets that
	}
	if err != nil {
		l.say.say(slog.LevelWarn, "object refused", "err", err)
		return false
	}
	l.speech.stale = true
	if kind, _ := trust.KindOf(object); kind == trust.KindRevocation {
		l.speech.urgent = true // gossip misses one member in 3000, which must not wait
	}
	l.taken.add(hash)
	return l.intake.seen.add(hash)
}

// pass relays an object that is news, so that a broadcast reaches all: its
// author sends it to a few members only.
func (l *loop) pass(object []byte) {
	if !l.intake.updates.note(object, time.Now()) {
		return // whoever lacks it finds that by a digest
	}
	if l.inst != nil && len(object) <= trust.MaxBroadcast {
		l.inst.relay(object)
	}
}

// recent remembers the last few thousand hashes.
type recent struct{ young, old map[[sha256.Size]byte]bool }

// recentSize is how many are remembered at least: all objects of a large mesh,
// in 300 KB.
const recentSize = 4096

// has tells whether a hash is remembered.
func (r *recent) has(h [sha256.Size]byte) bool { return r.young[h] || r.old[h] }

// takenFor is how long an object that the core took in, or found outdated, is not
// given to it again. Everybody sends an object to everybody about eight times within
// some seconds. What the core forgets in that time comes again later.
const takenFor = 10 * time.Second

// taken are the objects that the core has had of late. It is safe for concurrent use.
type taken struct {
	mu    sync.Mutex
	have  recent
	since time.Time
}

func (t *taken) has(h [sha256.Size]byte, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.since) >= takenFor {
		t.have, t.since = recent{}, now
	}
	return t.have.has(h)
}

func (t *taken) hasAll(objects [][]byte, now time.Time) bool {
	return !slices.ContainsFunc(objects, func(o []byte) bool { return !t.has(sha256.Sum256(o), now) })
}

func (t *taken) add(h [sha256.Size]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.have.add(h)
}

// add tells whether a hash was not remembered.
func (r *recent) add(h [sha256.Size]byte) bool {
	if r.has(h) {
		return false
	}
	if r.young == nil || len(r.young) >= recentSize {
		r.young, r.old = map[[sha256.Size]byte]bool{}, r.young
	}
	r.young[h] = true
	return true
}
