//go:build linux

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"meshd/overlay/attach"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/debian"
	"meshd/tun/netns"
)

func TestMain(m *testing.M) { cluster.Main(m) }

// recording makes files for cmd/mesh-cni/testdata/recorded.
var recording = flag.String("record", "", "folder for what runtimes say to mesh-cni, a file for each call")

// recorder stands in for mesh-cni: it notes what it is called with.
const recorder = `#!/bin/sh
note=$(mktemp "%s/$(date +%%s%%N)-$CNI_COMMAND.XXXX")
env | grep '^CNI_' | grep -v '^CNI_PATH=' | sort >"$note"
echo >>"$note"
tee -a "$note" | exec "$0.real"
`

// record puts the recorder into a box.
func record(b *Box) error {
	program := filepath.Join(b.dir, "opt/cni/bin/mesh-cni")
	return errors.Join(os.Rename(program, program+".real"), os.WriteFile(program, fmt.Appendf(nil, recorder, *recording), 0o755))
}

// example is the configuration list that people copy.
const example = "../../../examples/cni/10-meshd.conflist"

// newMesh makes a mesh in which everybody reaches everybody, with a box on each
// host.
func newMesh(t *testing.T, names ...string) []*Box {
	t.Helper()
	bin := cluster.Programs(t)
	if err := Possible(); err != nil {
		if os.Getenv("MESHD_REQUIRE_ROOT") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	c := bin.ForTest(t, names, `docker: {socket: ""}`)
	must(t, c.Init(t.Context(), "--ipv6", "fd00:86::/48"))
	must(t, c.Start())
	must(t, c.WaitAllPairs(cluster.Bounded(t)))
	var boxes []*Box
	for _, n := range c.Nodes {
		b, err := NewBox(n, bin)
		must(t, err)
		boxes = append(boxes, b)
		configure(t, b, nil)
		if *recording != "" {
			must(t, record(b))
		}
	}
	return boxes
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// configure writes the example's list with changes.
func configure(t *testing.T, b *Box, change func(list, entry map[string]any)) {
	t.Helper()
	raw, err := os.ReadFile(example)
	must(t, err)
	if change != nil {
		var list map[string]any
		must(t, json.Unmarshal(raw, &list))
		change(list, list["plugins"].([]any)[0].(map[string]any))
		raw, err = json.Marshal(list)
		must(t, err)
	}
	must(t, b.Configure(raw))
}

func version11(list, _ map[string]any) { list["cniVersion"] = "1.1.0" }

// attached lists what the daemon has, by container.
func attached(t *testing.T, b *Box) []attach.Attachment {
	t.Helper()
	all, err := b.Node.Client().Attachments(cluster.Bounded(t))
	must(t, err)
	return all
}

func wantNothing(t *testing.T, b *Box) {
	t.Helper()
	if all := attached(t, b); len(all) > 0 {
		t.Errorf("on %s there is still %+v", b.Node.Name, all)
	}
	must(t, b.Node.Host.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if name := l.Attrs().Name; strings.HasPrefix(name, "mv-") || strings.HasPrefix(name, "mc-") {
				t.Errorf("%s still has the link %s", b.Node.Name, name)
			}
		}
		return err
	}))
}

// tool runs cnitool, which must succeed.
func (b *Box) tool(t *testing.T, command string, ns *netns.NS, env ...string) []byte {
	t.Helper()
	out, err := b.Cnitool(cluster.Bounded(t), command, "meshd", ns.Path(), env...)
	must(t, err)
	return out
}

// refused runs cnitool, which must fail and say why.
func (b *Box) refused(t *testing.T, want, command string, ns *netns.NS, env ...string) {
	t.Helper()
	out, err := b.Cnitool(cluster.Bounded(t), command, "meshd", ns.Path(), env...)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("cnitool %s on %s: %s, %v; want an error with %q", command, b.Node.Name, out, err, want)
	}
}

// added runs an ADD and gives its result.
func (b *Box) added(t *testing.T, ns *netns.NS, env ...string) (r types100.Result) {
	t.Helper()
	must(t, json.Unmarshal(b.tool(t, "add", ns, env...), &r))
	return r
}

