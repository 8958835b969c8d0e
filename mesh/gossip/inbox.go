package gossip

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// inboxSize holds a burst while the core verifies: 50 us each, so 256 are
	// worked off in about 13 ms.
	inboxSize = 256
	// inboxBytes bounds what the messages weigh that wait there: some answers,
	// or all the broadcasts that fit.
	inboxBytes = 4 << 20
	// inboxTables is how many whole tables wait there at most.
	inboxTables = 3
	// mergeWait bounds how long an exchange waits for room. memberlist holds one
	// goroutine for each, and the other side is done already.
	mergeWait = 5 * time.Second
)

// inbox is what waits for the loop. Members may flood it: it is bounded in
// number and in bytes, and tables do not crowd out broadcasts, nor these them.
type inbox struct {
	waiting chan message
	bytes   atomic.Int64  // of all but tables
	tables  chan struct{} // one for each table
}

func newInbox() *inbox {
	return &inbox{waiting: make(chan message, inboxSize+inboxTables), tables: make(chan struct{}, inboxTables)}
}

// put takes a message in if there is room for it at once.
func (b *inbox) put(m message) bool {
	if b.bytes.Add(int64(m.size)) > inboxBytes || len(b.waiting) >= inboxSize {
		b.bytes.Add(-int64(m.size))
		return false
	}
	select {
	case b.waiting <- m:
		return true
	default: // others were faster
		b.bytes.Add(-int64(m.size))
		return false
	}
}

// putTable waits for room for a whole table; read gives it.
func (b *inbox) putTable(ctx context.Context, read func() message) bool {
	ctx, cancel := context.WithTimeout(ctx, mergeWait)
	defer cancel()
	select {
	case b.tables <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	select {
	case b.waiting <- read():
		return true
	case <-ctx.Done():
		<-b.tables
		return false
	}
}

// done gives the room of a message back, which came out of waiting.
func (b *inbox) done(m message) {
	if m.kind == msgState {
		<-b.tables
		return
	}
	b.bytes.Add(-int64(m.size))
}
