package native

import (
	"errors"
	"os"
	"time"

	"meshd/overlay/udp"
	"meshd/tun/device"
	"meshd/tun/rawio"
)

const (
	// turnBytes is how much a worker moves one way before it looks at the other: who
	// sends much has to hear what was received of it.
	turnBytes = 128 << 10
	// leastTurn is what a packet counts for at least, for its fixed cost.
	leastTurn = 2 << 10
	// pauseAfterError is how long a worker rests, both ways, when the queue or a
	// socket is in trouble.
	pauseAfterError = 10 * time.Millisecond
)

// worker moves the packets of one TUN queue and of its sockets, both ways. Answers,
// such as acknowledgements, leave while it is awake, and it takes one thread for
// what would wake two.
type worker struct {
	e       *Engine
	waiter  *rawio.Waiter
	sources []source // in the order of the waiter's files
}

// source is where packets come from: a [sender] or a [receiver].
type source interface {
	// turn moves packets for a while, and tells whether there were any.
	turn() (busy bool, err error)
}

func newWorker(e *Engine, q *device.Queue, g *udp.Group, queue int) (*worker, error) {
	w := &worker{e: e, sources: []source{newSender(e, q, g, queue)}}
	files := []*rawio.File{q.File()}
	for _, s := range []*udp.Socket{g.IPv4(queue), g.IPv6(queue)} {
		if s != nil {
			w.sources = append(w.sources, newReceiver(e, q, s))
			files = append(files, s.File())
		}
	}
	var err error
	w.waiter, err = rawio.NewWaiter(files...)
	return w, err
}

// stop ends a wait, and with the queue and the sockets closed, the worker.
func (w *worker) stop() { _ = w.waiter.Close() }

func (w *worker) run() {
	err := w.work()
	w.stop() // nobody else may have done so
	if !errors.Is(err, os.ErrClosed) {
		w.e.fail(err)
	}
}

// work moves packets until a source ends.
func (w *worker) work() error {
	for {
		ready, err := w.waiter.Wait(-1)
		if err != nil {
			return err
		}
		for busy := true; busy; ready = rawio.All {
			if busy, err = w.turns(ready); err != nil {
				return err
			}
		}
	}
}

// turns gives every source that is ready one turn. If one of them was busy all may
// have something now: what was delivered has been answered.
func (w *worker) turns(ready rawio.Ready) (busy bool, err error) {
	for i, s := range w.sources {
		if !ready.Has(i) {
			continue
		}
		b, err := s.turn()
		if err != nil {
			return false, err
		}
		busy = busy || b
	}
	return busy, nil
}