// addresses are those of a result.
func addresses(r types100.Result) []netip.Addr {
	var all []netip.Addr
	for _, ip := range r.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			all = append(all, a.Unmap())
		}
	}
	return all
}

// reaches pings an address from a namespace.
func reaches(t *testing.T, from *netns.NS, to netip.Addr) {
	t.Helper()
	if err := ping(cluster.Bounded(t), from, to, "5"); err != nil {
		t.Error(err)
	}
}

// ping waits so many seconds for an answer.
func ping(ctx context.Context, from *netns.NS, to netip.Addr, seconds string) error {
	cmd := exec.CommandContext(ctx, debian.Tool("nsenter"), "--net="+from.Path(), debian.Tool("busybox"), "ping", "-c", "1", "-W", seconds, to.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s is not reached: %w\n%s", to, err, out)
	}
	return nil
}

// connects makes a TCP connection from one namespace to another.
func connects(t *testing.T, from, to *netns.NS, at netip.Addr) {
	t.Helper()
	ctx := cluster.Bounded(t)
	var l net.Listener
	must(t, to.Do(func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", netip.AddrPortFrom(at, 8080).String())
		return err
	}))
	defer l.Close()
	must(t, netns.Run(from.Path(), func() error {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			c.Close()
		}
		return err
	}))
}

