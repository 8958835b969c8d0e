//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
)

// chaos is one run.
type chaos struct {
	*cluster.Cluster
	options // fixed at construction
	out     io.Writer
	begin   time.Time
	report  *report // owned by play, but for what is wrong
	// rotations of the gossip key; owned by play. Those that were refused are not made.
	rotations struct{ drawn, made int }

	mu    sync.Mutex
	pairs []*pair                  // guarded by mu
	ends  map[*cluster.Node]bool   // guarded by mu: whose daemon may have ended
	wrong []violation              // guarded by mu
	doing string                   // guarded by mu: the step under way
	step  int                      // guarded by mu: its number
	seen  map[string]bool          // guarded by mu: violations, each once in a step
	base  map[*cluster.Node]demand // fixed when the faults begin
}

// violation is what must never be.
type violation struct {
	At   float64 `json:"at"` // seconds since the begin
	Step int     `json:"step"`
	Text string  `json:"text"`
	// Again plays the step once more.
	Again string `json:"again"`
}

var errViolation = errors.New("something was seen that must never be")

// patience bounds what is no fault: the start, and looking on when all should
// long be well, to tell late from never.
const patience = time.Minute

// play runs the whole, cleans up, and writes the report.
func play(ctx context.Context, out io.Writer, o options) (err error) {
	bin, err := cluster.Find(o.bin)
	if err != nil {
		return err
	}
	c := &chaos{options: o, out: out, ends: map[*cluster.Node]bool{}, seen: map[string]bool{}, base: map[*cluster.Node]demand{}, begin: time.Now()}
	c.report = newReport(o)
	var hosts []string
	for i := range o.nodes {
		hosts = append(hosts, fmt.Sprintf("n%d", i+1))
	}
	c.say("%d nodes, faults for %s, seed %d", o.nodes, o.duration, o.seed)
	if c.Cluster, err = cluster.New(ctx, bin, hosts); err != nil {
		return err
	}
	defer func() {
		if err != nil && !errors.Is(err, errViolation) && ctx.Err() == nil {
			fmt.Fprint(out, c.Logs(15))
		}
		if closeErr := c.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", closeErr))
		}
	}()
	if err := c.start(ctx); err != nil {
		return fmt.Errorf("start the mesh: %w", err)
	}
	err = c.soak(ctx)
	c.report.finish(c)
	fmt.Fprint(out, "\n"+c.report.String())
	if o.out != "" {
		err = errors.Join(err, c.report.write(o.out))
	}
	if err != nil {
		return err
	}
	if len(c.report.Violations) > 0 {
		fmt.Fprint(out, "\n"+c.Logs(20))
		return errViolation
	}
	return nil
}

// start makes the mesh.
func (c *chaos) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, n := range c.Nodes { // a disk of its own that may fail
		if err := n.Host.Do(ownMounts); err != nil {
			return err
		}
	}
	if err := c.Init(ctx); err != nil {
		return err
	}
	begin := time.Now()
	if err := c.Start(); err != nil {
		return err
	}
	if err := c.WaitAllPairs(ctx); err != nil {
		return err
	}
	c.report.AllPairs = time.Since(begin).Seconds()
	c.say("all pairs after %.2f s", c.report.AllPairs)
	return pause(ctx, 3*time.Second) // until it is calm
}

