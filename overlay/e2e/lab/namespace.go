//go:build linux

package lab

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"

	"meshd/tun/netns"
)

// Namespace makes what a container on the host starts in: a network namespace that
// is joined to nothing. It has a Host's methods, but for those about the network
// card; the lab removes it if [Host.End] has not.
func (h *Host) Namespace(name string) (*Host, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	c := &Host{Name: name, lab: h.lab, ns: ns}
	err = c.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(lo), setSysctl("net/ipv4/tcp_congestion_control", "reno"))
	})
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	h.lab.namespaces = append(h.lab.namespaces, c)
	return c, nil
}

// End removes the namespace of a container, with its programs and links.
func (h *Host) End() error {
	h.lab.mu.Lock()
	h.lab.namespaces = slices.DeleteFunc(h.lab.namespaces, func(other *Host) bool { return other == h })
	h.lab.mu.Unlock()
	return h.end()
}

func (h *Host) end() error {
	err := h.killStrays()
	h.ns.Close()
	return err
}
