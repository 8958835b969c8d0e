//go:build linux

package hostnet_test

import (
	"fmt"
	"sync"
	"testing"

	"meshd/tun"
	"meshd/tun/hostnet"
	"meshd/tun/netns"
)

// crowded is a host with n containers on its bridge.
func crowded(b *testing.B, n int) host {
	h := newHost(b)
	h.addTUN("mesh0")
	h.apply(withBridge())
	for i := range n {
		h.addPort(port(fmt.Sprint(i), tun.PortBridge, "mbr-default"))
	}
	return h
}

func beside(b *testing.B, run func(*testing.B, host)) {
	for _, n := range []int{0, 50, 200, 500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { run(b, crowded(b, n)) })
	}
}

func BenchmarkApply(b *testing.B) {
	beside(b, func(b *testing.B, h host) {
		for b.Loop() {
			h.apply(withBridge())
		}
	})
}

func BenchmarkPort(b *testing.B) {
	beside(b, func(b *testing.B, h host) {
		p := port("more", tun.PortBridge, "mbr-default")
		for b.Loop() {
			h.addPort(p)
			b.StopTimer()
			h.delPort(p)
			b.StartTimer()
		}
	})
}

func BenchmarkDelPort(b *testing.B) {
	beside(b, func(b *testing.B, h host) {
		p := port("more", tun.PortBridge, "mbr-default")
		for b.Loop() {
			b.StopTimer()
			h.addPort(p)
			b.StartTimer()
			h.delPort(p)
		}
	})
}

func BenchmarkPorts(b *testing.B) {
	beside(b, func(b *testing.B, h host) {
		for b.Loop() {
			if _, err := h.net.Ports(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Many at once, from as many threads.
func BenchmarkDelPortsAtOnce(b *testing.B) {
	const many = 20
	h := crowded(b, 0)
	h.net = hostnet.New(hostnet.Options{Namespace: func(fn func() error) error { return netns.Run(h.ns.Path(), fn) }})
	for b.Loop() {
		b.StopTimer()
		for i := range many {
			h.addPort(port(fmt.Sprint(i), tun.PortBridge, "mbr-default"))
		}
		b.StartTimer()
		var all sync.WaitGroup
		for i := range many {
			all.Go(func() { h.delPort(port(fmt.Sprint(i), tun.PortBridge, "mbr-default")) })
		}
		all.Wait()
	}
}
