//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/hostnet"
	"meshd/tun/netns"
)

func build(t *testing.T, hosts ...string) *Lab {
	t.Helper()
	netns.RequireRoot(t)
	l, err := New(t.Context(), hosts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestAllPairs(t *testing.T) {
	l := build(t, "alpha", "beta", "gamma")
	start := time.Now()
	for _, a := range l.Hosts() {
		for _, b := range l.Hosts() {
			for _, to := range []netip.Addr{b.IPv4, b.IPv6} {
				if rtt, err := a.Ping(t.Context(), to); err != nil || rtt <= 0 {
					t.Errorf("first ping: %v, %v", rtt, err)
				}
			}
		}
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("all pairs took %s", d)
	}
	if got := l.Host("beta").IPv4.String() + " " + l.Host("gamma").IPv6.String(); got != "198.18.0.2 fd00:198:18::3" {
		t.Errorf("addresses = %s", got)
	}
}

func TestPingFails(t *testing.T) {
	l := build(t, "alpha", "beta")
	alpha, beta := l.Host("alpha"), l.Host("beta")
	if _, err := alpha.Ping(t.Context(), netip.MustParseAddr("203.0.113.1")); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("ping without a route = %v, want ENETUNREACH", err)
	}
	if _, err := alpha.Ping(t.Context(), netip.MustParseAddr("198.18.0.77")); err == nil {
		t.Error("an address that nobody has answers")
	}

	if err := beta.LinkDown(); err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{beta.IPv4, beta.IPv6} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := alpha.Ping(ctx, to); err == nil {
			t.Errorf("without a cable %s still answers", to)
		}
		cancel()
	}
	if err := beta.LinkUp(); err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{beta.IPv4, beta.IPv6} {
		if _, err := alpha.Await(timeout(t, 10*time.Second), to); err != nil {
			t.Errorf("with the cable again: %v", err)
		}
	}
}

