//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// revokedWithin is how soon nobody takes a byte from a revoked node any more.
const revokedWithin = 2 * time.Second

// ear notes when datagrams come to an address of a host.
type ear struct {
	name string
	conn net.PacketConn
	done chan struct{}

	mu    sync.Mutex
	count int       // guarded by mu
	last  time.Time // guarded by mu
}

const earPort = 7777

func listenAt(t *testing.T, n *cluster.Node, addr netip.Addr) *ear {
	t.Helper()
	conn, err := n.Host.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(addr, earPort).String())
	must(t, err)
	e := &ear{name: n.Name, conn: conn, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		buf := make([]byte, 1500)
		for {
			if _, _, err := conn.ReadFrom(buf); err != nil {
				return
			}
			e.mu.Lock()
			e.count, e.last = e.count+1, time.Now()
			e.mu.Unlock()
		}
	}()
	t.Cleanup(func() { conn.Close(); <-e.done })
	return e
}

func (e *ear) heard() (count int, last time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.count, e.last
}

// shout sends datagrams from a host to an address, one after each pause, whatever
// becomes of them.
func shout(ctx context.Context, from *lab.Host, to netip.Addr, pause time.Duration) (stop func(), err error) {
	c, err := from.ListenPacket(ctx, "udp4", "0.0.0.0:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(pause)
		defer tick.Stop()
		target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, earPort))
		for ctx.Err() == nil {
			_, _ = c.WriteTo([]byte("still here"), target)
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return func() { cancel(); <-done; c.Close() }, nil
}

// silentAfter fails if an ear hears something after a moment.
func silentAfter(t *testing.T, what string, since time.Time, ears ...*ear) {
	t.Helper()
	for _, e := range ears {
		if _, last := e.heard(); last.After(since) {
			t.Errorf("%s: %s got something %s after the bound of %s", what, e.name, last.Sub(since).Round(time.Millisecond), revokedWithin)
		}
	}
}

// A node is thrown out under load: within two seconds nobody takes anything from it,
// and that holds when everybody is restarted, and on one that was off meanwhile.
func TestRevoke(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 5)
	alpha, evil, sleeper := c.Nodes[0], c.Nodes[4], c.Nodes[3]
	good := c.Nodes[:4]
	awake := c.Nodes[:3]
	var ears []*ear
	for _, n := range good {
		addr := addresses(t, n)[0]
		ears = append(ears, listenAt(t, n, addr))
		stop, err := shout(t.Context(), evil.Host, addr, 10*time.Millisecond)
		must(t, err)
		t.Cleanup(stop)
	}
	must(t, cluster.Poll(bounded(t), func() (bool, error) {
		for _, e := range ears {
			if n, _ := e.heard(); n < 10 {
				return false, fmt.Errorf("%s has heard %d datagrams of %s", e.name, n, evil.Name)
			}
		}
		return true, nil
	}))
	evilAddr := addresses(t, evil)[0]
	flow, err := alpha.Host.Pings(t.Context(), addresses(t, good[1])[0], 20*time.Millisecond)
	must(t, err)
	defer flow.Stop()
	sleeper.Kill()

	begin := time.Now()
	out, err := alpha.Meshctl(bounded(t), "revoke", evil.Name, "--yes")
	must(t, err)
	if !strings.Contains(out, "Revoked "+evil.Name) {
		t.Errorf("it says %q", out)
	}
	bound := time.Now().Add(revokedWithin)
	pause(t.Context(), time.Until(bound)+2*time.Second)
	silentAfter(t, "under load", bound, ears[:3]...)
	slowest := begin
	for _, e := range ears[:3] {
		if _, last := e.heard(); last.After(slowest) {
			slowest = last
		}
	}
	t.Logf("the last byte came %d ms after the command was given", slowest.Sub(begin).Milliseconds())
	for _, n := range awake {
		if p := peerNamed(document(t, n), evil.Name); p != nil {
			t.Errorf("%s still lists %s as %s", n.Name, evil.Name, p.State)
		}
		if _, err := n.Host.Ping(shortly(t), evilAddr); err == nil {
			t.Errorf("%s still reaches %s", n.Name, evil.Name)
		}
	}
	if lost, sent := flow.Between(begin, time.Now().Add(-time.Second)); lost > 0 {
		t.Errorf("%d of %d pings between two others were lost", lost, sent)
	}

	// Who was off hears of it before long, from those who were not.
	must(t, sleeper.Start())
	must(t, cluster.WaitPairs(bounded(t), good...))
	must(t, sleeper.WaitFor(bounded(t), "to know of the revocation", func(d *status.Document) bool { return peerNamed(d, evil.Name) == nil }))
	bound = time.Now().Add(revokedWithin)
	pause(t.Context(), time.Until(bound)+time.Second)
	silentAfter(t, "who was off", bound, ears...)

	// It is remembered.
	evil.Kill()
	must(t, evil.Start())
	for _, n := range good {
		n.Kill()
	}
	restarted := time.Now()
	for _, n := range good {
		must(t, n.Start())
	}
	must(t, cluster.WaitPairs(bounded(t), good...))
	pause(t.Context(), 2*time.Second)
	silentAfter(t, "after a restart of all", restarted, ears...)
	for _, n := range good {
		if p := peerNamed(document(t, n), evil.Name); p != nil {
			t.Errorf("after a restart %s lists %s as %s", n.Name, evil.Name, p.State)
		}
	}
}

