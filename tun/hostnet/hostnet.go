//go:build linux

// Package hostnet makes the kernel's network look like a [tun.HostState].
//
// [Net.Apply] compares what is there with what should be and carries out the
// difference, additions first. It keeps no memory of its own: what is ours is
// marked in the kernel, routes by [RouteProtocol], addresses by the link that
// they are on. So it repairs what others undo, takes over after a crash, and
// applying the same state again changes nothing. Routes, addresses and links
// of others are never touched.
//
// Sysctls are only ever raised, never taken back: others may rely on them by
// then.
//
// The owner creates the TUN device (tun/device), runs [Net.Watch], and calls
// Apply again when it signals. Needs CAP_NET_ADMIN.
package hostnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
)

// RouteProtocol marks our routes (rtm_protocol, "proto" in ip route). 'm' is
// free in iproute2's rt_protos and not used by FRR, BIRD, systemd or Cilium.
const RouteProtocol = tun.RouteProtocol

const (
	// Before DHCP's and NetworkManager's 100 and more, after the 0 of what an
	// operator adds by hand.
	metricLink = 50
	// The worst, so that any other route to the same destination wins, a bridge
	// of containers for one. Not 2^32-1: the library takes an int, and 32-bit
	// machines end here.
	metricUnreachable = math.MaxInt32
	// A TUN's own default of 500 packets is 0.75 MB, or 6 ms at 1 Gbit/s; twice
	// that outlasts a scheduling pause of the daemon, as Ethernet's 1000 does.
	txQueueLen = 1000
	// The first round does the work. One more meets a race with another program,
	// or finds what the kernel dropped as a side effect; the last one only looks.
	rounds = 3
)

var (
	// ErrNoLink says that the TUN device is not there. What needs no device was
	// applied nevertheless.
	ErrNoLink = errors.New("no such network link")
	// ErrNoIPv6 says that IPv6 is wanted and the kernel runs without. The IPv4
	// part was applied.
	ErrNoIPv6 = errors.New("the kernel has no IPv6 (is it booted with ipv6.disable=1?)")
	// ErrRunning says that a daemon lives in this network namespace: a process
	// holds a TUN device to which routes of ours go.
	ErrRunning = errors.New("a daemon runs")
)

// Options for [New]. The zero value is for the process's own namespace.
type Options struct {
	// Namespace runs a function inside the network namespace to manage, such as
	// the method Do of netns.NS; nil: the one that the process is in.
	Namespace func(func() error) error
	Log       *slog.Logger // gets every change, at level debug; nil: none
}

// Net is a host's network. Its methods may be called from any goroutine.
type Net struct {
	in     func(func() error) error // fixed at construction
	log    *slog.Logger             // fixed at construction
	sysctl sysctlDir                // fixed at construction
	mu     sync.Mutex               // held while the kernel is changed, but by DelPort
	tables atomic.Pointer[[]int]    // that matter; nil until they were read
}

// New builds a Net; it touches nothing.
func New(o Options) *Net {
	n := &Net{in: o.Namespace, log: o.Log, sysctl: "/proc/sys"}
	if n.in == nil {
		n.in = func(fn func() error) error { return fn() }
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	return n
}

// Apply makes the kernel look like want. Each error names the command that did
// not work, and what does not depend on it was done nevertheless: see
// [ErrNoLink], [ErrNoIPv6].
func (n *Net) Apply(ctx context.Context, want tun.HostState) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.with(func(k kernel) error {
		var err error
		for range rounds {
			have, readErr := k.read(want)
			if readErr != nil {
				return readErr
			}
			ops, lacking := diff(have, want)
			if len(ops) == 0 {
				return lacking
			}
			if err = n.run(ctx, k, ops); err == nil {
				err = fmt.Errorf("host network does not stay as set, another program undoes %q", ops[0])
			}
			err = errors.Join(err, lacking)
			if ctx.Err() != nil {
				break
			}
		}
		return err
	})
}

func (n *Net) run(ctx context.Context, k kernel, ops []op) error {
	var errs []error
	for _, op := range ops {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		err := op.do(k)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", op, err))
		}
		n.log.Debug("host network changed", "command", op.String(), "err", err)
	}
	return errors.Join(errs...)
}

// Cleanup removes everything that is ours, whichever daemon left it, and lists it
// as commands; but for links of containers, which go with those. While a daemon runs it fails with [ErrRunning] and changes nothing.
func (n *Net) Cleanup(ctx context.Context) (removed []string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	err = n.with(func(k kernel) error {
		have, err := k.read(tun.HostState{})
		if err != nil {
			return err
		}
		ops, _ := diff(have, tun.HostState{})
		devices, err := k.devices(have.routes)
		for _, l := range devices {
			// Only a process that holds it gives a TUN device its carrier.
			if l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
				return fmt.Errorf("%w, on the device %s", ErrRunning, l.Attrs().Name)
			}
			ops = append(ops, delLink{l}) // it was made to outlast its daemon
		}
		if err != nil {
			return err
		}
		links, err := k.links()
		if err != nil {
			return err
		}
		for _, l := range links {
			// A pair goes with its host end. That of a container which may run stays,
			// as with a state that wants nothing: it would be off the mesh for good.
			if isPort(l) && l.Attrs().NetNsID < 0 || isPeer(l) && l.Type() != "veth" {
				ops = append(ops, delLink{l})
			}
		}
		for _, op := range ops {
			removed = append(removed, op.String())
		}
		return n.run(ctx, k, ops)
	})
	return removed, err
}

// devices finds the TUN devices that some of the routes go to.
func (k kernel) devices(routes []route) ([]netlink.Link, error) {
	all, err := k.links()
	return slices.DeleteFunc(all, func(l netlink.Link) bool {
		t, ok := l.(*netlink.Tuntap)
		return !ok || t.Mode != netlink.TUNTAP_MODE_TUN ||
			!slices.ContainsFunc(routes, func(r route) bool { return r.index == l.Attrs().Index })
	}), err
}

// kernel is an open netlink socket, with the sysctls beside it.
type kernel struct {
	*netlink.Handle
	sysctl sysctlDir
}

// with runs fn inside the namespace.
func (n *Net) with(fn func(kernel) error) error {
	return n.in(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		defer h.Close()
		return fn(kernel{h, n.sysctl})
	})
}
