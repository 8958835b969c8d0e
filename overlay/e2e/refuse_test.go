//go:build linux

package e2e

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// refuseWithin is how soon a start that cannot be is told so.
const refuseWithin = 500 * time.Millisecond

// rangeUse is something that a host has in a range of the mesh, or has beside it.
type rangeUse struct {
	name   string
	change func(add bool) error
	about  string // what the refusal names; empty: it is not in the way
}

// routeChange is a route of the host while a test runs.
func routeChange(r netlink.Route) func(bool) error {
	return func(add bool) error {
		if r.LinkIndex == 0 && r.Type == 0 {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			r.LinkIndex = eth.Attrs().Index
		}
		if add {
			return netlink.RouteAdd(&r)
		}
		return netlink.RouteDel(&r)
	}
}

func mustIPNet(s string) *net.IPNet { return ipNet(netip.MustParsePrefix(s)) }

const gatewayOfIPv6 = "the default gateway of IPv6"

// rangeUses are what the range 10.86.0.0/16, and fd86::/48 beside it, may meet.
var rangeUses = []rangeUse{
	{"a narrower route", routeChange(netlink.Route{Dst: mustIPNet("10.86.99.0/24"), Scope: netlink.SCOPE_LINK}), "10.86.99.0/24 on eth0"},
	{"a wider route", routeChange(netlink.Route{Dst: mustIPNet("10.0.0.0/8"), Scope: netlink.SCOPE_LINK}), "10.0.0.0/8 on eth0"},
	{"the same route", routeChange(netlink.Route{Dst: mustIPNet("10.86.0.0/16"), Scope: netlink.SCOPE_LINK}), "10.86.0.0/16 on eth0"},
	{"an IPv6 route", routeChange(netlink.Route{Dst: mustIPNet("fd86:0:0:5::/64")}), "fd86:0:0:5::/64 on eth0"},
	{"a blackhole", routeChange(netlink.Route{Dst: mustIPNet("10.86.99.0/24"), Type: unix.RTN_BLACKHOLE}), "blackhole route to 10.86.99.0/24"},
	{"the default gateway", routeChange(netlink.Route{Dst: mustIPNet("0.0.0.0/0"), Gw: net.ParseIP("10.86.0.1"), Flags: int(netlink.FLAG_ONLINK)}), "the default gateway 10.86.0.1 on eth0"},
	{gatewayOfIPv6, routeChange(netlink.Route{Dst: mustIPNet("::/0"), Gw: net.ParseIP("fd86::1"), Flags: int(netlink.FLAG_ONLINK)}), "the default gateway fd86::1 on eth0"},
	{"a gateway of another route", routeChange(netlink.Route{Dst: mustIPNet("10.50.0.0/16"), Gw: net.ParseIP("10.86.0.1"), Flags: int(netlink.FLAG_ONLINK)}), "the gateway 10.86.0.1 of this host's route to 10.50.0.0/16"},
	{"an own address", func(add bool) error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if add {
			return netlink.AddrAdd(lo, &netlink.Addr{IPNet: mustIPNet("10.86.7.7/32")})
		}
		return netlink.AddrDel(lo, &netlink.Addr{IPNet: mustIPNet("10.86.7.7/32")})
	}, "the address 10.86.7.7 on lo"},
	{"another table for everybody", func(add bool) error {
		r := routeChange(netlink.Route{Dst: mustIPNet("10.86.99.0/24"), Table: 52, Scope: netlink.SCOPE_LINK})
		rule := netlink.NewRule()
		rule.Family, rule.Table, rule.Priority = netlink.FAMILY_V4, 52, 5270
		if add {
			return errors.Join(r(true), netlink.RuleAdd(rule))
		}
		return errors.Join(netlink.RuleDel(rule), r(false))
	}, "10.86.99.0/24 on eth0 in table 52"},

	{"a table for nobody", routeChange(netlink.Route{Dst: mustIPNet("10.86.99.0/24"), Table: 53, Scope: netlink.SCOPE_LINK}), ""},
	{"a default route", routeChange(netlink.Route{Dst: mustIPNet("0.0.0.0/0"), Scope: netlink.SCOPE_LINK}), ""},
	{"a VPN's halves", func(add bool) error {
		return errors.Join(
			routeChange(netlink.Route{Dst: mustIPNet("0.0.0.0/1"), Scope: netlink.SCOPE_LINK})(add),
			routeChange(netlink.Route{Dst: mustIPNet("128.0.0.0/1"), Scope: netlink.SCOPE_LINK})(add),
			routeChange(netlink.Route{Dst: mustIPNet("::/1")})(add), routeChange(netlink.Route{Dst: mustIPNet("8000::/1")})(add))
	}, ""},
	{"private addresses go nowhere", func(add bool) error {
		return errors.Join(
			routeChange(netlink.Route{Dst: mustIPNet("10.0.0.0/8"), Type: unix.RTN_BLACKHOLE})(add),
			routeChange(netlink.Route{Dst: mustIPNet("fc00::/7"), Type: unix.RTN_UNREACHABLE})(add))
	}, ""},
	{"a route beside it", routeChange(netlink.Route{Dst: mustIPNet("10.87.0.0/16"), Scope: netlink.SCOPE_LINK}), ""},
}

