//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/docker"
)

// networks are two of one kind on both hosts.
type networks struct {
	engine        *docker.Engine // of the first host
	dir           string         // that containers may write to
	container     string         // one in the first network, on either host
	first, second string
	far           netip.Addr // of the container on the second host
}

// onMesh makes them of two networks of the mesh.
func (d *networks) onMesh(ctx context.Context, sc *scene) error {
	if _, err := sc.cluster.Nodes[0].Meshctl(ctx, "network", "create", "web", "--ipv4", "10.87.0.0/16"); err != nil {
		return err
	}
	// The other daemon hears of it, and each takes a lease on first use.
	for _, e := range sc.engines {
		for name, network := range map[string]string{d.first: "default", d.second: "web"} {
			args := []string{"network", "create", "-d", "meshd", "--ipam-driver", "meshd", "-o", "network=" + network, name}
			if err := persist(ctx, func() error { _, err := e.Docker(ctx, args...); return err }); err != nil {
				return err
			}
		}
	}
	return nil
}

// onSwarm makes them in a swarm of both engines.
func (d *networks) onSwarm(ctx context.Context, sc *scene) error {
	hosts, manager, worker := sc.lab.Hosts(), sc.engines[0], sc.engines[1]
	if _, err := manager.Docker(ctx, "swarm", "init", "--advertise-addr", hosts[0].IPv4.String()); err != nil {
		return err
	}
	token, err := manager.Docker(ctx, "swarm", "join-token", "-q", "worker")
	if err != nil {
		return err
	}
	_, err = worker.Docker(ctx, "swarm", "join", "--advertise-addr", hosts[1].IPv4.String(), "--token", token, hosts[0].IPv4.String()+":2377")
	if err != nil {
		return err
	}
	for name, subnet := range map[string]string{d.first: "10.99.1.0/24", d.second: "10.99.2.0/24"} {
		if _, err := manager.Docker(ctx, "network", "create", "-d", "overlay", "--attachable", "--subnet", subnet, name); err != nil {
			return err
		}
	}
	return nil
}

// sleeper starts a container that does nothing.
func (d *networks) sleeper(ctx context.Context, e *docker.Engine, name, network string) error {
	_, err := e.Docker(ctx, "run", "--detach", "--init", "--name", name, "--network", network,
		"--sysctl", "net.ipv4.tcp_congestion_control=reno", // see lab: else it might stay paced
		docker.Image, "sleep", "86400")
	return err
}

// connects connects a running container to another network, n times, and tells how
// long the command took.
func (d *networks) connects(ctx context.Context, n int) (took []time.Duration, err error) {
	for range n {
		start := time.Now()
		if _, err := d.engine.Docker(ctx, "network", "connect", d.second, d.container); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
		if _, err := d.engine.Docker(ctx, "network", "disconnect", d.second, d.container); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// untilAnswered pings until the other host's container answers, many times a second,
// and leaves a file behind then.
const untilAnswered = `while ! [ -e /out/answered ]; do
	{ ping -c 1 -W 10 ADDRESS && : >/out/answered; } >/dev/null 2>&1 &
	sleep 0.02
done`

// runs starts a container, n times, and tells how long it takes from the command to
// its first answered packet.
func (d *networks) runs(ctx context.Context, n int) (took []time.Duration, err error) {
	name, file := d.container+"-run", filepath.Join(d.dir, "answered")
	script := strings.ReplaceAll(untilAnswered, "ADDRESS", d.far.String())
	for range n {
		start := time.Now()
		_, err := d.engine.Docker(ctx, "run", "--detach", "--init", "--name", name, "--network", d.first,
			"--volume", d.dir+":/out", docker.Image, "sh", "-c", script)
		if err == nil {
			err = persist(ctx, func() error {
				f, err := os.Stat(file)
				if err == nil {
					took = append(took, f.ModTime().Sub(start))
				}
				return err
			})
		}
		_, errRemove := d.engine.Docker(context.WithoutCancel(ctx), "rm", "--force", "--volumes", name)
		if err := errors.Join(err, errRemove); err != nil {
			return nil, fmt.Errorf("run to first answer: %w", err)
		}
		if err := os.Remove(file); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// persist tries until it goes well.
func persist(ctx context.Context, try func() error) error {
	return cluster.Poll(ctx, func() (bool, error) { err := try(); return err == nil, err })
}