// shortly bounds what is not expected to work.
func shortly(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// A node that only a revoked one vouched for stays, over restarts and for those who
// come later.
func TestRevokeWitness(t *testing.T) {
	t.Parallel()
	c := hosts(t, 4)
	alpha, beta, gamma, delta := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	token, err := alpha.Token(t.Context(), "--uses", "0")
	must(t, err)
	must(t, beta.Join(t.Context(), token))
	must(t, alpha.Start())
	must(t, beta.Start())
	must(t, cluster.WaitPairs(bounded(t), alpha, beta))
	alpha.Kill() // so that beta vouches for gamma
	more := []string{"seeds: [\"" + netip.AddrPortFrom(beta.Host.IPv4, gossipPort).String() + "\"]"}
	must(t, gamma.Configure(more...))
	must(t, gamma.Join(t.Context(), token))
	must(t, gamma.Start())
	must(t, cluster.WaitPairs(bounded(t), beta, gamma))
	startAgainAmong(t, alpha, beta, gamma)

	_, err = alpha.Meshctl(bounded(t), "revoke", beta.Name, "--yes")
	must(t, err)
	for _, n := range []*cluster.Node{alpha, gamma} {
		must(t, n.WaitFor(bounded(t), "to have dropped beta", func(d *status.Document) bool { return peerNamed(d, "beta") == nil }))
	}
	beta.Kill()
	must(t, cluster.WaitPairs(bounded(t), alpha, gamma))
	alpha.Kill()
	gamma.Kill()
	must(t, gamma.Start())
	startAgainAmong(t, alpha, gamma)
	must(t, delta.Join(t.Context(), token))
	must(t, delta.Start())
	must(t, cluster.WaitPairs(bounded(t), alpha, gamma, delta))
}

// startAgainAmong starts a daemon and waits until it and some others reach each
// other.
func startAgainAmong(t *testing.T, n *cluster.Node, others ...*cluster.Node) {
	t.Helper()
	must(t, n.Start())
	must(t, cluster.WaitPairs(bounded(t), append(others, n)...))
}

// A token that is revoked lets nobody in any more, wherever; who came by it stays,
// until that is not wanted either.
func TestTokenRevoke(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	alpha, beta, late := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	token, err := alpha.Token(t.Context(), "--uses", "0")
	must(t, err)
	must(t, beta.Join(t.Context(), token))
	must(t, alpha.Start())
	must(t, beta.Start())
	must(t, cluster.WaitPairs(bounded(t), alpha, beta))
	list := func() string {
		t.Helper()
		out, err := alpha.Meshctl(bounded(t), "token", "list", "-f", "{{range .}}{{.state}} {{.nodes}}{{end}}")
		must(t, err)
		return strings.TrimSpace(out)
	}
	if got := list(); got != "open [beta]" {
		t.Errorf("before, the token is %s", got)
	}
	id, err := alpha.Meshctl(bounded(t), "token", "list", "-f", "{{range .}}{{.id}}{{end}}")
	must(t, err)
	id = strings.TrimSpace(id)
	_, err = alpha.Meshctl(bounded(t), "token", "revoke", id, "--yes")
	must(t, err)
	if got := list(); got != "revoked [beta]" {
		t.Errorf("after that, the token is %s", got)
	}

	must(t, late.Join(t.Context(), token)) // offline, it cannot know
	must(t, late.Start())
	must(t, late.WaitFor(bounded(t), "to answer", func(*status.Document) bool { return true }))
	pause(t.Context(), 4*time.Second)
	for _, n := range []*cluster.Node{alpha, beta} {
		if peerNamed(document(t, n), late.Name) != nil {
			t.Errorf("%s has admitted %s by a token that was revoked", n.Name, late.Name)
		}
	}
	if d := document(t, late); d.State == mesh.Ready || len(d.Node.Leases) > 0 && d.Node.Leases[0].State == mesh.Held.String() {
		t.Errorf("%s is %s with %s", late.Name, d.State, leasesOf(d))
	}
	late.Kill()
	must(t, cluster.WaitPairs(bounded(t), alpha, beta))

	out, err := alpha.Meshctl(bounded(t), "token", "revoke", id, "--yes", "--nodes")
	must(t, err)
	if !strings.Contains(out, "Thrown out: beta") {
		t.Errorf("it says %q", out)
	}
	must(t, alpha.WaitFor(bounded(t), "to have dropped beta", func(d *status.Document) bool { return len(d.Peers) == 0 }))
}

// A node that is gone for good is forgotten: another one may have its subnet, and
// the mesh is healthy again. If it comes back, it takes what is free.
func TestForget(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3)
	alpha, beta, gone := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	subnet := document(t, gone).Node.Leases[0].Prefixes[0]
	gone.Kill()
	// Another member has no key, and it was heard of a moment ago.
	if out, err := beta.Meshctl(bounded(t), "forget", gone.Name, "--yes"); err == nil {
		t.Errorf("beta forgot it without the key: %s", out)
	}
	_, err := alpha.Meshctl(bounded(t), "forget", gone.Name, "--yes")
	must(t, err)
	for _, n := range []*cluster.Node{alpha, beta} {
		must(t, n.WaitFor(bounded(t), "to have forgotten gamma", func(d *status.Document) bool {
			p := peerNamed(d, gone.Name)
			return p != nil && p.Expired == mesh.Forgotten
		}))
		if _, code, err := n.Status(bounded(t)); code != 0 || err != nil {
			t.Errorf("%s: exit code %d of status, %v; one that is forgotten is no harm", n.Name, code, err)
		}
	}
	// A new node gets the subnet, as the token says.
	next, err := c.Another(gone)
	must(t, err)
	token, err := alpha.Token(bounded(t), "--subnet", subnet.String())
	must(t, err)
	must(t, next.Join(t.Context(), token))
	must(t, next.Start())
	must(t, cluster.WaitPairs(bounded(t), alpha, beta, next))
	if got := document(t, next).Node.Leases[0].Prefixes[0]; got != subnet {
		t.Errorf("the new node has %s, want %s", got, subnet)
	}
	next.Kill()
	must(t, gone.Start())
	// It takes its subnet up at once, until it hears that this is pinned to another.
	must(t, gone.WaitFor(bounded(t), "to have another subnet", func(d *status.Document) bool {
		return d.State == mesh.Ready && len(d.Node.Leases) == 1 && d.Node.Leases[0].Prefixes[0] != subnet
	}))
	must(t, cluster.WaitPairs(bounded(t), alpha, beta, gone))
}

