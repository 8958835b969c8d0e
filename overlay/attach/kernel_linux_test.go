package attach_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/mesh"
	"meshd/mesh/meshtest"
	"meshd/mesh/statedir"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	"meshd/tun/hostnet"
	"meshd/tun/netns"
)

var _ attach.Host = (*hostnet.Net)(nil)

// real is a manager on a kernel and a disk.
type real struct {
	*attach.Manager
	ns    *netns.NS
	state string
}

func newReal(t *testing.T) *real {
	t.Helper()
	r := &real{ns: netns.ForTest(t), state: filepath.Join(t.TempDir(), "state")}
	keys, membership := meshtest.NewMesh(t).Founder(t, "alpha")
	if err := statedir.Create(r.state, keys, membership); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	return r
}

// start is a start of the daemon.
func (r *real) start(t *testing.T) {
	t.Helper()
	m, err := realManager(t.Context(), r.state, hostnet.Options{Namespace: r.ns.Do})
	if err != nil {
		t.Fatal(err)
	}
	r.Manager = m
}

func realManager(ctx context.Context, state string, opt hostnet.Options) (*attach.Manager, error) {
	dir, err := statedir.Open(state)
	if err != nil {
		return nil, err
	}
	m := attach.New(attach.Options{Host: hostnet.New(opt), Store: dir})
	if err := m.Load(ctx); err != nil {
		return nil, err
	}
	view := attachtest.View(attachtest.Lease("default", 7, mesh.Held), attachtest.Lease("web", 3, mesh.Held))
	m.Sync(attach.World{View: view, MTU: 1420})
	return m, nil
}

// move stands for what a door does: from then on the link is a container's.
func move(a attach.Attachment) error {
	l, err := netlink.LinkByName(a.Peer)
	if err != nil {
		return err
	}
	return netlink.LinkSetName(l, "c"+a.Peer[2:])
}

