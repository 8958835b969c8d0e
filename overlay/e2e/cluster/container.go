//go:build linux

package cluster

import (
	"context"
	"fmt"

	"meshd/overlay/attach"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
	"meshd/tun/inside"
)

// Container is a network namespace on a node's host that is attached to the mesh,
// as meshctl and the CNI plugin do it. It has the methods of a host, but for those
// about the network card, and its addresses are those in the mesh.
type Container struct {
	*lab.Host
	attach.Attachment
	Node *Node
}

// Client asks the daemon on its control socket.
func (n *Node) Client() *status.Client { return status.NewClient(n.Socket()) }

// Contain makes a container and attaches it: by the name "test/NAME", unless the
// ask has an ID.
func (n *Node) Contain(ctx context.Context, name string, ask attach.Ask) (*Container, error) {
	ns, err := n.Host.Namespace(name)
	if err != nil {
		return nil, err
	}
	c := &Container{Host: ns, Node: n}
	if ask.ID == "" {
		ask.ID = "test/" + name
	}
	if c.Attachment, err = n.Client().Attach(ctx, ask); err != nil {
		return nil, fmt.Errorf("contain %s on %s: %w", name, n.Name, err)
	}
	a := c.Attachment
	for _, p := range a.Addresses {
		if p.Addr().Is4() {
			c.IPv4 = p.Addr()
		} else {
			c.IPv6 = p.Addr()
		}
	}
	if err = n.Put(ctx, ns.Path(), a); err != nil {
		return nil, fmt.Errorf("contain %s on %s: %w", name, n.Name, err)
	}
	return c, nil
}

// Put does the container's side of an attachment, in the namespace at a path: as
// eth0, with everything that is not in the mesh behind the host.
func (n *Node) Put(ctx context.Context, ns string, a attach.Attachment) error {
	return n.Host.Do(func() error {
		return inside.Put(ctx, ns, inside.Link{
			Peer: a.Peer, Name: "eth0", MAC: a.MAC, MTU: a.MTU,
			Addresses: a.Addresses, Gateways: a.Gateways, Routes: a.Routes, Default: true,
		})
	})
}
