//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"meshd/mesh"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// patience bounds every act; what it takes is far below.
const patience = 20 * time.Second

var errInterrupted = errors.New("interrupted; everything was cleaned up")

// stage is where the demo is shown.
type stage struct {
	*cluster.Cluster
	out   io.Writer
	start time.Time
}

// show plays the whole demo and cleans up. It returns nil if everything held.
func show(ctx context.Context, out io.Writer, dir string, load time.Duration) (err error) {
	bin, err := cluster.Find(dir)
	if err != nil {
		return err
	}
	s := &stage{out: out, start: time.Now()}
	s.say("Three hosts, each in a network namespace, on one switch")
	s.Cluster, err = cluster.New(ctx, bin, []string{"alpha", "beta", "gamma"})
	switch {
	case err != nil && ctx.Err() != nil:
		return errInterrupted
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the kernel lacks veth or bridge: `modprobe -a veth bridge`", err)
	case err != nil:
		return err
	}
	defer func() {
		switch {
		case ctx.Err() != nil:
			err = errInterrupted // whatever it was that did not work then
		case err != nil:
			s.print(s.Logs(15))
		}
		if closeErr := s.close(err == nil); closeErr != nil {
			err = fmt.Errorf("clean up: %w", errors.Join(closeErr, err))
		}
	}()
	for _, n := range s.Nodes {
		s.print(fmt.Sprintf("%-6s %s  %s", n.Name, n.Host.IPv4, n.Host.IPv6))
	}
	s.print("files  " + s.Dir + "/HOST  (the commands below also get --config " + s.Dir + "/HOST/config.yaml)")
	for _, act := range []func(context.Context) error{
		s.found, s.join, s.run, s.status, s.pings,
		func(ctx context.Context) error { return s.load(ctx, load) },
		s.crash, s.leave,
	} {
		if err := within(ctx, patience+load, act); err != nil {
			return err
		}
	}
	return nil
}

// within plays one act with a time limit.
func within(ctx context.Context, limit time.Duration, act func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return act(ctx)
}

// close removes everything and, after success, looks whether that is so.
func (s *stage) close(held bool) error {
	took := time.Since(s.start)
	err := s.Close()
	if _, statErr := os.Stat(s.Dir); !errors.Is(statErr, os.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("%s is still there", s.Dir))
	}
	if held && err == nil {
		s.say("Done: everything held, nothing is left behind")
		s.print(fmt.Sprintf("%.1f s in all", took.Seconds()))
	}
	return err
}

// say prints a headline with the time since the beginning.
func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(s.out, "\n[%4.1fs] %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

// print prints lines below a headline.
func (s *stage) print(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		fmt.Fprint(s.out, "        ", line)
	}
}

