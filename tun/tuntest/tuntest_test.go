package tuntest

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"

	"meshd/tun"
)

func TestKernel(t *testing.T) {
	want := tun.HostState{
		Link: "mesh0", MTU: 1420, Forwarding: true,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.86.17.1/32")},
		Routes: []tun.Route{
			{Dst: netip.MustParsePrefix("10.86.0.0/16"), Unreachable: true},
			{Dst: netip.MustParsePrefix("10.86.0.0/16")},
		},
	}
	const text = "link set mesh0 up mtu 1420\n" +
		"addr add 10.86.17.1/32 dev mesh0\n" +
		"route add 10.86.0.0/16 dev mesh0\n" +
		"route add unreachable 10.86.0.0/16\n" +
		"sysctl forwarding=1\n"

	synctest.Test(t, func(t *testing.T) {
		var k Kernel
		changed := make(chan struct{}, 1)
		signalled := func() bool {
			synctest.Wait()
			select {
			case <-changed:
				return true
			default:
				return false
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Watch(ctx, changed) }()
		if !signalled() {
			t.Error("Watch did not signal that it has begun")
		}

		k.Fail(2)
		for range 2 {
			if err := k.Apply(ctx, want); !errors.Is(err, ErrFailed) {
				t.Errorf("Apply = %v, want ErrFailed", err)
			}
		}
		if k.String() != "" || signalled() {
			t.Errorf("a failed Apply changed the state: %s", &k)
		}
		if err := k.Apply(ctx, want); err != nil {
			t.Fatal(err)
		}
		if k.String() != text {
			t.Errorf("state is\n%swant\n%s", &k, text)
		}
		if !signalled() {
			t.Error("no signal after a change")
		}
		if err := k.Apply(ctx, want); err != nil || signalled() {
			t.Errorf("the same again: error %v, or a signal", err)
		}
		if n := k.Applied(); n != 4 {
			t.Errorf("Applied = %d, want 4", n)
		}

		k.Damage(func(s *tun.HostState) { s.Routes = nil })
		if len(k.State().Routes) != 0 || !signalled() {
			t.Error("damage had no effect, or gave no signal")
		}
		if len(want.Routes) != 2 {
			t.Error("damage reached the caller's state")
		}

		k.SetUnderlay(tun.Underlay{Addresses: []netip.Addr{
			netip.MustParseAddr("10.86.17.1"), netip.MustParseAddr("192.0.2.1")}, MTU: 1500})
		if !signalled() {
			t.Error("no signal after a change of the underlay")
		}
		u, err := k.Underlay(ctx, netip.MustParsePrefix("10.86.0.0/16"))
		if err != nil || len(u.Addresses) != 1 || u.Addresses[0] != netip.MustParseAddr("192.0.2.1") || u.MTU != 1500 {
			t.Errorf("Underlay = %v, %v", u, err)
		}

		if err := k.Apply(ctx, tun.HostState{}); err != nil || k.String() != "" {
			t.Errorf("Apply = %v, left %s", err, &k)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch = %v, want nil", err)
		}
		if err := k.Apply(ctx, want); !errors.Is(err, context.Canceled) {
			t.Errorf("Apply with an ended context = %v", err)
		}
	})
}

func TestRoute(t *testing.T) {
	mesh, own := netip.MustParsePrefix("10.86.0.0/16"), netip.MustParsePrefix("10.86.17.0/24")
	var k Kernel
	err := k.Apply(t.Context(), tun.HostState{
		Link: "mesh0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.86.17.1/32")},
		Routes: []tun.Route{{Dst: mesh, Unreachable: true}, {Dst: mesh}, {Dst: own, Unreachable: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	check := func(when, dst, want string) {
		t.Helper()
		got := "default"
		if r, ours := k.Route(netip.MustParseAddr(dst)); ours {
			got = r.String()
		}
		if got != want {
			t.Errorf("%s, %s goes by %q, want %q", when, dst, got, want)
		}
	}
	check("at first", "10.86.80.1", "10.86.0.0/16 dev DEV")
	check("at first", "10.86.17.9", "unreachable 10.86.17.0/24")
	check("at first", "192.0.2.1", "default")
	if !k.Local(netip.MustParseAddr("10.86.17.1")) || k.Local(netip.MustParseAddr("10.86.17.9")) {
		t.Error("Local does not tell what is on the device")
	}
	k.RemoveLink()
	check("without the device", "10.86.80.1", "unreachable 10.86.0.0/16")
	if k.Local(netip.MustParseAddr("10.86.17.1")) {
		t.Error("an address outlived its device")
	}
}
