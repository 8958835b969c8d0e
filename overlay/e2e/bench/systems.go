//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/lab"
)

// system is something that carries packets between hosts.
type system struct {
	name  string // on the command line and in reports
	title string // in tables
	// layout is the only one that has it; empty: all have.
	layout string
	// prepare makes the programs ready and tells their version. Its error is why
	// the system is not measured.
	prepare func(ctx context.Context, t *tools) (version string, err error)
	// start joins all hosts of the lab. What it starts ends with the lab.
	start func(ctx context.Context, t *tools, l *lab.Lab) (*network, error)
}

// network is a system at work.
type network struct {
	addrs   []netip.Addr   // where each host is reached, in the order of the lab
	mtu     int            // of what travels inside
	daemons []*lab.Process // nil: the kernel does it all
	close   func() error   // before the lab is closed; may be nil
}

// tools is what systems are made of; prepare fills it in.
type tools struct {
	dir    string // for files; removed at the end
	bin    string // of meshd and meshctl
	peers  string // of programs of others; may be empty
	wg     string // wireguard-go
	nebula string
}

// Names of the systems that results are compared between.
const (
	sysRaw     = "raw"
	sysVXLAN   = "vxlan"
	sysWG      = "wireguard-go"
	sysNebula  = "nebula-aes"
	sysNebulaC = "nebula-chacha"
	sysMeshWG  = "meshd-wireguard-go"
	sysMeshC   = "meshd-chacha"
	sysMesh    = "meshd-aes"
)

// systems are all there are, in the order of the tables. The last one is what a
// user gets who configures nothing, on processors with AES instructions.
var systems = []system{
	{name: sysRaw, title: "raw veth", prepare: kernelHas(), start: startRaw},
	{name: sysVXLAN, title: "kernel VXLAN, not encrypted", prepare: kernelHas(), start: startVXLAN},
	{name: sysWG, title: "wireguard-go", prepare: prepareWG, start: startWG},
	{name: sysNebula, title: "nebula, AES-256-GCM", prepare: prepareNebula, start: startNebula("aes")},
	{name: sysNebulaC, title: "nebula, ChaCha20-Poly1305", prepare: prepareNebula, start: startNebula("chachapoly")},
	{name: sysMeshWG, title: "meshd on wireguard-go", prepare: engineWG.prepare, start: engineWG.start},
	{name: sysMeshC, title: "meshd, ChaCha20-Poly1305", prepare: engineChaCha.prepare, start: engineChaCha.start},
	{name: sysMesh, title: "meshd, AES-256-GCM", prepare: engineAES.prepare, start: engineAES.start},
}

func names(of []system) []string {
	var out []string
	for _, s := range of {
		out = append(out, s.name)
	}
	return out
}

func kernelHas() func(context.Context, *tools) (string, error) {
	return func(context.Context, *tools) (string, error) { return "kernel", nil }
}

func startRaw(_ context.Context, _ *tools, l *lab.Lab) (*network, error) {
	n := &network{mtu: 1500}
	for _, h := range l.Hosts() {
		n.addrs = append(n.addrs, h.IPv4)
	}
	return n, nil
}

// ours is the address of host i in networks that we configure ourselves.
func ours(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)}), 24)
}

// startVXLAN does what flannel does with its defaults.
func startVXLAN(_ context.Context, _ *tools, l *lab.Lab) (*network, error) {
	n := &network{mtu: 1450}
	for i, h := range l.Hosts() {
		n.addrs = append(n.addrs, ours(i).Addr())
		err := h.Do(func() error {
			v := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vxlan0", MTU: n.mtu}, VxlanId: 1, Port: 4789, SrcAddr: h.IPv4.AsSlice(), Learning: true}
			if err := netlink.LinkAdd(v); err != nil {
				return err
			}
			// Whom it has not learned yet it looks for at all of them.
			for _, other := range l.Hosts() {
				if other == h {
					continue
				}
				if err := netlink.NeighAppend(&netlink.Neigh{
					LinkIndex: v.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
					IP: other.IPv4.AsSlice(), HardwareAddr: make(net.HardwareAddr, 6),
				}); err != nil {
					return err
				}
			}
			return up("vxlan0", ours(i), 0)
		})
		if err != nil {
			return nil, fmt.Errorf("make VXLAN on %s: %w", h.Name, err)
		}
	}
	return n, nil
}

// up gives a link its address and MTU, unless that is 0, and sets it up. It runs on
// the host.
func up(link string, p netip.Prefix, mtu int) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	if mtu != 0 {
		if err := netlink.LinkSetMTU(l, mtu); err != nil {
			return err
		}
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}
	return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
}

// stopAll ends programs so that they can clean up behind them, and waits.
func stopAll(daemons []*lab.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, p := range daemons {
		if err := p.Stop(ctx); ctx.Err() != nil {
			return err
		}
	}
	return nil
}
