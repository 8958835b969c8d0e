//go:build linux

// Package lab builds small networks inside one machine: hosts, each in a network
// namespace of its own, joined by one switch.
//
//	alpha eth0 198.18.0.1/24     beta eth0 198.18.0.2/24     gamma ...
//	           fd00:198:18::1/64           fd00:198:18::2/64
//	         |                           |                      |
//	---------+------- switch ------------+----------------------+----
//
// Real programs run in the hosts and believe that they are on machines of their
// own, but for the file system, which is shared: give them files of their own.
// It needs Linux and root, and no tool. Namespaces have no names and programs
// die with their parent, so a crash leaves nothing behind.
//
// The owner calls [Lab.Close], which says what should not have been there.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/tun/netns"
)

const (
	bridge   = "br0"
	nic      = "eth0"
	maxHosts = 254 // 198.18.0.0/24; the range is for tests of networks (RFC 2544)
)

// Lab is a switch and its hosts. Its methods may be called from any goroutine.
type Lab struct {
	sw    *netns.NS // fixed at construction; nil: two hosts on a cable
	hosts []*Host   // fixed at construction
	room  room      // fixed at construction

	mu         sync.Mutex
	processes  []*Process // guarded by mu; every one that was started
	namespaces []*Host    // guarded by mu; of containers
	closed     bool       // guarded by mu
}

// New builds a lab with the named hosts, in that order.
func New(ctx context.Context, hosts ...string) (*Lab, error) {
	if len(hosts) > maxHosts {
		return nil, fmt.Errorf("build lab: %d hosts, at most %d are possible", len(hosts), maxHosts)
	}
	l := &Lab{}
	err := l.build(ctx, hosts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context, names []string) (err error) {
	if l.sw, err = netns.New(); err != nil {
		return err
	}
	if err = l.sw.Do(makeSwitch); err != nil {
		return fmt.Errorf("make switch: %w", err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := l.add(name)
		if err != nil {
			return err
		}
		if err := h.connect(); err != nil {
			return fmt.Errorf("connect host %s: %w", name, err)
		}
	}
	if len(l.hosts) > fewHosts {
		if err := errors.Join(l.introduce(), l.room.make()); err != nil {
			return fmt.Errorf("introduce hosts: %w", err)
		}
	}
	for _, h := range l.hosts {
		err := errors.Join(
			waitUp(ctx, h.onPort), waitUp(ctx, h.onNIC),
			h.AddAddress(netip.PrefixFrom(h.IPv4, 24)), h.AddAddress(netip.PrefixFrom(h.IPv6, 64)))
		if err != nil {
			return fmt.Errorf("connect host %s: %w", h.Name, err)
		}
	}
	return nil
}

// add makes the next host, which nothing joins to the others yet.
func (l *Lab) add(name string) (*Host, error) {
	i := len(l.hosts) + 1
	h := &Host{
		Name: name,
		IPv4: netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}),
		IPv6: netip.AddrFrom16([16]byte{0xfd, 0, 0x01, 0x98, 0, 0x18, 15: byte(i)}),
		lab:  l,
		port: fmt.Sprintf("port%d", i),
	}
	var err error
	if h.ns, err = netns.New(); err != nil {
		return nil, err
	}
	l.hosts = append(l.hosts, h)
	return h, h.Do(func() error {
		// An address is usable at once: nobody else can have it.
		return setSysctl("net/ipv6/conf/default/accept_dad", "0")
	})
}

// waitUp waits until a link passes packets: the kernel lets it some milliseconds
// after it was told to, and what comes before is lost.
func waitUp(ctx context.Context, on func(func(netlink.Link) error) error) error {
	return poll(ctx, func() (up bool, err error) {
		err = on(func(l netlink.Link) error {
			up = l.Attrs().OperState == netlink.OperUp
			return nil
		})
		return up, err
	})
}

// poll asks each millisecond until the answer is yes, for at most 10 seconds.
func poll(ctx context.Context, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if yes, err := ask(); yes || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the kernel: %w", ctx.Err())
		}
	}
}

func makeSwitch() error {
	// A switch has no address of its own.
	if err := setSysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
		return err
	}
	snooping := false // there is nobody who would ask for group members
	b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}, MulticastSnooping: &snooping}
	return errors.Join(netlink.LinkAdd(b), netlink.LinkSetUp(b))
}

// connect joins the host to the switch.
func (h *Host) connect() error {
	f, err := os.Open(h.ns.Path())
	if err != nil {
		return err
	}
	defer f.Close()
	err = h.lab.sw.Do(func() error {
		b, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		v := netlink.NewVeth(netlink.LinkAttrs{Name: h.port, MasterIndex: b.Attrs().Index})
		v.PeerName, v.PeerNamespace = nic, netlink.NsFd(f.Fd())
		if err := netlink.LinkAdd(v); err != nil {
			return err
		}
		return netlink.LinkSetUp(v)
	})
	if err != nil {
		return err
	}
	return h.linksUp()
}

func (h *Host) linksUp() error {
	return h.Do(func() error {
		// Where bbr is the default, a socket stays paced after iperf3 -C cubic, and
		// that is neither. Every kernel lets a namespace take reno.
		if err := setSysctl("net/ipv4/tcp_congestion_control", "reno"); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		eth, err := netlink.LinkByName(nic)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(eth))
	})
}

func setSysctl(key, value string) error {
	return os.WriteFile("/proc/sys/"+key, []byte(value), 0)
}

// Hosts gives the hosts in the order of [New].
func (l *Lab) Hosts() []*Host { return l.hosts }

// Host finds a host by its name; it panics if there is none.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.hosts {
		if h.Name == name {
			return h
		}
	}
	panic("lab has no host " + name)
}

// Close kills the programs that run in the hosts, waits for their end, and
// removes hosts and switch. Its error names programs that others started in a
// host and left there; they are killed too. Further calls do nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	for _, p := range l.processes {
		p.Kill()
	}
	for _, p := range l.processes {
		<-p.Done()
	}
	var errs []error
	for _, h := range slices.Concat(l.namespaces, l.hosts) {
		errs = append(errs, h.end())
	}
	if l.sw != nil {
		l.sw.Close()
	}
	return errors.Join(append(errs, l.room.giveBack())...)
}