// ownMounts gives this thread, and what it starts, mounts of its own.
func ownMounts() error {
	return errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// soak lets one fault after the other happen under the eyes of the watchers.
func (c *chaos) soak(ctx context.Context) error {
	for _, n := range c.Nodes {
		d, err := demandOf(ctx, n)
		if err != nil {
			return err
		}
		c.base[n] = d
	}
	for i, a := range c.Nodes {
		for _, b := range c.Nodes[i+1:] {
			if err := c.watchPair(ctx, a, b); err != nil {
				return err
			}
		}
	}
	defer c.stopPairs()
	stop, err := c.watch(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	first, last := 1, 1<<30
	if c.options.step > 0 {
		first, last = c.options.step, c.options.step
	}
	begin := time.Now()
	for step := first; step <= last && time.Since(begin) < c.duration; step++ {
		if err := c.happen(ctx, step); err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
		// The pause is part of the test: nobody may lose anything in it.
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
		if len(c.violations()) >= maxViolations {
			break
		}
	}
	c.judgeRotations(ctx)
	return c.calm(ctx)
}

// maxViolations end the run: it is not getting better.
const maxViolations = 20

// happen plays a step.
func (c *chaos) happen(ctx context.Context, step int) error {
	acts := c.drawStep(step)
	var texts []string
	for _, a := range acts {
		texts = append(texts, a.text)
	}
	text := strings.Join(texts, "; ")
	c.say("%4d  %s", step, text)
	hurts := func(a, b *cluster.Node) bool {
		return slices.ContainsFunc(acts, func(x act) bool { return x.hurts(a, b) })
	}
	began := time.Now()
	c.mu.Lock()
	c.step, c.doing = step, text
	clear(c.seen)
	for _, p := range c.pairs {
		p.hurt = hurts(p.a, p.b)
		if p.hurt {
			p.judge(c, began.Add(-time.Second))
		}
	}
	c.mu.Unlock()

	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	longest := time.Duration(0)
	for _, a := range acts {
		if err := a.begin(bounded); err != nil {
			return err
		}
		longest = max(longest, a.last)
	}
	// If it is cut short, the faults end all the same.
	interrupted := pause(ctx, longest)
	for _, a := range acts {
		if err := a.end(bounded); err != nil {
			return err
		}
	}
	if interrupted != nil {
		return interrupted
	}
	ended := time.Now()
	for _, a := range acts {
		if a.moves != nil {
			if err := c.follow(ctx, a.moves); err != nil {
				return err
			}
		}
	}
	return c.recover(ctx, acts, began, ended)
}

// recover waits until all is well, and notes how long that took.
func (c *chaos) recover(ctx context.Context, acts []act, began, ended time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var agreed time.Duration
	missing := "nobody was asked"
	err := cluster.Poll(ctx, func() (bool, error) {
		if agreed == 0 {
			asked := time.Now()
			if missing = c.disagreement(ctx); missing == "" {
				agreed = asked.Sub(ended)
			}
		}
		silent := c.silent(ended)
		if silent != "" {
			missing = silent
		}
		return agreed > 0 && silent == "", errors.New(missing)
	})
	if err != nil {
		if context.Cause(ctx) == context.DeadlineExceeded {
			c.violate("I6", "not well %s after the end of the fault: %s", patience, missing)
			return fmt.Errorf("the mesh does not come back: %s", missing)
		}
		return err
	}
	traffic, lost, sent := c.excuse(began, ended)
	c.report.note(acts, traffic, agreed, lost, sent)
	c.say("      traffic after %.2f s, one table after %.2f s, %d of %d pings lost", traffic.Seconds(), agreed.Seconds(), lost, sent)
	if took := max(traffic, agreed); took > c.limit {
		c.violate("heal", "well only %s after the end of the fault, not within %s", took.Round(time.Millisecond), c.limit)
	}
	return nil
}

// expectEnd says that a node's daemon may have ended.
func (c *chaos) expectEnd(n *cluster.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends[n] = true
}

// start starts a node's daemon, which must run from now on.
func (d *drawer) start(n *cluster.Node) error {
	err := n.Start()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.ends, n)
	return err
}

// say tells a person who watches.
func (c *chaos) say(format string, args ...any) {
	fmt.Fprintf(c.out, "%7.1f  %s\n", time.Since(c.begin).Seconds(), fmt.Sprintf(format, args...))
}

// violate notes what must never be, once in a step.
func (c *chaos) violate(invariant, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.violateLocked(invariant, format, args...)
}

func (c *chaos) violateLocked(invariant, format string, args ...any) {
	text := invariant + ": " + fmt.Sprintf(format, args...)
	if c.seen[text] {
		return
	}
	c.seen[text] = true
	v := violation{time.Since(c.begin).Seconds(), c.step, text, c.again(c.step)}
	c.wrong = append(c.wrong, v)
	fmt.Fprintf(c.out, "%7.1f  VIOLATION in step %d (%s): %s\n", v.At, c.step, c.doing, text)
	fmt.Fprintf(c.out, "         again: %s\n", v.Again)
}

// again is what plays a step once more.
func (o options) again(step int) string {
	line := fmt.Sprintf("make chaos NODES=%d DURATION=%s SEED=%d STEP=%d", o.nodes, o.duration, o.seed, step)
	if o.only != "" {
		line += " ONLY=" + o.only
	}
	return line
}

func (c *chaos) violations() []violation {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.wrong)
}

// pause passes time.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// logSize is how much a node has logged.
func logSize(n *cluster.Node) int64 {
	info, err := os.Stat(n.Dir + "/meshd.log")
	if err != nil {
		return 0
	}
	return info.Size()
}