func TestAddresses(t *testing.T) {
	l := build(t, "alpha", "beta")
	alpha, beta := l.Host("alpha"), l.Host("beta")
	old, next := netip.PrefixFrom(beta.IPv4, 24), netip.MustParsePrefix("198.18.0.99/24")
	if err := beta.ReplaceAddress(old, next); err != nil {
		t.Fatal(err)
	}
	if _, err := alpha.Ping(t.Context(), next.Addr()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := alpha.Ping(ctx, old.Addr()); err == nil {
		t.Error("the old address still answers")
	}
	if err := beta.DisableIPv6(); err != nil {
		t.Fatal(err)
	}
	addrs, err := beta.addresses()
	if err != nil || !slices.Equal(addrs, []netip.Prefix{next}) {
		t.Errorf("without IPv6, addresses = %v, %v", addrs, err)
	}
}

func TestThroughput(t *testing.T) {
	l := build(t, "alpha", "beta")
	for _, to := range []netip.Addr{l.Host("beta").IPv4, l.Host("beta").IPv6} {
		bps, err := l.Host("alpha").Throughput(t.Context(), l.Host("beta"), to, 100*time.Millisecond)
		if err != nil || bps < 1e6 {
			t.Errorf("throughput to %s = %.0f bit/s, %v", to, bps, err)
		}
	}
	if _, err := l.Host("alpha").Throughput(t.Context(), l.Host("beta"), netip.MustParseAddr("203.0.113.1"), time.Millisecond); err == nil {
		t.Error("throughput to an address that the host has not: no error")
	}
}

func TestCapture(t *testing.T) {
	l := build(t, "alpha", "beta", "gamma")
	alpha, beta := l.Host("alpha"), l.Host("beta")
	at := map[string]*Capture{}
	for _, h := range l.Hosts() {
		c, err := h.Capture()
		if err != nil {
			t.Fatal(err)
		}
		at[h.Name] = c
	}
	marker := []byte("a marker in clear text")
	in, err := beta.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(beta.IPv4, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := alpha.Dial(t.Context(), "udp", in.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	const datagrams = 200
	for range datagrams {
		if _, err := out.Write(marker); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	if err := in.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range datagrams {
		if _, _, err := in.ReadFrom(buf); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range at {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		seen := 0
		for _, f := range c.Frames() {
			if bytes.Contains(f, marker) {
				seen++
			}
		}
		want := datagrams
		if name == "gamma" { // the first ones may be flooded, before the switch has learned
			if seen > datagrams/2 {
				t.Errorf("gamma saw %d of %d datagrams between alpha and beta", seen, datagrams)
			}
			continue
		}
		if seen != want {
			t.Errorf("the capture at %s has %d of %d datagrams", name, seen, want)
		}
	}
}

func TestPrograms(t *testing.T) {
	l := build(t, "alpha")
	alpha := l.Host("alpha")

	out, err := alpha.Run(exec.Command("readlink", "/proc/self/ns/net"))
	var want string
	if err := alpha.Do(func() (err error) { want, err = readNS(); return err }); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); err != nil || got != want {
		t.Errorf("the program ran in %s, want %s (%v)", got, want, err)
	}

	_, err = alpha.Run(exec.Command("sh", "-c", "echo trouble >&2; exit 7"))
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "trouble") {
		t.Errorf("Run = %v, want exit status 7 with the message", err)
	}

	p, err := alpha.Start(exec.Command("sleep", "600"))
	if err != nil {
		t.Fatal(err)
	}
	left, err := alpha.Leftovers()
	if err != nil || len(left) != 1 || !strings.Contains(left[0], "sleep") {
		t.Errorf("Leftovers = %q, %v; want the program", left, err)
	}
	if err := p.Stop(timeout(t, 5*time.Second)); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("Stop = %v, want signal: terminated", err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Errorf("Signal after the end: %v", err)
	}
	if left, err := alpha.Leftovers(); err != nil || len(left) != 0 {
		t.Errorf("Leftovers = %q, %v; want none", left, err)
	}

	err = alpha.Do(func() error {
		return errors.Join(
			netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "mesh0"}, Mode: netlink.TUNTAP_MODE_TUN}),
			netlink.RouteAdd(&netlink.Route{
				Dst:  address(netip.MustParsePrefix("10.86.0.0/16")).IPNet,
				Type: unix.RTN_UNREACHABLE, Protocol: hostnet.RouteProtocol,
			}))
	})
	if err != nil {
		t.Fatal(err)
	}
	left, err = alpha.Leftovers()
	if err != nil || !slices.Equal(left, []string{"link mesh0", "route 10.86.0.0/16"}) {
		t.Errorf("Leftovers = %q, %v; want the link and the route", left, err)
	}
}

func TestCloseEndsPrograms(t *testing.T) {
	netns.RequireRoot(t)
	l, err := New(t.Context(), "alpha")
	if err != nil {
		t.Fatal(err)
	}
	alpha := l.Host("alpha")
	p, err := alpha.Start(exec.Command("sleep", "600"))
	if err != nil {
		t.Fatal(err)
	}
	// One that its parent has left behind.
	if _, err := alpha.Run(exec.Command("sh", "-c", "sleep 601 >/dev/null 2>&1 &")); err != nil {
		t.Fatal(err)
	}
	strays, err := alpha.strays()
	if err != nil || len(strays) != 2 {
		t.Fatalf("programs on alpha: %v, %v; want 2", strays, err)
	}

	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "(sleep) was left on alpha") {
		t.Errorf("Close = %v, want it to report the program that was left", err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("Close did not wait for the program")
	}
	for _, s := range strays {
		for deadline := time.Now().Add(5 * time.Second); unix.Kill(s.pid, 0) == nil && !zombie(s.pid); {
			if time.Now().After(deadline) {
				t.Errorf("process %d is still there", s.pid)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	if _, err := alpha.Start(exec.Command("true")); err == nil {
		t.Error("a closed lab starts programs")
	}
}

func readNS() (string, error) { return os.Readlink("/proc/thread-self/ns/net") }

// zombie tells whether a process has ended, and only waits for its parent.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && bytes.Contains(stat, []byte(") Z "))
}
