// Package attachtest provides a host and a store that exist only in memory, for
// tests of what attaches containers.
//
// [Host] remembers ports and prints itself; a test takes links away as the
// kernel does when a container ends. [Store] remembers what would be on disk, so
// a second manager on it is the one after a crash. Both fail when told to.
package attachtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"meshd/mesh"
	"meshd/tun"
)

// ErrFailed is what comes back from whatever was told to fail.
var ErrFailed = errors.New("told to fail")

// Host is a fake host. The zero value has no links. Its methods may be called
// from any goroutine.
type Host struct {
	// Before is called before each change, with the name of the method. An error
	// is returned instead of making the change. Set it before use.
	Before func(method string) error

	mu    sync.Mutex
	ports map[string]port // guarded by mu: by name, or by peer without one
}

type port struct {
	tun.Port
	moved  bool // into a container
	astray bool // not on its bridge
}

func key(p tun.Port) string { return cmp.Or(p.Name, p.Peer) }

func (h *Host) before(ctx context.Context, method string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if h.Before != nil {
		return h.Before(method)
	}
	return nil
}

// AddPort remembers a port.
func (h *Host) AddPort(ctx context.Context, p tun.Port) error {
	if err := h.before(ctx, "AddPort"); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ports == nil {
		h.ports = map[string]port{}
	}
	h.ports[key(p)] = port{p, h.ports[key(p)].moved, false}
	return nil
}

// DelPort forgets a port.
func (h *Host) DelPort(ctx context.Context, p tun.Port) error {
	if err := h.before(ctx, "DelPort"); err != nil {
		return err
	}
	h.Lose(key(p))
	return nil
}

// Ports lists the ends that are on the host.
func (h *Host) Ports(ctx context.Context) ([]tun.Port, error) {
	if err := h.before(ctx, "Ports"); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []tun.Port
	for _, name := range slices.Sorted(maps.Keys(h.ports)) {
		p := tun.Port{Name: h.ports[name].Name}
		if h.ports[name].Kind == tun.PortBridge && !h.ports[name].astray {
			p.Parent = h.ports[name].Parent
		}
		p.Down = h.ports[name].Kind == tun.PortPTP && len(h.ports[name].Addresses) == 0
		if !h.ports[name].moved {
			p.Peer = h.ports[name].Peer
		}
		if p.Name != "" || p.Peer != "" {
			out = append(out, p)
		}
	}
	return out, nil
}

// Move moves a port's peer into a container, as doors do.
func (h *Host) Move(peer string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, p := range h.ports {
		if p.Peer == peer {
			p.moved = true
			h.ports[name] = p
		}
	}
}

// Stray takes a link off its bridge, as when somebody removes that.
func (h *Host) Stray(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.ports[name]
	p.astray = true
	h.ports[name] = p
}

// Astray lists the links that are not on their bridge.
func (h *Host) Astray() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for name, p := range h.ports {
		if p.astray {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Lose takes a link away, by its name, as when its container ends.
func (h *Host) Lose(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ports, name)
}

// Addresses lists those of all ports, sorted; one that two have is there twice.
func (h *Host) Addresses() []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []netip.Addr
	for _, p := range h.ports {
		out = append(out, p.Addresses...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// String prints a line for each port, by address.
func (h *Host) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var lines []string
	for _, p := range h.ports {
		line := string(p.Kind)
		if p.Parent != "" {
			line += " on " + p.Parent
		}
		lines = append(lines, fmt.Sprintf("%v %s mtu %d\n", p.Addresses, line, p.MTU))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// Store is a fake store. The zero value is empty. Its methods may be called from
// any goroutine.
type Store struct {
	// Before and After are called before and after each save. An error is
	// returned; that of Before instead of saving. Set them before use.
	Before, After func() error

	mu        sync.Mutex
	documents map[string][]byte // guarded by mu
	saves     int               // guarded by mu
}

// AttachmentNetworks lists what was saved.
func (s *Store) AttachmentNetworks() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.documents)), nil
}

// LoadAttachments gives what was saved.
func (s *Store) LoadAttachments(network string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, ok := s.documents[network]
	if !ok {
		return nil, fmt.Errorf("no document of the network %s", network)
	}
	return slices.Clone(raw), nil
}

// SaveAttachments remembers a document.
func (s *Store) SaveAttachments(network string, document []byte) error {
	if s.Before != nil {
		if err := s.Before(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.documents == nil {
		s.documents = map[string][]byte{}
	}
	s.documents[network] = slices.Clone(document)
	s.saves++
	if s.After != nil {
		return s.After()
	}
	return nil
}

// Saves tells how often something was saved.
func (s *Store) Saves() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saves
}

// View is a mesh of two networks of which this node knows itself alone: default,
// 10.86.0.0/16 and fd00:86::/48, and web, 10.87.0.0/16. It has these leases.
func View(leases ...mesh.Lease) *mesh.View {
	self := mesh.NodeID{1}
	return &mesh.View{
		Control: mesh.ControlRange(mesh.ID{}), Self: self, State: mesh.Ready,
		Networks: []mesh.Network{
			{
				Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24,
				IPv6: netip.MustParsePrefix("fd00:86::/48"), IPv6Len: 64,
			},
			{Name: "web", IPv4: netip.MustParsePrefix("10.87.0.0/16"), IPv4Len: 24},
		},
		Nodes: []mesh.Node{{ID: self, Name: "alpha", Leases: leases}},
	}
}

// Lease is this node's lease in a network of View, by slot.
func Lease(network string, slot int, state mesh.LeaseState) mesh.Lease {
	for _, n := range View().Networks {
		if n.Name == network {
			return mesh.Lease{Network: network, Prefixes: n.Slot(slot), State: state}
		}
	}
	panic("no network " + network)
}
