package unixsock

import (
	"net"
	"net/http"
	"sync"
)

// Bound is for the ConnState of an [http.Server], and keeps it at so many
// connections: of too many, the one that has been idle for longest goes, so idle ones
// cannot lock anybody out.
func Bound(most int) func(net.Conn, http.ConnState) {
	return (&bound{most: most, idle: map[net.Conn]uint64{}, all: map[net.Conn]bool{}}).changed
}

type bound struct {
	most int // fixed at construction

	mu   sync.Mutex // guards all below
	all  map[net.Conn]bool
	idle map[net.Conn]uint64 // when it became idle, in steps
	step uint64
}

func (b *bound) changed(conn net.Conn, state http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.idle, conn)
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(b.all, conn)
		return
	case http.StateNew, http.StateIdle:
		b.step++
		b.idle[conn] = b.step
	case http.StateActive:
	}
	b.all[conn] = true
	if len(b.all) <= b.most {
		return
	}
	oldest := conn // all others are busy: the newcomer goes
	for c, step := range b.idle {
		if at, ok := b.idle[oldest]; !ok || step < at {
			oldest = c
		}
	}
	delete(b.all, oldest)
	delete(b.idle, oldest)
	oldest.Close()
}