// Renumbering takes another subnet, and all reach it there.
func TestRenumber(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3)
	beta := c.Nodes[1]
	before := document(t, beta).Node.Leases[0].Prefixes[0]
	out, err := beta.Meshctl(bounded(t), "lease", "renumber")
	must(t, err)
	must(t, c.WaitAllPairs(bounded(t)))
	after := document(t, beta).Node.Leases[0].Prefixes[0]
	if after == before || !strings.Contains(out, after.String()) || !strings.Contains(out, before.String()) {
		t.Errorf("it had %s and has %s, and meshctl says %q", before, after, out)
	}
	must(t, c.Nodes[0].WaitFor(bounded(t), "to see beta's subnet", func(d *status.Document) bool {
		p := peerNamed(d, "beta")
		return p != nil && len(p.Leases) == 1 && p.Leases[0].Prefixes[0] == after
	}))
	beta.Kill()
	startAgain(t, c, beta)
	if got := document(t, beta).Node.Leases[0].Prefixes[0]; got != after {
		t.Errorf("after a restart it has %s, want %s", got, after)
	}
	rows, err := c.Nodes[2].Meshctl(bounded(t), "lease", "list", "-f", "{{range .}}{{.node}} {{index .prefixes 0}} {{.state}};{{end}}")
	must(t, err)
	if want := fmt.Sprintf("beta %s held;", after); !strings.Contains(rows, want) {
		t.Errorf("lease list on gamma says %q, want %q in it", rows, want)
	}
}