// The reference tool takes containers through their life on two hosts.
func TestCnitool(t *testing.T) {
	t.Parallel()
	boxes := newMesh(t, "alpha", "beta")
	alpha, beta := boxes[0], boxes[1]
	configure(t, alpha, version11)
	one, two := netns.ForTest(t), netns.ForTest(t)

	alpha.tool(t, "status", one)
	onAlpha, onBeta := alpha.added(t, one), beta.added(t, two)
	for _, to := range addresses(onBeta) {
		reaches(t, one, to)
		connects(t, one, two, to)
	}
	for _, to := range addresses(onAlpha) {
		reaches(t, two, to)
	}
	if n := len(addresses(onAlpha)); n != 2 {
		t.Errorf("the container has %d addresses, want one of each family", n)
	}
	if got := attached(t, alpha); len(got) != 1 || !strings.HasPrefix(got[0].ID, "cni/meshd/cnitool-") {
		t.Errorf("attached is %+v", got)
	}

	alpha.tool(t, "check", one)
	beta.tool(t, "check", two)
	alpha.refused(t, "prevResult is missing", "check", one, "CNI_IFNAME=eth7")
	t.Run("second network", func(t *testing.T) {
		_, err := alpha.Node.Meshctl(cluster.Bounded(t), "network", "create", "web", "--ipv4", "10.87.0.0/16")
		must(t, err)
		var web [][]netip.Addr
		for i, b := range boxes {
			configure(t, b, func(list, entry map[string]any) {
				list["name"], entry["network"], entry["defaultRoute"] = "web", "web", false
			})
			var out []byte
			must(t, cluster.Poll(cluster.Bounded(t), func() (bool, error) { // until beta knows the network
				out, err = b.Cnitool(t.Context(), "add", "web", []*netns.NS{one, two}[i].Path(), "CNI_IFNAME=eth1")
				return err == nil, err
			}))
			var r types100.Result
			must(t, json.Unmarshal(out, &r))
			web = append(web, addresses(r))
		}
		must(t, cluster.Poll(cluster.Bounded(t), func() (bool, error) { // until alpha knows what beta has leased
			err := ping(t.Context(), one, web[1][0], "1")
			return err == nil, err
		}))
		for i := range web[0] {
			reaches(t, one, web[1][i])
			reaches(t, two, web[0][i])
		}
		reaches(t, one, addresses(onBeta)[0])
		for i, b := range boxes {
			for _, command := range []string{"check", "del"} {
				_, err := b.Cnitool(cluster.Bounded(t), command, "web", []*netns.NS{one, two}[i].Path(), "CNI_IFNAME=eth1")
				must(t, err)
			}
		}
		reaches(t, one, addresses(onBeta)[0])
	})
	t.Run("by CNI_ARGS", func(t *testing.T) {
		ns := netns.ForTest(t)
		wish := "CNI_ARGS=IP=" + another(onBeta).String() + ",::"
		if got := addresses(beta.added(t, ns, wish)); len(got) != 2 || got[0] != another(onBeta) {
			t.Errorf("the container has %s, and asked for %s", got, another(onBeta))
		}
		beta.refused(t, "the address is taken", "add", netns.ForTest(t), wish)
		beta.tool(t, "del", ns)
	})
	t.Run("fixed by the runtime", func(t *testing.T) {
		ns := netns.ForTest(t)
		r := beta.added(t, ns, fmt.Sprintf(`CAP_ARGS={"ips": ["%s/24"], "mac": "02:00:00:00:00:77"}`, another(onBeta)))
		if got := addresses(r); len(got) != 1 || got[0] != another(onBeta) || r.Interfaces[1].Mac != "02:00:00:00:00:77" {
			t.Errorf("the container has %v and %+v", got, r.Interfaces[1])
		}
		beta.tool(t, "check", ns)
		reaches(t, ns, addresses(onBeta)[0])
		beta.tool(t, "del", ns)
	})
	for mode, parent := range map[string]string{"ptp": "", "macvlan": "eth0"} {
		t.Run(mode, func(t *testing.T) {
			configure(t, beta, func(list, entry map[string]any) {
				list["name"], entry["mode"] = mode, mode
				if parent != "" {
					entry["parent"] = parent
				}
			})
			ns := netns.ForTest(t)
			call := func(command string) []byte {
				t.Helper()
				out, err := beta.Cnitool(cluster.Bounded(t), command, mode, ns.Path())
				must(t, err)
				return out
			}
			var r types100.Result
			must(t, json.Unmarshal(call("add"), &r))
			call("check")
			for i, a := range addresses(r) {
				reaches(t, one, a) // on the other host
				reaches(t, ns, addresses(onAlpha)[i])
				reaches(t, two, a) // on the same
			}
			call("del")
		})
	}
	t.Run("vanished", func(t *testing.T) {
		ns := netns.ForTest(t)
		beta.added(t, ns)
		path := ns.Path()
		ns.Close()
		if _, err := beta.Cnitool(cluster.Bounded(t), "del", "meshd", path); err != nil {
			t.Errorf("DEL without the namespace: %v", err)
		}
	})
	t.Run("not ours", func(t *testing.T) { // an interface of that name is there already
		ns := netns.ForTest(t)
		must(t, ns.Do(func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"})
		}))
		beta.refused(t, "name is taken", "add", ns)
		beta.tool(t, "del", ns)
		must(t, ns.Do(func() error { _, err := netlink.LinkByName("eth0"); return err }))
	})

	must(t, one.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetDown(l)
		}
		return err
	}))
	alpha.refused(t, "it is down", "check", one)
	for range 2 {
		alpha.tool(t, "del", one)
		beta.tool(t, "del", two)
	}
	wantNothing(t, alpha)
	wantNothing(t, beta)

	t.Run("GC", func(t *testing.T) {
		alpha.added(t, netns.ForTest(t))
		alpha.added(t, netns.ForTest(t), "CNI_IFNAME=eth3")
		_, err := alpha.Node.Client().Attach(cluster.Bounded(t), attach.Ask{ID: "ctl/other"})
		must(t, err)
		// As after a crash of the runtime, which remembers nothing.
		must(t, os.RemoveAll(alpha.dir+"/var/lib/cni"))
		must(t, os.Mkdir(alpha.dir+"/var/lib/cni", 0o755))
		alpha.tool(t, "gc", one)
		if got := attached(t, alpha); len(got) != 1 || got[0].ID != "ctl/other" {
			t.Errorf("after GC there is %+v; want ctl/other alone", got)
		}
		must(t, alpha.Node.Client().Detach(cluster.Bounded(t), "ctl/other"))
	})
	t.Run("no daemon", func(t *testing.T) {
		alpha.added(t, one)
		alpha.Node.Kill()
		alpha.refused(t, "meshd does not answer", "status", two)
		alpha.refused(t, "no daemon answers", "add", two)
		alpha.refused(t, "no daemon answers", "check", one)
		alpha.tool(t, "del", one)
		must(t, one.Do(func() error {
			if _, err := netlink.LinkByName("eth0"); err == nil {
				t.Error("DEL without a daemon left eth0 in the container")
			}
			return nil
		}))
		must(t, alpha.Node.Start())
		must(t, alpha.Node.WaitReady(cluster.Bounded(t)))
		alpha.added(t, one)
		alpha.tool(t, "check", one)
		alpha.tool(t, "del", one)
		wantNothing(t, alpha)
	})
}

