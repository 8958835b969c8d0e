//go:build linux

package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	door "meshd/overlay/attach/docker"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/plan"
	"meshd/tun"
	"meshd/tun/hostnet"
	"meshd/tun/nft"
)

// daemon is our side of Docker on a host: the real door, core, plan, links and
// firewall. The test plays the mesh, which has granted all leases.
type daemon struct {
	host     *lab.Host
	dir      string
	socket   string
	store    *attachtest.Store
	view     *mesh.View
	net      *hostnet.Net
	firewall *nft.Firewall
	core     *attach.Manager
	stop     func()
}

// link is the TUN device, behind which there is nobody.
const link = "mesh0"

// networks are those of the mesh, and what this node has of them.
func networks(node int) ([]mesh.Network, []mesh.Lease) {
	var all []mesh.Network
	var leases []mesh.Lease
	for i, name := range []string{"default", "web"} {
		n := mesh.Network{
			Name: name, IPv4: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 86+i)), IPv4Len: 24,
			IPv6: netip.MustParsePrefix(fmt.Sprintf("fd00:%d::/48", 86+i)), IPv6Len: 64,
		}
		all = append(all, n)
		leases = append(leases, mesh.Lease{Network: name, Prefixes: n.Slot(node), State: mesh.Held})
	}
	return all, leases
}

// startDaemon starts our side; dir and store survive it.
func startDaemon(t *testing.T, host *lab.Host, dir string, store *attachtest.Store) *daemon {
	t.Helper()
	all, leases := networks(3)
	id := mesh.ID{1}
	d := &daemon{
		host: host, dir: dir, socket: filepath.Join(dir, "meshd.sock"), store: store,
		net: hostnet.New(hostnet.Options{Namespace: host.Do}), firewall: nft.New(nft.Options{Namespace: host.Do}),
		view: &mesh.View{Control: mesh.ControlRange(id), Networks: all, Self: id, State: mesh.Ready, Nodes: []mesh.Node{{ID: id, Control: mesh.ControlAddr(id, id), Leases: leases}}},
	}
	d.core = attach.New(attach.Options{Host: d.net, Store: store, Changed: d.follow})
	err := host.Do(func() error {
		if _, err := netlink.LinkByName(link); err == nil {
			return nil
		}
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: link}, Mode: netlink.TUNTAP_MODE_TUN})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.core.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.core.Sync(attach.World{MTU: 1420, View: d.view})
	if err := d.follow(t.Context()); err != nil {
		t.Fatal(err)
	}
	server := door.New(door.Options{
		Socket: d.socket, State: filepath.Join(dir, "docker.json"), Core: d.core,
		Networks: func() []mesh.Network { return all },
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(d.stop)
	select {
	case <-server.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return d
}

// ports lists the links of containers.
func (d *daemon) ports() ([]tun.Port, error) { return d.net.Ports(context.Background()) }

// follow does what the daemon does when the core's networks have changed.
func (d *daemon) follow(ctx context.Context) error {
	containers := map[string]plan.Containers{}
	for _, n := range d.core.Networks() {
		containers[n.Name] = plan.Containers{Bridge: n.Bridge}
	}
	p := plan.Build(d.view, plan.Options{Link: link, MTU: 1420, Containers: containers})
	return errors.Join(d.net.Apply(ctx, p.Host), d.firewall.Apply(ctx, p.Rules))
}

// record stands between Docker and the door and writes down what they say, in the
// form that the door's own test replays.
func record(t *testing.T, d *daemon, to string) (socket string) {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "meshd"})
	proxy.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.socket)
	}}
	var mu sync.Mutex
	var log bytes.Buffer
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		ask, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(ask))
		answer := &answerCopy{ResponseWriter: w}
		proxy.ServeHTTP(answer, r)
		fmt.Fprintf(&log, "%s\n> %s\n< %s\n\n", r.URL.Path, bytes.TrimSpace(ask), bytes.TrimSpace(answer.body.Bytes()))
	})
	socket = filepath.Join(d.dir, "record.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := os.WriteFile(to, log.Bytes(), 0o644); err != nil {
			t.Error(err)
		}
	})
	return socket
}

type answerCopy struct {
	http.ResponseWriter
	body bytes.Buffer
}

func (a *answerCopy) Write(p []byte) (int, error) {
	a.body.Write(p)
	return a.ResponseWriter.Write(p)
}