// links counts the host ends.
func (r *real) links(t *testing.T) int {
	t.Helper()
	n := 0
	err := r.ns.Do(func() error {
		all, err := hostnet.New(hostnet.Options{}).Ports(t.Context())
		n = len(all)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestContainerEnds(t *testing.T) {
	netns.RequireRoot(t)
	r := newReal(t)
	a, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a"})
	if err != nil {
		t.Fatal(err)
	}
	container := netns.ForTest(t)
	f, err := os.Open(container.Path())
	if err != nil {
		t.Fatal(err)
	}
	err = r.ns.Do(func() error {
		l, err := netlink.LinkByName(a.Peer)
		return errors.Join(err, netlink.LinkSetNsFd(l, int(f.Fd())))
	})
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r.start(t)
		for _, at := range []time.Duration{0, time.Hour} {
			if ended, err := r.Collect(t.Context(), start.Add(at)); err != nil || len(ended) > 0 {
				t.Fatalf("the container runs, and %v ended, %v", ended, err)
			}
		}
	}
	container.Close()
	until := time.Now().Add(10 * time.Second) // the kernel tidies namespaces in the background
	for r.links(t) > 0 && time.Now().Before(until) {
		time.Sleep(10 * time.Millisecond)
	}
	if ended, err := r.Collect(t.Context(), start.Add(2*time.Hour)); err != nil || len(ended) > 0 {
		t.Errorf("at once %v ended, %v", ended, err)
	}
	if ended, err := r.Collect(t.Context(), start.Add(3*time.Hour)); err != nil || len(ended) != 1 {
		t.Errorf("after an hour %v ended, %v", ended, err)
	}
}

// Asks with two hundred containers on the host, as the doors make them: one after
// the other, and many at a time.
func TestTwoHundred(t *testing.T) {
	netns.RequireRoot(t)
	r := newReal(t)
	const base, more = 200, 100
	id := func(i int) string { return fmt.Sprint("cni/", i, "/eth0") }
	attachOne := func(i int) error {
		a, err := r.Attach(t.Context(), attach.Ask{ID: id(i)})
		if err != nil {
			return err
		}
		return r.ns.Do(func() error { return move(a) })
	}
	each := func(from, to int, do func(int) error) {
		t.Helper()
		var tasks sync.WaitGroup
		errs := make([]error, to)
		for i := from; i < to; i++ {
			tasks.Go(func() { errs[i] = do(i) })
		}
		tasks.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	each(0, base, attachOne)
	var attached, detached []time.Duration
	for range 20 {
		from := time.Now()
		if err := attachOne(base); err != nil {
			t.Fatal(err)
		}
		attached = append(attached, time.Since(from))
		from = time.Now()
		if err := r.Detach(t.Context(), id(base)); err != nil {
			t.Fatal(err)
		}
		detached = append(detached, time.Since(from))
	}
	a, d := median(attached), median(detached)
	t.Logf("beside %d containers: attach %v, detach %v", base, a, d)
	if a > time.Second || d > time.Second { // most of it is for the race detector and for the tests beside this one
		t.Errorf("attach takes %v, detach %v: that is more than some system calls", a, d)
	}
	for i := range base {
		if i%5 == 0 {
			if err := r.Detach(t.Context(), id(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	from := time.Now()
	each(base, base+more/2, attachOne) // a /24 has room for as many
	t.Logf("%d at a time: %v", more/2, time.Since(from))
	var all []netip.Addr
	for _, a := range r.List() {
		all = append(all, a.Addresses[0].Addr())
	}
	slices.SortFunc(all, netip.Addr.Compare)
	if n := len(all); n != base*4/5+more/2 || len(slices.Compact(all)) != n || r.links(t) != n {
		t.Errorf("%d addresses, %d links", n, r.links(t))
	}
	each(0, base+more/2, func(i int) error { return r.Detach(t.Context(), id(i)) })
	if n := r.links(t); n > 0 || len(r.List()) > 0 {
		t.Errorf("%d links and %d attachments are left", n, len(r.List()))
	}
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

// A daemon with a hundred asks at a time is killed, by SIGKILL, again and again.
func TestKilledForReal(t *testing.T) {
	if state := os.Getenv("ATTACH_TEST_STATE"); state != "" {
		askUntilKilled(t, state)
		return
	}
	netns.RequireRoot(t)
	r := newReal(t)
	told, unsure := map[string]string{}, map[string]bool{}
	for round := range 6 {
		for id, event := range r.kill(t, time.Duration(round*round)*20*time.Millisecond) {
			delete(told, id)
			switch event[0] {
			case "attached":
				told[id] = event[1]
			case "moving", "detaching":
				unsure[id] = true
			}
		}
		r.start(t)
		for _, at := range []time.Duration{0, time.Hour} {
			if _, err := r.Collect(t.Context(), start.Add(at)); err != nil {
				t.Fatal(err)
			}
		}
		seen, have := map[netip.Prefix]bool{}, map[string]string{}
		for _, a := range r.List() {
			have[a.ID] = fmt.Sprint(a.Addresses)
			for _, addr := range a.Addresses {
				if seen[addr] {
					t.Fatalf("%s is given twice", addr)
				}
				seen[addr] = true
			}
			if told[a.ID] == "" && !unsure[a.ID] {
				t.Errorf("%s has %v, and nobody was told", a.ID, a.Addresses)
			}
		}
		for id, addresses := range told {
			if have[id] != addresses {
				t.Errorf("%s was told %s, and has %q", id, addresses, have[id])
			}
		}
		if n := r.links(t); n != len(have) {
			t.Errorf("%d attachments have %d links", len(have), n)
		}
		t.Logf("round %d: %d attached", round, len(have))
		told = have
		clear(unsure)
		if t.Failed() {
			return
		}
	}
}

// kill starts a daemon that is asked for all that it can do, kills it when it has
// answered something and that time has gone, and gives the last event of each ID.
func (r *real) kill(t *testing.T, after time.Duration) map[string][2]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledForReal$")
	cmd.Env = append(os.Environ(), "ATTACH_TEST_STATE="+r.state)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = r.ns.Do(cmd.Start)
	}
	if err != nil {
		t.Fatal(err)
	}
	last := map[string][2]string{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if len(last) == 0 {
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
		event, rest, _ := strings.Cut(lines.Text(), " ")
		id, addresses, _ := strings.Cut(rest, " ")
		last[id] = [2]string{event, addresses}
	}
	if err := cmd.Wait(); err == nil || len(last) == 0 || cmd.ProcessState.Exited() {
		t.Fatalf("the daemon ended by itself: %v\n%v\n%s", err, last, &stderr)
	}
	return last
}

func askUntilKilled(t *testing.T, state string) {
	m, err := realManager(t.Context(), state, hostnet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	say := func(format string, args ...any) { _, _ = os.Stdout.WriteString(fmt.Sprintf(format, args...) + "\n") }
	for i := range 100 {
		tasks.Go(func() {
			for id := fmt.Sprint("cni/", i); ; {
				a, err := m.Attach(t.Context(), attach.Ask{ID: id})
				if err == nil {
					say("moving %s", id)
					err = move(a)
				}
				if err != nil && !strings.Contains(err.Error(), "not found") { // it was moved by an earlier daemon's door
					t.Error(err)
					return
				}
				say("attached %s %v", id, a.Addresses)
				if i%3 == 0 {
					continue
				}
				say("detaching %s", id)
				if err := m.Detach(t.Context(), id); err != nil {
					t.Error(err)
					return
				}
				say("detached %s", id)
			}
		})
	}
	tasks.Wait()
}