// meshctl shows a command as a person would type it, runs it on the host and
// gives its output.
func (s *stage) meshctl(ctx context.Context, n *cluster.Node, stdin string, args ...string) (string, error) {
	s.print(fmt.Sprintf("%s# meshctl %s", n.Name, strings.Join(args, " ")))
	cmd := n.Command(ctx, args...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	out, err := n.Host.Run(cmd)
	return string(out), err
}

func (s *stage) found(ctx context.Context) error {
	s.say("The first host founds the mesh")
	out, err := s.meshctl(ctx, s.Nodes[0], "", "init", "--name", "demo")
	s.print(out)
	return err
}

func (s *stage) join(ctx context.Context) error {
	s.say("A token lets the others in; they need no network to join")
	token, err := s.meshctl(ctx, s.Nodes[0], "", "token", "create", "--uses", "2")
	if err != nil {
		return err
	}
	token = strings.TrimSpace(token)
	s.print(fmt.Sprintf("%.40s... (%d characters)", token, len(token)))
	for _, n := range s.Nodes[1:] {
		if _, err := s.meshctl(ctx, n, token, "join", "-"); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) run(ctx context.Context) error {
	s.say("The daemons start")
	start := time.Now()
	for _, n := range s.Nodes {
		s.print(n.Name + "# meshd &")
		if err := n.Start(); err != nil {
			return err
		}
	}
	if err := s.WaitReady(ctx); err != nil {
		return err
	}
	s.print(fmt.Sprintf("all hold a lease after %.2f s", time.Since(start).Seconds()))
	if err := s.WaitAllPairs(ctx); err != nil {
		return err
	}
	s.print(fmt.Sprintf("all pairs reach each other, IPv4 and IPv6, after %.2f s", time.Since(start).Seconds()))
	return nil
}

func (s *stage) status(ctx context.Context) error {
	s.say("What each node says")
	for _, n := range s.Nodes {
		healthy := func(d *status.Document) bool { return d.Healthy() && len(d.Peers) == len(s.Nodes)-1 }
		if err := n.WaitFor(ctx, "to be healthy", healthy); err != nil {
			return err
		}
		out, err := s.meshctl(ctx, n, "", "status")
		s.print(out + "\n")
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) pings(ctx context.Context) error {
	s.say("Pings through the tunnels")
	for _, from := range s.Nodes {
		for _, to := range s.Nodes {
			if from == to {
				continue
			}
			addrs, err := to.Addresses(ctx)
			if err != nil {
				return err
			}
			var line strings.Builder
			fmt.Fprintf(&line, "%-5s -> %-5s", from.Name, to.Name)
			for _, a := range addrs {
				rtt, err := from.Host.Ping(ctx, a)
				if err != nil {
					return err
				}
				fmt.Fprintf(&line, "   %s %.2f ms", a, rtt.Seconds()*1000)
			}
			s.print(line.String())
		}
	}
	return nil
}

func (s *stage) load(ctx context.Context, d time.Duration) error {
	s.say("Data through a tunnel: one TCP stream for %s", d)
	from, to := s.Nodes[0], s.Nodes[1]
	addrs, err := to.Addresses(ctx)
	if err != nil {
		return err
	}
	bits, err := from.Host.Throughput(ctx, to.Host, addrs[0], d)
	if err != nil {
		return err
	}
	s.print(fmt.Sprintf("%s -> %s   %.0f Mbit/s (both ends on this machine)", from.Name, to.Name, bits/1e6))
	for _, n := range s.Nodes {
		u, err := n.Usage()
		if err != nil {
			return err
		}
		s.print(fmt.Sprintf("memory of meshd on %-5s  %.1f MB", n.Name, float64(u.RSS)/1e6))
	}
	return nil
}

func (s *stage) crash(ctx context.Context) error {
	s.say("A daemon is killed")
	victim, other := s.Nodes[1], s.Nodes[0]
	before, err := victim.Document(ctx)
	if err != nil {
		return err
	}
	far, err := other.Addresses(ctx)
	if err != nil {
		return err
	}
	s.print(fmt.Sprintf("%s# kill -9 %d", victim.Name, victim.Process().Pid()))
	victim.Kill()
	for _, a := range far {
		_, err := victim.Host.Ping(ctx, a)
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			return fmt.Errorf("without its daemon, a packet of %s for %s is not refused: %w", victim.Name, a, errors.Join(err, errors.New("it leaks")))
		}
	}
	s.print("its packets for the mesh are unreachable now: none leaves in clear text")

	s.print(victim.Name + "# meshd &")
	start := time.Now()
	if err := victim.Start(); err != nil {
		return err
	}
	var near []netip.Addr
	for _, l := range before.Node.Leases {
		near = append(near, l.Addresses...)
	}
	for _, a := range near {
		if _, err := other.Host.Await(ctx, a); err != nil {
			return err
		}
	}
	s.print(fmt.Sprintf("pings flow again after %.2f s", time.Since(start).Seconds()))
	if err := victim.WaitReady(ctx); err != nil {
		return err
	}
	after, err := victim.Document(ctx)
	if err != nil {
		return err
	}
	if was, is := prefixes(before), prefixes(after); was != is {
		return fmt.Errorf("%s had the lease %s and has %s now", victim.Name, was, is)
	}
	s.print(fmt.Sprintf("it has its lease as before: %s (epoch %d, then %d)", prefixes(after), before.Node.Epoch, after.Node.Epoch))
	return s.WaitAllPairs(ctx)
}

func prefixes(d *status.Document) string {
	var all []string
	for _, l := range d.Node.Leases {
		for _, p := range l.Prefixes {
			all = append(all, p.String())
		}
	}
	return strings.Join(all, " ")
}

func (s *stage) leave(ctx context.Context) error {
	s.say("One leaves the mesh, the others go down")
	leaver := s.Nodes[2]
	id, err := leaver.Document(ctx)
	if err != nil {
		return err
	}
	if _, err := s.meshctl(ctx, leaver, "", "leave"); err != nil {
		return err
	}
	gone := func(d *status.Document) bool {
		for _, p := range d.Peers {
			if p.ID == id.Node.ID {
				return p.State == status.PeerLeft
			}
		}
		return d.State == mesh.Ready
	}
	for _, n := range s.Nodes[:2] {
		if err := n.WaitFor(ctx, "to know that "+leaver.Name+" has left", gone); err != nil {
			return err
		}
	}
	s.print("the others know it")
	for _, n := range s.Nodes[:2] {
		if _, err := s.meshctl(ctx, n, "", "down"); err != nil {
			return err
		}
	}
	for _, n := range s.Nodes {
		if err := n.Process().Wait(ctx); err != nil {
			return fmt.Errorf("the daemon of %s: %w", n.Name, err)
		}
		left, err := n.Host.Leftovers()
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("left on %s: %s", n.Name, strings.Join(left, ", "))
		}
	}
	s.print("no link, no route and no process is left on any host")
	return nil
}
