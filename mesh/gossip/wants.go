package gossip

import (
	"cmp"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"meshd/mesh/trust"
)

const (
	// firstWant leaves a certificate that is under way some time to arrive, but
	// a node that joins should not wait for long.
	firstWant = 50 * time.Millisecond
	// crowdWant is the same while so many are missing that tables are exchanged:
	// in a large mesh that starts, or where two halves meet.
	crowdWant = 2 * time.Second
	// together is how much too early a request may be to leave with others.
	together = 250 * time.Millisecond
	// firstFetch and longestFetch bound the pause between exchanges for want of
	// many certificates.
	firstFetch, longestFetch = time.Second, time.Minute
	// longestWant is the longest pause between two requests for one certificate.
	longestWant = 30 * time.Second
	// maxWanted bounds what is asked for at a time. Forged objects may refer to
	// certificates that do not exist, and must not crowd out the others for
	// ever: what is no longer missing, or waits longest, makes room.
	maxWanted = 1024
)

// wants remembers which certificates were asked for, and when to ask again.
type wants map[trust.Hash]*want

type want struct {
	due   time.Time
	pause time.Duration
}

// set says what is missing now. There is room for the first always.
func (w wants) set(missing []trust.Hash, now time.Time) {
	still := make(map[trust.Hash]bool, len(missing))
	for _, h := range missing {
		still[h] = true
	}
	maps.DeleteFunc(w, func(h trust.Hash, _ *want) bool { return !still[h] })
	first := firstWant
	if len(missing) > maxHashes {
		first = crowdWant
	}
	for i, h := range missing {
		if w[h] == nil && (i == 0 || len(w) < maxWanted) {
			w[h] = &want{due: now.Add(first), pause: 4 * firstWant}
		}
	}
}

// next is when the earliest request is due.
func (w wants) next() (at time.Time, ok bool) {
	for _, x := range w {
		if !ok || x.due.Before(at) {
			at, ok = x.due, true
		}
	}
	return at, ok
}

// take gives up to maxHashes certificates to ask for now, those asked for least
// often first, and backs off from each.
func (w wants) take(now time.Time) []trust.Hash {
	if next, ok := w.next(); !ok || next.After(now) {
		return nil
	}
	var due []trust.Hash
	for h, x := range w {
		if !x.due.After(now.Add(together)) {
			due = append(due, h)
		}
	}
	slices.SortFunc(due, func(a, b trust.Hash) int { return cmp.Compare(w[a].pause, w[b].pause) })
	due = due[:min(len(due), maxHashes)]
	for _, h := range due {
		x := w[h]
		x.due = now.Add(jitter(x.pause/2, x.pause))
		x.pause = min(2*x.pause, longestWant)
	}
	return due
}

// request sends wants that are due to two random members: one may lack what we want.
func (l *loop) request(now time.Time) {
	if l.inst == nil || l.inst.count() == 0 {
		return
	}
	l.fetch(now)
	hashes := l.wants.take(now)
	if len(hashes) == 0 {
		return
	}
	for _, name := range l.some(2) {
		l.send(name, encodeWant(l.inst.name, hashes))
	}
}

// fetching is when tables are exchanged for want of many certificates.
type fetching struct {
	at    time.Time // not before, while pause is not 0
	pause time.Duration
}

// fetch exchanges tables with a member while more is missing than one request may
// ask for. In a mesh of 100 that starts, requests for each certificate as it was
// missed took more than all else together. Nothing is missing for long but what
// somebody made up, so it is done less and less often.
func (l *loop) fetch(now time.Time) {
	switch {
	case len(l.wants) <= maxHashes:
		l.fetching.pause = 0
		return
	case l.fetching.pause == 0:
		l.fetching.pause = firstFetch
	case now.Before(l.fetching.at):
		return
	default:
		for _, name := range l.some(1) { // none, if the last one has gone meanwhile
			if at, ok := l.inst.at(name); ok {
				l.exchange(name, at)
			}
		}
		l.fetching.pause = min(2*l.fetching.pause, longestFetch)
	}
	l.fetching.at = now.Add(jitter(l.fetching.pause/2, l.fetching.pause))
}

// some draws up to n live instances: of members, as far as there are any. Whoever
// has the key can make the others up.
func (l *loop) some(n int) []string {
	names := slices.Collect(maps.Keys(l.inst.others()))
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(l.roster.strangeness(a), l.roster.strangeness(b)) })
	return names[:min(n, len(names))]
}

// answer sends what a member asked for.
func (l *loop) answer(m message) {
	if l.inst == nil || m.from == l.inst.name {
		return
	}
	if objects := l.opt.Core.Lookup(m.hashes...); len(objects) > 0 {
		l.send(m.from, encodeObjects(maxAnswer, objects...))
	}
}

// send delivers by stream, beside the loop. If too much is on its way it is
// left out: who wants something asks again. Strangers, whom nobody may be behind,
// keep no member waiting.
func (l *loop) send(name string, msg []byte) {
	slots := l.slots[l.roster.strangeness(name)]
	select {
	case slots <- struct{}{}:
	default:
		return
	}
	inst := l.inst
	l.tasks.Go(func() {
		defer func() { <-slots }()
		if err := inst.send(name, msg); err != nil && inst.ctx.Err() == nil {
			l.say.say(slog.LevelDebug, "message not delivered", "err", err)
		}
	})
}
