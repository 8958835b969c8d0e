package gossip

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"meshd/mesh/trust"
)

const (
	// firstWant leaves a certificate that is under way some time to arrive, but
	// a node that joins should not wait for long.
	firstWant = 50 * time.Millisecond
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

// set says what is missing now.
func (w wants) set(missing []trust.Hash, now time.Time) {
	still := make(map[trust.Hash]bool, len(missing))
	for _, h := range missing {
		still[h] = true
	}
	maps.DeleteFunc(w, func(h trust.Hash, _ *want) bool { return !still[h] })
	for _, h := range missing {
		if w[h] == nil && len(w) < maxWanted {
			w[h] = &want{due: now.Add(firstWant), pause: 4 * firstWant}
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
	var due []trust.Hash
	for h, x := range w {
		if !x.due.After(now) {
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