// Nobody takes what is reserved, not even when nothing else is free, but who is
// pinned to it.
func TestReserve(t *testing.T) {
	t.Parallel()
	c := hosts(t, 4)
	alpha := c.Nodes[0]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab", "--ipv4", "10.99.0.0/22", "--ipv6", "none") // four subnets
	must(t, err)
	must(t, alpha.Start())
	must(t, alpha.WaitReady(bounded(t)))
	own := document(t, alpha).Node.Leases[0].Prefixes[0]
	var free []string
	for i := range 4 {
		if p := fmt.Sprintf("10.99.%d.0/24", i); p != own.String() {
			free = append(free, p)
		}
	}
	kept := free[0]
	_, err = alpha.Meshctl(bounded(t), "lease", "reserve", kept)
	must(t, err)
	token, err := alpha.Token(bounded(t), "--uses", "3")
	must(t, err)
	for _, n := range c.Nodes[1:3] {
		must(t, n.Join(t.Context(), token))
		must(t, n.Start())
	}
	must(t, cluster.WaitPairs(bounded(t), c.Nodes[:3]...))
	for _, n := range c.Nodes[1:3] {
		if got := document(t, n).Node.Leases[0].Prefixes[0].String(); got == kept || !slices.Contains(free, got) {
			t.Errorf("%s has %s, want one of %s", n.Name, got, free[1:])
		}
	}
	last := c.Nodes[3]
	must(t, last.Join(t.Context(), token))
	must(t, last.Start())
	must(t, last.WaitFor(bounded(t), "to find nothing free", func(d *status.Document) bool { return d.State == mesh.NoFreeSubnets }))
	last.Kill()

	pinned, err := c.Another(last)
	must(t, err)
	pin, err := alpha.Token(bounded(t), "--subnet", kept)
	must(t, err)
	must(t, pinned.Join(t.Context(), pin))
	must(t, pinned.Start())
	must(t, cluster.WaitPairs(bounded(t), append(slices.Clone(c.Nodes[:3]), pinned)...))
	if got := document(t, pinned).Node.Leases[0].Prefixes[0].String(); got != kept {
		t.Errorf("who is pinned has %s, want %s", got, kept)
	}
}

// A certificate that is about to end is warned of, and renewed under load: nobody
// loses anything.
func TestCertRenew(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	token, err := alpha.Token(t.Context(), "--uses", "2", "--cert-life", "1h")
	must(t, err)
	for _, n := range c.Nodes[1:] {
		must(t, n.Join(t.Context(), token))
	}
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	warned := func(d *status.Document) bool {
		return slices.ContainsFunc(d.Health, func(f status.Finding) bool { return f.Code == "certificate_ends" && f.Level == "warning" })
	}
	must(t, beta.WaitFor(bounded(t), "to warn of its certificate's end", warned))
	noneLost := pingAll(t, c.Nodes)
	before := document(t, beta)
	begin := time.Now()
	_, err = alpha.Meshctl(bounded(t), "cert", "renew", "beta", "--life", "400d")
	must(t, err)
	must(t, beta.WaitFor(bounded(t), "to have its new certificate", func(d *status.Document) bool {
		return !warned(d) && d.Node.CertificateEnds != nil && time.Until(*d.Node.CertificateEnds) > 399*24*time.Hour
	}))
	took := time.Since(begin)
	// By hand, as with a CA key that is elsewhere.
	gamma := c.Nodes[2]
	request, err := gamma.Meshctl(bounded(t), "cert", "renew", "--request")
	must(t, err)
	sign := alpha.Command(bounded(t), "cert", "renew", "--sign", "-", "--yes")
	sign.Stdin = strings.NewReader(request)
	signed, err := alpha.Host.Run(sign)
	must(t, err)
	install := gamma.Command(bounded(t), "cert", "renew", "--install", "-")
	install.Stdin = strings.NewReader(string(signed))
	_, err = gamma.Host.Run(install)
	must(t, err)
	must(t, gamma.WaitFor(bounded(t), "to have its new certificate", func(d *status.Document) bool { return !warned(d) }))
	pause(t.Context(), time.Second)
	noneLost()
	t.Logf("beta had its certificate after %d ms", took.Milliseconds())
	if after := document(t, beta); after.Node.ID != before.Node.ID || leasesOf(after) != leasesOf(before) {
		t.Errorf("beta was %s with %s and is %s with %s", before.Node.ID, leasesOf(before), after.Node.ID, leasesOf(after))
	}
	// It outlasts the daemon, and the others know of it.
	beta.Kill()
	startAgain(t, c, beta)
	if d := document(t, beta); warned(d) || time.Until(*d.Node.CertificateEnds) < 399*24*time.Hour {
		t.Errorf("after a restart its certificate ends at %s", d.Node.CertificateEnds)
	}
	must(t, alpha.WaitFor(bounded(t), "to know the new certificates", func(d *status.Document) bool {
		return !slices.ContainsFunc(d.Peers, func(p status.Peer) bool {
			return p.CertificateEnds == nil || time.Until(*p.CertificateEnds) < 300*24*time.Hour
		})
	}))
}
