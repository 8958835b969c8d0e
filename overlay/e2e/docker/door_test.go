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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	door "meshd/overlay/attach/docker"
	"meshd/overlay/e2e/lab"
	"meshd/tun"
)

// door runs our side of Docker on a host: the real core and the real door. Of the
// daemon, the test plays the mesh, which has granted all leases, and the kernel's
// part, which is one bridge with the gateways.
type daemon struct {
	host   *lab.Host
	dir    string
	socket string
	store  *attachtest.Store
	core   *attach.Manager
	stop   func()
}

var self = mesh.ID{1}

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
	d := &daemon{host: host, dir: dir, socket: filepath.Join(dir, "meshd.sock"), store: store}
	d.core = attach.New(attach.Options{Host: &kernel{host: host, leases: leases}, Store: store})
	if err := d.core.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.core.Sync(attach.World{MTU: 1420, View: &mesh.View{
		Networks: all, Self: self, State: mesh.Ready, Nodes: []mesh.Node{{ID: self, Leases: leases}},
	}})
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
func (d *daemon) ports() ([]tun.Port, error) {
	return (&kernel{host: d.host}).Ports(context.Background())
}

// kernel is what tun/hostnet does in the daemon.
type kernel struct {
	host   *lab.Host
	leases []mesh.Lease
}

func (k *kernel) AddPort(_ context.Context, p tun.Port) error {
	return k.host.Do(func() error {
		if _, err := netlink.LinkByName(p.Name); err == nil {
			return nil
		}
		bridge, err := k.bridge(p)
		if err != nil {
			return err
		}
		mac, err := net.ParseMAC(p.MAC)
		if err != nil {
			return err
		}
		v := netlink.NewVeth(netlink.LinkAttrs{Name: p.Name, MTU: p.MTU, MasterIndex: bridge.Attrs().Index})
		v.PeerName, v.PeerHardwareAddr = p.Peer, mac
		return errors.Join(netlink.LinkAdd(v), netlink.LinkSetUp(v))
	})
}

func (k *kernel) bridge(p tun.Port) (netlink.Link, error) {
	if bridge, err := netlink.LinkByName(p.Parent); err == nil {
		return bridge, nil
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: p.Parent, MTU: p.MTU}}
	if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
		return nil, err
	}
	for _, l := range k.leases {
		if attach.BridgeName(l.Network) != p.Parent {
			continue
		}
		for _, prefix := range l.Prefixes {
			a := &netlink.Addr{Flags: unix.IFA_F_NODAD, IPNet: &net.IPNet{
				IP: mesh.FirstHost(prefix).AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
			}}
			if err := netlink.AddrAdd(bridge, a); err != nil {
				return nil, err
			}
		}
	}
	return bridge, nil
}

func (k *kernel) DelPort(_ context.Context, p tun.Port) error {
	return k.host.Do(func() error {
		link, err := netlink.LinkByName(p.Name)
		if _, not := errors.AsType[netlink.LinkNotFoundError](err); not {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}

func (k *kernel) Ports(context.Context) (ports []tun.Port, err error) {
	err = k.host.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, tun.PortPrefix) {
				ports = append(ports, tun.Port{Name: l.Attrs().Name})
			}
		}
		return err
	})
	return ports, err
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