// another is an address of the same subnet that nobody has.
func another(r types100.Result) netip.Addr {
	raw := addresses(r)[0].As4()
	raw[3] = 77
	return netip.AddrFrom4(raw)
}

// Plugins of others after ours find what they need: one publishes a port, and a
// member of the mesh reaches the container by it. (CHECK is left out: Debian's
// portmap, 1.1.1, looks for its rules of IPv4 among those of IPv6.)
func TestChain(t *testing.T) {
	t.Parallel()
	boxes := newMesh(t, "alpha", "beta")
	alpha, beta := boxes[0], boxes[1]
	configure(t, alpha, func(list, entry map[string]any) {
		list["plugins"] = []any{
			entry,
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": true},
			map[string]any{"type": "firewall"},
			map[string]any{"type": "tuning", "sysctl": map[string]string{"net.ipv4.conf.IFNAME.log_martians": "0"}},
		}
	})
	one, two := netns.ForTest(t), netns.ForTest(t)
	args := `CAP_ARGS={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}`
	r := alpha.added(t, one, args)
	beta.added(t, two)

	var l net.Listener
	must(t, one.Do(func() (err error) {
		l, err = net.Listen("tcp4", ":80") //nolint:noctx // at once
		return err
	}))
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello"))
			c.Close()
		}
	}()
	mesh, err := alpha.Node.Addresses(cluster.Bounded(t))
	must(t, err)
	for name, at := range map[string]netip.AddrPort{
		"the container": netip.AddrPortFrom(addresses(r)[0], 80),
		"its host":      netip.AddrPortFrom(alpha.Node.Host.IPv4, 8080),
		"in the mesh":   netip.AddrPortFrom(mesh[0], 8080),
	} {
		ctx := cluster.Bounded(t)
		c, err := beta.Node.Host.Dial(ctx, "tcp", at.String())
		if err != nil {
			t.Errorf("beta does not reach %s, %s: %v", name, at, err)
			continue
		}
		c.Close()
	}
	reaches(t, two, addresses(r)[0])
	alpha.tool(t, "del", one, args)
	beta.tool(t, "del", two)
	wantNothing(t, alpha)
}

