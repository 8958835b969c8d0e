//go:build linux

package lab

import (
	"net/netip"
	"testing"
	"time"
)

// What a host filters does not arrive, all else does, and the last filter counts.
func TestFilter(t *testing.T) {
	l := build(t, "alpha", "beta", "gamma")
	alpha, beta, gamma := l.Host("alpha"), l.Host("beta"), l.Host("gamma")
	heard := func(from *Host, to netip.Addr) bool {
		_, err := from.Await(timeout(t, 300*time.Millisecond), to)
		return err == nil
	}
	if err := alpha.Filter(Filter{From: []netip.Addr{beta.IPv4, beta.IPv6}}); err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{alpha.IPv4, alpha.IPv6} {
		if heard(beta, to) {
			t.Errorf("beta is filtered and reaches %s", to)
		}
		if !heard(gamma, to) {
			t.Errorf("gamma is not filtered and does not reach %s", to)
		}
	}

	if err := alpha.Filter(Filter{Loss: 0.5}); err != nil {
		t.Fatal(err)
	}
	p, err := beta.Pings(t.Context(), alpha.IPv4, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(600 * time.Millisecond)
	p.Stop()
	if lost, sent := p.Lost(time.Now()); sent < 100 || lost < sent/3 || lost > sent*2/3 {
		t.Errorf("%d of %d pings lost, and it should be half", lost, sent)
	}

	if err := alpha.Filter(Filter{Ports: []uint16{7}}); err != nil {
		t.Fatal(err)
	}
	for port, want := range map[uint16]bool{7: false, 8: true} {
		at := netip.AddrPortFrom(alpha.IPv4, port).String()
		in, err := alpha.ListenPacket(t.Context(), "udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := beta.Dial(t.Context(), "udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if _, err := out.Write([]byte("is there anybody?")); err != nil {
			t.Fatal(err)
		}
		if err := in.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := in.ReadFrom(make([]byte, 100)); (err == nil) != want {
			t.Errorf("port %d: %v; what is sent there should arrive: %t", port, err, want)
		}
	}

	if err := alpha.Filter(Filter{}); err != nil {
		t.Fatal(err)
	}
	if !heard(beta, alpha.IPv4) {
		t.Error("nothing is filtered, and nothing arrives")
	}
}
