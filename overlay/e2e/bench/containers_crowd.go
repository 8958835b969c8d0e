//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"meshd/overlay/attach"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/tun/inside"
)

// door attaches a container, or detaches it.
type door interface {
	attach(ctx context.Context, id string) error
	detach(ctx context.Context, id string) error
}

// inCrowd measures how long it takes to attach and to detach one more.
func (b *bench) inCrowd(ctx context.Context, version string) (err error) {
	l, err := lab.Cable(ctx, "alpha", "beta")
	if err != nil {
		return err
	}
	c, net, err := engineAES.mesh(ctx, b.tools, l)
	if c == nil {
		return errors.Join(err, l.Close())
	}
	defer func() { err = errors.Join(err, net.close()) }()
	if err != nil {
		return err
	}
	node := c.Nodes[0]
	b.say("%d containers", b.o.Crowd)
	for i := range b.o.Crowd {
		if _, err := node.Contain(ctx, fmt.Sprint("crowd-", i), attach.Ask{}); err != nil {
			return err
		}
	}
	one, err := node.Host.Namespace("one")
	if err != nil {
		return err
	}
	bin, err := cluster.Find(b.tools.bin)
	if err != nil {
		return err
	}
	doors := map[string]door{sysSocket: bySocket{node, one.Path()}, sysCNI: byCNI{node, one.Path(), bin.MeshCNI}}
	asked := b.asked(crowd)
	for _, s := range asked {
		b.report.addSystem(s, version, nil)
	}
	return b.rounds(ctx, func(round int) {
		for _, s := range asked {
			b.say("round %d of %d, %s", round+1, b.o.Rounds, s.name)
			b.take(ctx, crowd, s, "attach", func(ctx context.Context) (values, error) {
				return comeAndGo(ctx, doors[s.name], max(5, int(10*b.o.Seconds)))
			}, keyAttach50, keyAttach95, keyDetach50, keyDetach95)
		}
	})
}

// comeAndGo attaches and detaches a container n times.
func comeAndGo(ctx context.Context, d door, n int) (values, error) {
	var came, went []time.Duration
	for i := range n {
		id, start := fmt.Sprint("one-", i), time.Now()
		if err := d.attach(ctx, id); err != nil {
			return nil, err
		}
		attached := time.Now()
		if err := d.detach(ctx, id); err != nil {
			return nil, err
		}
		came, went = append(came, attached.Sub(start)), append(went, time.Since(attached))
	}
	v := percentiles(came, time.Millisecond, map[string]float64{keyAttach50: 0.5, keyAttach95: 0.95})
	maps.Copy(v, percentiles(went, time.Millisecond, map[string]float64{keyDetach50: 0.5, keyDetach95: 0.95}))
	return v, nil
}

// bySocket does as meshctl does.
type bySocket struct {
	node *cluster.Node
	ns   string
}

func (d bySocket) attach(ctx context.Context, id string) error {
	a, err := d.node.Client().Attach(ctx, attach.Ask{ID: "bench/" + id})
	if err != nil {
		return err
	}
	return d.node.Put(ctx, d.ns, a)
}

func (d bySocket) detach(ctx context.Context, id string) error {
	id = "bench/" + id
	err := d.node.Host.Do(func() error { return inside.Remove(ctx, d.ns, attach.PeerName(id)) })
	if err != nil {
		return err
	}
	return d.node.Client().Detach(ctx, id)
}

// byCNI runs the plugin, as runtimes do.
type byCNI struct {
	node    *cluster.Node
	ns      string
	program string
}

func (d byCNI) attach(ctx context.Context, id string) error { return d.call(ctx, "ADD", id) }
func (d byCNI) detach(ctx context.Context, id string) error { return d.call(ctx, "DEL", id) }

func (d byCNI) call(ctx context.Context, command, id string) error {
	cmd := exec.CommandContext(ctx, d.program)
	cmd.Env = []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + d.ns, "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(d.program),
	}
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0","name":"bench","type":"mesh-cni","socket":"` + d.node.Socket() + `"}`)
	out, err := d.node.Host.Run(cmd)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out) // it complains on standard output
	}
	return nil
}
