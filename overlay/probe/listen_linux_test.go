package probe

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"meshd/tun/netns"
)

// Questions of full size leave whole also by a route that says that the path carries
// less: else nobody would find that it carries all again.
func TestRoutesDoNotCutProbes(t *testing.T) {
	ns := netns.ForTest(t)
	err := ns.Do(func() error {
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 2}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one", MTU: 1500}, PeerName: "two"}); err != nil {
			return err
		}
		for _, name := range []string{"two", "one"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
			if name == "two" {
				continue
			}
			for _, do := range []error{
				netlink.AddrAdd(link, &netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP("fd00::1")), Flags: 0x02}), // IFA_F_NODAD
				netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP("fd00::2"), HardwareAddr: mac, State: netlink.NUD_PERMANENT}),
				netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netlink.NewIPNet(net.ParseIP("fd00::2")), MTU: 1280}),
			} {
				if do != nil {
					return do
				}
			}
		}
		c, err := New(slog.New(slog.DiscardHandler), nil, nil).listen(netip.MustParseAddrPort("[fd00::1]:51882"))
		if err != nil {
			return err
		}
		defer c.Close()
		fragments := func() string {
			stats, err := os.ReadFile("/proc/thread-self/net/snmp6")
			if err != nil {
				t.Error(err)
			}
			return regexp.MustCompile(`Ip6FragCreates\s+(\d+)`).FindStringSubmatch(string(stats))[1]
		}
		other := netip.MustParseAddr("fd00::2")
		if err := send(c, other, ask, 1, 1500-headers); err != nil {
			t.Errorf("of full size: %v", err)
		}
		if n := fragments(); n != "0" {
			t.Errorf("a question of full size left in %s fragments", n)
		}
		if err := send(c, other, ask, 1, 1501-headers); err == nil {
			t.Error("what is longer than the device takes was sent")
		}
		plain, err := net.ListenUDP("udp6", nil) // shows that the route says so
		if err != nil {
			return err
		}
		defer plain.Close()
		if err := send(plain, other, ask, 1, 1500-headers); err != nil || fragments() == "0" {
			t.Errorf("what heeds the route left in %s fragments, %v", fragments(), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A kernel without the option takes the measuring away, not the probing.
func TestKernelThatSendsNothingWhole(t *testing.T) {
	var said bytes.Buffer
	p := New(slog.New(slog.NewTextHandler(&said, nil)), nil, nil)
	p.whole = func(uintptr) error { return syscall.ENOPROTOOPT }
	p.SetMTU(deviceMTU)
	for range 2 {
		c, err := p.listen(netip.MustParseAddrPort("[::1]:0"))
		if err != nil {
			t.Fatalf("listen: %v, want a socket that probes", err)
		}
		defer c.Close()
		p.SetMTU(deviceMTU + 80)
	}
	if p.schedule.mtu != 0 {
		t.Errorf("paths are measured by packets of %d", p.schedule.mtu)
	}
	if n := strings.Count(said.String(), "\n"); n != 1 || !strings.Contains(said.String(), syscall.ENOPROTOOPT.Error()) {
		t.Errorf("said %q, want the cause, once", said.String())
	}
}
