//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/overlay/attach"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// handMade is a container that is attached by hand, with meshctl.
type handMade struct {
	*lab.Host
	node    *cluster.Node
	target  string       // as meshctl is told
	process *lab.Process // nil: none
}

// byPath makes a container on a node's host whose target is the path of its
// namespace; byPID one whose target is a process.
func byPath(t *testing.T, n *cluster.Node, name string) *handMade {
	t.Helper()
	ns, err := n.Host.Namespace(name)
	must(t, err)
	return &handMade{Host: ns, node: n, target: ns.Path()}
}

func byPID(t *testing.T, n *cluster.Node, name string) *handMade {
	t.Helper()
	c := byPath(t, n, name)
	var err error
	c.process, err = c.Start(exec.Command("sleep", "3600"))
	must(t, err)
	c.target = fmt.Sprint(c.process.Pid())
	return c
}

// attachment is what `meshctl attach -o json` prints.
type attachment struct {
	attach.Attachment
	Interface string
}

func (a attachment) addr(i int) netip.Addr { return a.Addresses[i].Addr() }

// attach attaches it and gives what it got.
func (c *handMade) attach(t *testing.T, args ...string) attachment {
	t.Helper()
	out, err := c.node.Meshctl(bounded(t), append([]string{"attach", c.target, "-o", "json"}, args...)...)
	must(t, err)
	var a attachment
	must(t, json.Unmarshal([]byte(out), &a))
	return a
}

func (c *handMade) detach(t *testing.T, args ...string) {
	t.Helper()
	_, err := c.node.Meshctl(bounded(t), append([]string{"detach", c.target}, args...)...)
	must(t, err)
}

// talks sends data both ways, by ping, TCP and UDP, in every family of addresses.
func talks(t *testing.T, from, to *lab.Host, at attachment) {
	t.Helper()
	for i := range at.Addresses {
		_, err := from.Await(bounded(t), at.addr(i))
		must(t, err)
		for _, network := range []string{"tcp", "udp"} {
			if err := exchange(bounded(t), from, to, network, at.addr(i), randomBytes(1000)); err != nil {
				t.Error(err)
			}
		}
	}
}

// apart demands that nothing gets there.
func apart(t *testing.T, from *lab.Host, all ...attachment) {
	t.Helper()
	var pings sync.WaitGroup
	for _, at := range all {
		for i := range at.Addresses {
			pings.Go(func() {
				if _, err := from.Ping(t.Context(), at.addr(i)); err == nil {
					t.Errorf("%s reaches %s in the network %s", from.Name, at.addr(i), at.Network)
				}
			})
		}
	}
	pings.Wait()
}

// attachedOn lists the IDs of what is attached on a node's host.
func attachedOn(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	out, err := n.Meshctl(bounded(t), "attach", "list", "-f", "{{range .}}{{.id}} {{end}}")
	must(t, err)
	return strings.Fields(out)
}