// Real containers on two hosts reach each other, and what has ended is detached.
func TestContainerd(t *testing.T) {
	t.Parallel()
	boxes := newMesh(t, "alpha", "beta")
	var runtimes []*Containerd
	for _, b := range boxes {
		c, err := b.Containerd(cluster.Bounded(t))
		must(t, err)
		t.Cleanup(func() {
			if err := c.Kill(); err != nil {
				t.Error(err)
			}
		})
		runtimes = append(runtimes, c)
		_, err = c.Run(cluster.Bounded(t), true, "web", "sleep", "600")
		must(t, err)
	}
	for i, c := range runtimes {
		other := attached(t, boxes[1-i])
		if len(other) != 1 || len(other[0].Addresses) != 2 {
			t.Fatalf("attached on %s is %+v", boxes[1-i].Node.Name, other)
		}
		for _, a := range other[0].Addresses {
			if out, err := c.Exec(cluster.Bounded(t), "web", "ping", "-c", "1", "-W", "5", a.Addr().String()); err != nil {
				t.Errorf("from %s: %v\n%s", boxes[i].Node.Name, err, out)
			}
		}
	}

	// TCP from one to the other, by a container that ends.
	server := attached(t, boxes[1])[0].Addresses[0].Addr()
	_, err := runtimes[1].Exec(cluster.Bounded(t), "web", "sh", "-c", "mkdir -p /tmp/www && echo hello >/tmp/www/index.html && httpd -p 80 -h /tmp/www")
	must(t, err)
	out, err := runtimes[0].Run(cluster.Bounded(t), false, "once", "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 `+server.String()+" 80")
	if err != nil || !strings.HasSuffix(out, "hello") {
		t.Errorf("a container on alpha gets %q, %v; want hello", out, err)
	}
	if all := attached(t, boxes[0]); len(all) != 1 || !strings.HasSuffix(all[0].ID, "-web/eth0") {
		t.Errorf("after the second container has ended, there is %+v", all)
	}
}

// A hundred containers at once, with the daemon killed in the middle, and the same
// when they end: each has addresses of its own, and none is lost.
func TestKilled(t *testing.T) {
	t.Parallel()
	const n = 100
	alpha := newMesh(t, "alpha")[0]
	conf := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "many", "type": "mesh-cni", "socket": %q}`, alpha.Node.Socket())
	names := make([]string, n)
	spaces := make([]*netns.NS, n)
	for i := range n {
		names[i], spaces[i] = fmt.Sprintf("c%d", i), netns.ForTest(t)
	}

	// each calls the plugin for every container as a runtime does, which tries again
	// when it is told to. When a quarter of them are through, the daemon is
	// killed.
	each := func(command string, done func(i int, out []byte)) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		var through, again atomic.Int32
		var mu sync.Mutex // guards took
		var took []time.Duration
		quarter := make(chan struct{})
		var tasks sync.WaitGroup
		for i := range n {
			tasks.Go(func() {
				err := cluster.Poll(ctx, func() (bool, error) {
					start := time.Now()
					out, err := alpha.Plugin(ctx, command, names[i], spaces[i].Path(), conf)
					if err != nil {
						var e types.Error
						if json.Unmarshal(out, &e) != nil || e.Code != types.ErrTryAgainLater {
							t.Errorf("%s %s: %v", command, names[i], err)
						}
						again.Add(1)
						return false, err
					}
					mu.Lock()
					took = append(took, time.Since(start))
					mu.Unlock()
					done(i, out)
					if through.Add(1) == n/4 {
						close(quarter)
					}
					return true, nil
				})
				if err != nil {
					t.Errorf("%s %s: %v", command, names[i], err)
				}
			})
		}
		select {
		case <-quarter:
			alpha.Node.Kill()
			must(t, alpha.Node.Start())
		case <-ctx.Done():
		}
		tasks.Wait()
		slices.Sort(took)
		if len(took) == n {
			t.Logf("%s: %d in all, %d were tried again; half took %v, 95 in 100 %v, all at once", command, n, again.Load(), took[n/2], took[n*95/100])
		}
	}

	var mu sync.Mutex // guards results
	results := map[string][]netip.Addr{}
	each("ADD", func(i int, out []byte) {
		var r types100.Result
		if err := json.Unmarshal(out, &r); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		results["cni/many/"+names[i]+"/eth0"] = addresses(r)
	})
	holder := map[netip.Addr]string{}
	for _, a := range attached(t, alpha) {
		var have []netip.Addr
		for _, p := range a.Addresses {
			have = append(have, p.Addr())
			if other := holder[p.Addr()]; other != "" {
				t.Errorf("%s is given to %s and to %s", p.Addr(), other, a.ID)
			}
			holder[p.Addr()] = a.ID
		}
		if !slices.Equal(have, results[a.ID]) {
			t.Errorf("%s was told of %v, and the daemon knows %v", a.ID, results[a.ID], have)
		}
	}
	if len(holder) != 2*n {
		t.Errorf("%d addresses are given, want %d", len(holder), 2*n)
	}
	for _, i := range []int{0, n / 2, n - 1} {
		reaches(t, spaces[i], results["cni/many/"+names[0]+"/eth0"][0])
		reaches(t, spaces[i], results["cni/many/"+names[n-1]+"/eth0"][1])
	}

	each("DEL", func(int, []byte) {})
	// Those that ended while there was no daemon, it finds without a link after a
	// minute. The runtime need not wait for that.
	must(t, alpha.Node.WaitReady(cluster.Bounded(t)))
	left := attached(t, alpha)
	must(t, alpha.Node.Host.Do(func() error {
		for _, a := range left {
			if _, err := netlink.LinkByName(a.HostLink); err == nil {
				t.Errorf("%s was ended and has its link %s still: nobody would ever take it back", a.ID, a.HostLink)
			}
		}
		return nil
	}))
	if _, err := alpha.Plugin(cluster.Bounded(t), "GC", "", "", conf); err != nil {
		t.Error(err)
	}
	wantNothing(t, alpha)
}