// At init, at join, at the start and later, a mesh is not to take what a host has
// already; and what it does not take is in nobody's way.
func TestRefuse(t *testing.T) {
	t.Parallel()
	ranges := []string{"--ipv4", "10.86.0.0/16", "--ipv6", "fd86::/48"}
	c := hosts(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	during := func(t *testing.T, n *cluster.Node, u rangeUse, do func()) {
		t.Helper()
		must(t, n.Host.Do(func() error { return u.change(true) }))
		do()
		must(t, n.Host.Do(func() error { return u.change(false) }))
	}
	refused := func(t *testing.T, n *cluster.Node, cmd *exec.Cmd, program, about string) {
		t.Helper()
		before, files := leftovers(t, n), hashFiles(t, n.Dir)
		start := time.Now()
		out, code := runToEnd(t, n, cmd)
		took := time.Since(start)
		if code != exConfig {
			t.Errorf("exit code %d, want %d: %s", code, exConfig, out)
		}
		checkLine(t, out, program+": ", about)
		if took > 4*refuseWithin { // the exact bound: TestRefuseAtOnce
			t.Errorf("it took %s", took)
		}
		if after := leftovers(t, n); !slices.Equal(before, after) {
			t.Errorf("on the host: %v before, %v after", before, after)
		}
		if program == "meshctl" && len(hashFiles(t, n.Dir)) != len(files) {
			t.Errorf("files: %v before, %v after", files, hashFiles(t, n.Dir))
		}
	}

	t.Run("init", func(t *testing.T) {
		for _, u := range rangeUses {
			if u.about == "" {
				continue
			}
			t.Run(u.name, func(t *testing.T) {
				during(t, alpha, u, func() {
					refused(t, alpha, alpha.Command(bounded(t), append([]string{"init", "--name", "lab"}, ranges...)...), "meshctl", u.about)
				})
			})
		}
	})
	_, err := alpha.Meshctl(t.Context(), append([]string{"init", "--name", "lab"}, ranges...)...)
	must(t, err)
	token, err := alpha.Token(t.Context())
	must(t, err)
	t.Run("join", func(t *testing.T) {
		join := func(env ...string) *exec.Cmd {
			cmd := beta.Command(bounded(t), "join", "-")
			cmd.Stdin, cmd.Env = strings.NewReader(token), append(cmd.Environ(), env...)
			return cmd
		}
		for _, u := range rangeUses {
			if u.about == "" {
				continue
			}
			t.Run(u.name, func(t *testing.T) {
				during(t, beta, u, func() { refused(t, beta, join(), "meshctl", u.about) })
			})
		}
		t.Run("an SSH session", func(t *testing.T) {
			refused(t, beta, join("SSH_CONNECTION=10.86.3.4 50000 198.18.0.2 22"), "meshctl", "10.86.3.4, an end of your SSH session")
		})
		t.Run("an SSH session, and sudo", func(t *testing.T) {
			// The shell has the variable, and takes it from what it runs.
			inner := join()
			cmd := exec.CommandContext(bounded(t), "/bin/sh", append([]string{"-c", `env -u SSH_CONNECTION "$0" "$@"; exit $?`}, inner.Args...)...)
			cmd.Stdin, cmd.Env = inner.Stdin, append(cmd.Environ(), "SSH_CONNECTION=10.86.3.4 50000 198.18.0.2 22")
			cmd.Args[3] = inner.Path
			refused(t, beta, cmd, "meshctl", "10.86.3.4, an end of your SSH session")
		})
		t.Run("a connection", func(t *testing.T) {
			whileConnected(t, c, func() { refused(t, beta, join(), "meshctl", "198.18.0.2:22 with 10.86.3.4:") })
		})
	})
	must(t, beta.Join(t.Context(), token))

	t.Run("start", func(t *testing.T) {
		for _, u := range rangeUses {
			t.Run(u.name, func(t *testing.T) {
				during(t, beta, u, func() {
					if u.about != "" {
						refused(t, beta, beta.DaemonCommand(bounded(t)), "meshd", u.about)
						refused(t, beta, beta.DaemonCommand(bounded(t), "--check"), "meshd", u.about)
						return
					}
					if out, code := runToEnd(t, beta, beta.DaemonCommand(bounded(t), "--check")); code != 0 {
						t.Errorf("exit code %d: %s", code, out)
					}
				})
			})
		}
		t.Run("a connection", func(t *testing.T) {
			whileConnected(t, c, func() {
				refused(t, beta, beta.DaemonCommand(bounded(t)), "meshd", "198.18.0.2:22 with 10.86.3.4:")
			})
		})
		t.Run("a seed", func(t *testing.T) {
			must(t, beta.Configure(`seeds: ["10.86.3.4:51881"]`))
			refused(t, beta, beta.DaemonCommand(bounded(t)), "meshd", "the seed 10.86.3.4:51881")
		})
		t.Run("an address to advertise", func(t *testing.T) {
			must(t, beta.Configure(`advertise: ["10.86.3.4:51880"]`))
			refused(t, beta, beta.DaemonCommand(bounded(t)), "meshd", "the address to advertise 10.86.3.4:51880")
		})
		must(t, beta.Configure())
	})

	t.Run("later", func(t *testing.T) {
		must(t, c.Start())
		must(t, c.WaitAllPairs(bounded(t)))
		whole := ourNetwork(t, beta.Host)
		pid := pidOf(beta)
		overlap := func(d *status.Document) string {
			for _, f := range d.Health {
				if f.Code == "overlap" {
					return f.Message
				}
			}
			return ""
		}
		for _, u := range rangeUses {
			t.Run(u.name, func(t *testing.T) {
				if u.name == gatewayOfIPv6 {
					t.Skip("the kernel refuses it: our route leads to it by another link")
				}
				during(t, beta, u, func() {
					if u.about == "" {
						time.Sleep(1200 * time.Millisecond) // it looks within a second
					} else {
						must(t, beta.WaitFor(bounded(t), "to find "+u.about, func(d *status.Document) bool {
							return strings.Contains(overlap(d), u.about) && strings.Contains(overlap(d), "of the mesh overlaps")
						}))
					}
					if u.about == "" && overlap(document(t, beta)) != "" {
						t.Errorf("it says %q", overlap(document(t, beta)))
					}
					if now := ourNetwork(t, beta.Host); !slices.Equal(now, whole) {
						t.Errorf("torn down: %v before, %v after", whole, now)
					}
				})
				must(t, beta.WaitFor(bounded(t), "to find no overlap", func(d *status.Document) bool { return overlap(d) == "" }))
			})
		}
		if now := pidOf(beta); now != pid {
			t.Errorf("the daemon was %d and is %d", pid, now)
		}
		must(t, c.WaitAllPairs(bounded(t)))
	})
}

// whileConnected has the first host be 10.86.3.4 and hold a TCP connection, such as
// that of ssh, with the second one. It is reached by a default route.
func whileConnected(t *testing.T, c *cluster.Cluster, do func()) {
	t.Helper()
	client, server := c.Nodes[0].Host, c.Nodes[1].Host
	address := netip.MustParsePrefix("10.86.3.4/32")
	must(t, client.AddAddress(address))
	byDefault := routeChange(netlink.Route{Dst: mustIPNet("0.0.0.0/0"), Scope: netlink.SCOPE_LINK})
	must(t, server.Do(func() error { return byDefault(true) }))
	l, err := server.Listen(t.Context(), "tcp", netip.AddrPortFrom(server.IPv4, 22).String())
	must(t, err)
	var conn net.Conn
	must(t, client.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: address.Addr().AsSlice()}}
		conn, err = d.DialContext(t.Context(), "tcp", l.Addr().String())
		return err
	}))
	accepted, err := l.Accept()
	must(t, err)
	do()
	must(t, errors.Join(accepted.Close(), conn.Close(), l.Close()))
	must(t, server.Do(func() error { return byDefault(false) }))
	must(t, client.RemoveAddress(address))
}

// A start that cannot be is told so at once.
func TestRefuseAtOnce(t *testing.T) {
	c := hosts(t, 1)
	n := c.Nodes[0]
	_, err := n.Meshctl(t.Context(), "init", "--name", "lab", "--ipv4", "10.86.0.0/16")
	must(t, err)
	must(t, n.Host.Do(func() error { return rangeUses[0].change(true) }))
	var all []time.Duration
	for range 10 {
		within(t, "refused", refuseWithin, func() time.Duration {
			start := time.Now()
			out, code := runToEnd(t, n, n.DaemonCommand(bounded(t)))
			took := time.Since(start)
			if code != exConfig {
				t.Errorf("exit code %d: %s", code, out)
			}
			all = append(all, took)
			return took
		})
	}
	slices.Sort(all)
	t.Logf("refused after %s (median), %s (maximum)", all[len(all)/2], all[len(all)-1])
}