// Containers that know nothing of meshes are put on one by hand, on two hosts.
func TestAttachByHand(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	for _, args := range [][]string{{"web", "--ipv4", "10.87.0.0/16"}, {"tiny", "--ipv4", "10.88.0.0/24", "--ipv4-subnet-len", "30", "--ipv6", "none"}} {
		_, err := alpha.Meshctl(bounded(t), append([]string{"network", "create"}, args...)...)
		must(t, err)
	}
	must(t, beta.WaitFor(bounded(t), "to know the networks", func(d *status.Document) bool { return len(d.Networks) == 3 }))

	one, two, three := byPath(t, alpha, "one"), byPID(t, alpha, "two"), byPID(t, beta, "three")
	inDefault, far := one.attach(t), three.attach(t)
	talks(t, one.Host, three.Host, far)
	talks(t, three.Host, one.Host, inDefault)
	talks(t, beta.Host, one.Host, inDefault) // from the host itself

	inWeb := two.attach(t, "--network", "web", "--mode", "ptp")
	farWeb := three.attach(t, "--network", "web", "--interface", "web0")
	if far.Interface != "eth0" || farWeb.Interface != "web0" {
		t.Errorf("interfaces %s and %s", far.Interface, farWeb.Interface)
	}
	talks(t, two.Host, three.Host, farWeb)
	talks(t, three.Host, two.Host, inWeb)
	talks(t, one.Host, three.Host, far) // as before
	apart(t, two.Host, inDefault, far)
	apart(t, one.Host, inWeb, farWeb)

	if got, want := attachedOn(t, beta), []string{"ctl/pid:" + three.target + "/default", "ctl/pid:" + three.target + "/web"}; !slices.Equal(got, want) {
		t.Errorf("beta lists %v, want %v", got, want)
	}
	if got, want := fmt.Sprint(document(t, beta).Attachments), "[{default live 1} {web live 1}]"; got != want {
		t.Errorf("beta's status counts %s, want %s", got, want)
	}
	if out, err := beta.Meshctl(bounded(t), "status"); err != nil || len(regexp.MustCompile(`(?m) ago +1$`).FindAllString(out, -1)) != 2 {
		t.Errorf("status: %v\n%s", err, out)
	}

	t.Run("repeated and killed", func(t *testing.T) {
		// A connection outlives it all.
		target, stop, err := serveEcho(t.Context(), three.Host, "tcp", far.addr(0))
		must(t, err)
		defer stop()
		conn, err := one.Dial(bounded(t), "tcp", target)
		must(t, err)
		defer conn.Close()
		lives := func() {
			t.Helper()
			must(t, conn.SetDeadline(time.Now().Add(soon)))
			_, err := conn.Write([]byte("ping"))
			must(t, err)
			_, err = io.ReadFull(conn, make([]byte, 4))
			must(t, err)
		}
		lives()
		for range 3 {
			if again := one.attach(t); fmt.Sprint(again) != fmt.Sprint(inDefault) {
				t.Errorf("attached again: %v, before %v", again, inDefault)
			}
		}
		lives()
		before := attachedOn(t, alpha)
		killAndRestart(t, alpha, beta)
		lives()
		if got := attachedOn(t, alpha); !slices.Equal(got, before) {
			t.Errorf("after a restart attached are %v, before %v", got, before)
		}
		talks(t, three.Host, two.Host, inWeb)
		apart(t, two.Host, far)
		if again := two.attach(t, "--network", "web", "--mode", "ptp"); fmt.Sprint(again) != fmt.Sprint(inWeb) {
			t.Errorf("attached again: %v, before %v", again, inWeb)
		}
	})

	t.Run("refused", func(t *testing.T) {
		four := byPath(t, alpha, "four")
		five := byPath(t, alpha, "five")
		five.attach(t, "--network", "tiny") // the one that there is room for
		before := attachedOn(t, alpha)
		for _, tt := range []struct {
			args, says string
			code       int
		}{
			{"--network nothing", "the mesh has no such network", exBadData},
			{"--network tiny", "no address is free", exUnavailable},
			{"--ip " + inDefault.addr(0).String(), "the address is taken", exUnavailable},
			{"--ip " + inDefault.Gateways[0].String(), "the address is taken", exUnavailable},
			{"--ip " + far.addr(0).String(), "not one for containers of this node", exUsage},
			{"--ip 192.0.2.7", "not one for containers of this node", exUsage},
			{"--interface lo", "the name is taken in the namespace", exUnavailable},
		} {
			_, err := alpha.Meshctl(bounded(t), append([]string{"attach", four.target}, strings.Fields(tt.args)...)...)
			if exitCode(err) != tt.code || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("%s: %v, want code %d and %q", tt.args, err, tt.code, tt.says)
			}
		}
		_, err := alpha.Meshctl(bounded(t), "attach", alpha.Host.Path())
		if exitCode(err) != exUsage {
			t.Errorf("the host itself: %v", err)
		}
		if got := attachedOn(t, alpha); !slices.Equal(got, before) {
			t.Errorf("attached are %v, before %v", got, before)
		}
		five.detach(t)
		four.attach(t, "--network", "tiny") // which is free now
		four.detach(t)
	})

	t.Run("everything else", func(t *testing.T) {
		six := byPath(t, alpha, "six")
		six.attach(t)
		if _, err := six.Ping(t.Context(), beta.Host.IPv4); err == nil {
			t.Error("a container reaches what is outside, which nobody asked for")
		}
		six.attach(t, "--default-route")
		for _, outside := range []netip.Addr{beta.Host.IPv4, beta.Host.IPv6} {
			_, err := six.Await(bounded(t), outside)
			must(t, err)
		}
		talks(t, six.Host, three.Host, far)
		six.detach(t)
	})

	// The host itself cannot talk to it through the link that it is on.
	t.Run("on a physical link", func(t *testing.T) {
		seven := byPath(t, alpha, "seven")
		for range 2 {
			at := seven.attach(t, "--mode", "macvlan", "--parent", "eth0")
			if again := seven.attach(t, "--mode", "macvlan", "--parent", "eth0"); fmt.Sprint(again) != fmt.Sprint(at) {
				t.Errorf("attached again: %v, before %v", again, at)
			}
			for _, from := range []*lab.Host{three.Host, one.Host, beta.Host, alpha.Host} {
				talks(t, from, seven.Host, at)
			}
			talks(t, seven.Host, three.Host, far)
			talks(t, seven.Host, one.Host, inDefault)
			seven.detach(t)
			apart(t, one.Host, at)
		}
	})

	t.Run("detached", func(t *testing.T) {
		three.detach(t, "--network", "web")
		apart(t, two.Host, farWeb)
		talks(t, one.Host, three.Host, far)
		two.process.Kill()
		<-two.process.Done()
		must(t, two.End())
		two.detach(t)
		if _, err := alpha.Meshctl(bounded(t), "detach", two.target); exitCode(err) != exNoInput {
			t.Errorf("detach what has ended and is forgotten: %v", err)
		}
		one.detach(t)
		one.detach(t)
		three.detach(t)
		for _, n := range c.Nodes {
			if got := attachedOn(t, n); len(got) > 0 {
				t.Errorf("on %s attached are %v", n.Name, got)
			}
			if got := document(t, n).Attachments; len(got) > 0 {
				t.Errorf("%s counts %v", n.Name, got)
			}
		}
	})
}
