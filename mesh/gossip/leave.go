package gossip

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"meshd/mesh"
)

// parting is this node's leaving.
type parting struct {
	left    bool
	waiting []chan error // who asked for it
	goodbye sync.WaitGroup
	parted  chan struct{} // goodbye was said
	last    *mesh.View    // to be shown then: by it the tunnels go, in which that is said
}

// beginLeave gives up membership, unless that could not be remembered: then all
// stays as it is.
func (l *loop) beginLeave(done chan error) {
	if err := l.opt.Store.Check(); err != nil && !l.parting.left {
		done <- fmt.Errorf("leave mesh: %w", err)
		return
	}
	l.opt.Core.Leave(time.Now())
	l.parting.waiting, l.parting.left = append(l.parting.waiting, done), true
}

// sayGoodbye tells some members by stream and through tunnels what the broadcast
// says, and then memberlist, which makes the others stop probing us.
func (l *loop) sayGoodbye() {
	waiting := l.parting.waiting
	l.parting.waiting = nil
	inst := l.inst
	var names []string
	var msg []byte
	if inst != nil {
		names, msg = l.some(goodbyes), encodeObjects(maxAnswer, l.speech.said...)
	}
	inside := l.inside
	var ids []mesh.NodeID
	if inside != nil {
		ids = inside.Others(goodbyes)
	}
	l.parting.goodbye.Go(func() {
		told := make(chan error, len(names)+len(ids))
		for _, id := range ids {
			l.tasks.Go(func() { told <- inside.With(l.ctx, id) })
		}
		for _, name := range names {
			l.tasks.Go(func() { told <- inst.send(name, msg) })
		}
		timer := time.NewTimer(dialTimeout)
		defer timer.Stop()
		var errs []error
		for len(errs) < cap(told) {
			var err error
			select {
			case err = <-told:
			case <-timer.C:
				err = context.DeadlineExceeded
			}
			if err == nil {
				errs = nil
				break
			}
			errs = append(errs, err)
		}
		if len(errs) > 0 {
			l.opt.Log.Warn("left, and could tell no other member so", "err", errors.Join(errs...))
		}
		if inst != nil {
			_ = inst.list.Leave(leaveWait) // it is a courtesy
		}
		for _, done := range waiting {
			done <- nil
		}
		select {
		case l.parting.parted <- struct{}{}:
		case <-l.ctx.Done():
		}
	})
}
