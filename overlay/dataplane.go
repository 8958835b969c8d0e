package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"meshd/overlay/tunnel"
)

// Back-off between attempts to rebuild the engine. The last pause is short
// enough that a TUN is back within two seconds however often it is deleted, and
// that what a person mends works at once.
const (
	firstRebuild = 200 * time.Millisecond
	lastRebuild  = time.Second
	calm         = 10 * time.Second // an engine that lived so long did not end for the old reason
	sayRebuild   = time.Minute      // a reason that stays is logged this often
)

// errNoEngine says that the data plane is being rebuilt.
var errNoEngine = errors.New("the tunnel engine is starting")

// dataPlane keeps an engine running. An engine ends for good when its TUN device
// goes away; then a new one is built, on a new device.
type dataPlane struct {
	// fixed at construction
	build   func() (Engine, error)
	log     *slog.Logger
	changed func() // called when a new engine wants the plan

	once sync.Once
	up   chan struct{} // closed when the first engine runs

	mu     sync.Mutex        // guards all below
	engine Engine            // nil while there is none
	key    tunnel.PrivateKey // zero: that with which engines are built
}

func newDataPlane(build func() (Engine, error), log *slog.Logger) *dataPlane {
	return &dataPlane{build: build, log: log, up: make(chan struct{})}
}

// Run keeps an engine running until ctx is done. If the first one cannot start,
// the reason is one that a person must remove, and Run returns it.
func (d *dataPlane) Run(ctx context.Context) error {
	delay := firstRebuild
	var said time.Time
	var reason string
	for first := true; ; first = false {
		started := time.Now()
		ready, err := d.runOne(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if first && !ready {
			return err
		}
		if time.Since(started) > calm {
			delay = firstRebuild
		}
		if now := fmt.Sprint(err); now != reason || time.Since(said) >= sayRebuild {
			d.log.Warn("tunnel engine ended, building it again", "err", err, "in", delay)
			reason, said = now, time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		delay = min(2*delay, lastRebuild)
	}
}

// runOne builds one engine and runs it to its end.
func (d *dataPlane) runOne(ctx context.Context) (ready bool, err error) {
	e, err := d.build()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-e.Ready():
			d.set(e)
			d.once.Do(func() { close(d.up) })
			ready = true
			d.changed()
		case <-ctx.Done():
		}
	})
	err = e.Run(ctx)
	cancel()
	waiting.Wait()
	d.set(nil)
	return ready, err
}

func (d *dataPlane) set(e Engine) {
	d.mu.Lock()
	d.engine = e
	d.mu.Unlock()
}

func (d *dataPlane) current() Engine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.engine
}

// setKey has the engine go over to another key, with the next Apply.
func (d *dataPlane) setKey(key tunnel.PrivateKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.key = key
}

// Apply configures the engine that runs now.
func (d *dataPlane) Apply(ctx context.Context, want tunnel.Config) error {
	d.mu.Lock()
	e := d.engine
	want.Key = d.key
	d.mu.Unlock()
	if e == nil {
		return errNoEngine
	}
	if err := e.Apply(ctx, want); err != nil {
		return fmt.Errorf("configure %s: %w", e.Name(), err)
	}
	return nil
}

// Stats reads the counters of the engine that runs now.
func (d *dataPlane) Stats() (name string, stats tunnel.Stats) {
	e := d.current()
	if e == nil {
		return "", tunnel.Stats{}
	}
	return e.Name(), e.Stats()
}
