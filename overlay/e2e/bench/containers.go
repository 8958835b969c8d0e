//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"meshd/overlay/attach"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/docker"
	"meshd/overlay/e2e/lab"
)

// kindContainers is the kind of reports about containers.
const kindContainers = "containers"

// Layouts of what is measured of containers.
const (
	twoHosts = "hosts" // all systems side by side on one pair of hosts
	crowd    = "crowd"
)

// Names of what is measured of containers.
const (
	sysHosts      = "mesh-hosts"
	sysContainers = "mesh-containers"
	sysDocker     = "docker-meshd"
	sysSwarm      = "docker-swarm"
	sysSocket     = "control-socket"
	sysCNI        = "mesh-cni"
)

var containerSystems = []system{
	{name: sysRaw, title: "hosts, no mesh", layout: twoHosts},
	{name: sysHosts, title: "hosts on the mesh", layout: twoHosts},
	{name: sysContainers, title: "attached containers", layout: twoHosts},
	{name: sysDocker, title: "Docker, driver meshd", layout: twoHosts},
	{name: sysSwarm, title: "Docker, Swarm's overlay, not encrypted", layout: twoHosts},
	{name: sysSocket, title: "control socket", layout: crowd},
	{name: sysCNI, title: "mesh-cni", layout: crowd},
}

// layoutsOf lists the layouts that the systems are on.
func layoutsOf(systems []string) (out []string) {
	for _, s := range containerSystems {
		if slices.Contains(systems, s.name) && !slices.Contains(out, s.layout) {
			out = append(out, s.layout)
		}
	}
	return out
}

// Keys of what is measured of containers alone.
const (
	keyMTU       = "mtu"
	keyOfHosts   = "tcp_1_of_hosts"
	keyOfHostsR  = "tcp_1_back_of_hosts"
	keyConnect50 = "connect_p50_ms"
	keyConnect95 = "connect_p95_ms"
	keyRun50     = "run_p50_ms"
	keyRun95     = "run_p95_ms"
	keyAttach50  = "attach_p50_ms"
	keyAttach95  = "attach_p95_ms"
	keyDetach50  = "detach_p50_ms"
	keyDetach95  = "detach_p95_ms"
)

var (
	hostsMetrics = []metric{
		{keyMTU, "MTU", false},
		{keyTCP1, "TCP|Mbit/s", false},
		{keyTCP1R, "back", false},
		{keyOfHosts, "part of|the hosts'", false},
		{keyOfHostsR, "back", false},
		{keyRTT50, "RTT us|p50", false},
		{keyRTT99, "|p99", false},
		{keyConnect50, "connect ms|p50", false},
		{keyConnect95, "|p95", false},
		{keyRun50, "run ms|p50", false},
		{keyRun95, "|p95", false},
	}
	crowdMetrics = []metric{
		{keyAttach50, "attach ms|p50", false},
		{keyAttach95, "|p95", false},
		{keyDetach50, "detach ms|p50", false},
		{keyDetach95, "|p95", false},
	}
)

// measureContainers measures what the options say of containers.
func measureContainers(ctx context.Context, o options, progress io.Writer) (*Report, error) {
	dir, err := os.MkdirTemp("", "meshd-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := &bench{o: o, tools: &tools{dir: dir, bin: o.Bin}, report: newReport(o), progress: progress, noStart: map[string]int{}}
	version, err := engineAES.prepare(ctx, b.tools)
	if err != nil {
		return nil, err
	}
	version = "meshd " + version
	for _, layout := range o.Layouts {
		measure := b.onHosts
		if layout == crowd {
			measure = b.inCrowd
		}
		if err := measure(ctx, version); err != nil {
			return nil, cmp.Or(ctx.Err(), err)
		}
	}
	b.report.finish()
	return b.report, ctx.Err()
}

// asked lists the systems of a layout that were asked for.
func (b *bench) asked(layout string) (out []system) {
	for _, s := range containerSystems {
		if s.layout == layout && slices.Contains(b.o.Systems, s.name) {
			out = append(out, s)
		}
	}
	return out
}

// onHosts measures what goes from host to host, all systems in turn.
func (b *bench) onHosts(ctx context.Context, version string) (err error) {
	sc, err := b.newScene(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sc.close()) }()

	ready := map[string]*place{}
	var systems []system
	for _, s := range b.asked(twoHosts) {
		b.say("%s", s.name)
		setup, cancel := context.WithTimeout(ctx, setupTime)
		p, v, err := sc.place(setup, s.name)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.report.addSystem(s, cmp.Or(v, version), err)
		if err != nil {
			b.say("  not measured: %v", err)
			continue
		}
		ready[s.name] = p
		systems = append(systems, s)
	}
	return b.rounds(ctx, func(round int) {
		for _, s := range systems {
			b.report.add(twoHosts, s.name, values{keyMTU: float64(ready[s.name].net.mtu)})
		}
		for turn := range max(1, int(b.o.Seconds)) {
			b.say("round %d of %d, turn %d", round+1, b.o.Rounds, turn+1)
			b.tcpInTurn(ctx, systems, ready, false)
			b.tcpInTurn(ctx, systems, ready, true)
			slices.Reverse(systems)
		}
		for _, s := range systems {
			b.say("round %d of %d, %s", round+1, b.o.Rounds, s.name)
			b.take(ctx, twoHosts, s, "RTT", func(ctx context.Context) (values, error) {
				rtts, err := ready[s.name].pings(ctx, b.length(), false)
				return percentiles(rtts, time.Microsecond, map[string]float64{keyRTT50: 0.5, keyRTT99: 0.99}), err
			}, keyRTT50, keyRTT99)
			if d := sc.docker[s.name]; d != nil {
				b.take(ctx, twoHosts, s, "connect", func(ctx context.Context) (values, error) {
					took, err := d.connects(ctx, max(3, int(5*b.o.Seconds)))
					return percentiles(took, time.Millisecond, map[string]float64{keyConnect50: 0.5, keyConnect95: 0.95}), err
				}, keyConnect50, keyConnect95)
				b.take(ctx, twoHosts, s, "run", func(ctx context.Context) (values, error) {
					took, err := d.runs(ctx, max(2, int(2*b.o.Seconds)))
					return percentiles(took, time.Millisecond, map[string]float64{keyRun50: 0.5, keyRun95: 0.95}), err
				}, keyRun50, keyRun95)
			}
		}
	})
}

// streamLength is short, so that what slows the machine down meets all
// systems alike.
const streamLength = time.Second

// tcpInTurn measures one stream in each system, one right after the other, and what
// part of their hosts' throughput containers have.
func (b *bench) tcpInTurn(ctx context.Context, systems []system, at map[string]*place, back bool) {
	name, key, of := "TCP, 1 stream", keyTCP1, keyOfHosts
	if back {
		name, key, of = "TCP, 1 stream back", keyTCP1R, keyOfHostsR
	}
	reached := map[string]float64{}
	for _, s := range systems {
		b.say("%s", s.name)
		got := b.take(ctx, twoHosts, s, name, func(ctx context.Context) (values, error) {
			r, err := at[s.name].tcp(ctx, 1, back, min(streamLength, b.length()))
			return values{key: r.bitsPerSecond / 1e6}, err
		}, key)
		if got != nil {
			reached[s.name] = got[key]
		}
	}
	for _, name := range []string{sysContainers, sysDocker} {
		if hosts, x := reached[sysHosts], reached[name]; hosts > 0 && x > 0 {
			b.report.add(twoHosts, name, values{of: x / hosts})
		}
	}
}

// rounds calls measure for each round.
func (b *bench) rounds(ctx context.Context, measure func(round int)) error {
	start := time.Now()
	for round := range b.o.Rounds {
		measure(round)
		if err := ctx.Err(); err != nil {
			return err
		}
		b.sayLeft(start, round)
	}
	return nil
}

// scene is a mesh of two hosts with all kinds of containers.
type scene struct {
	tools   *tools
	lab     *lab.Lab
	cluster *cluster.Cluster
	mesh    *network
	engines []*docker.Engine // one for each host; nil: not started yet
	docker  map[string]*networks
}

func (b *bench) newScene(ctx context.Context) (*scene, error) {
	sc := &scene{tools: b.tools, docker: map[string]*networks{}}
	var err error
	if sc.lab, err = lab.Cable(ctx, "alpha", "beta"); err != nil {
		return nil, err
	}
	// Not where Docker has its networks.
	sc.cluster, sc.mesh, err = engineAES.mesh(ctx, b.tools, sc.lab, "--ipv4", "10.86.0.0/16")
	if err == nil {
		_, err = sc.lab.Hosts()[0].Await(ctx, sc.mesh.addrs[1])
	}
	if err != nil {
		return nil, errors.Join(err, sc.close())
	}
	return sc, nil
}

// close ends everything.
func (sc *scene) close() error {
	var errs []error
	for _, e := range sc.engines {
		errs = append(errs, e.Stop(context.Background()))
	}
	if sc.cluster != nil {
		return errors.Join(append(errs, sc.cluster.Close())...)
	}
	return errors.Join(append(errs, sc.lab.Close())...)
}

// place makes the ends of a system's traffic.
func (sc *scene) place(ctx context.Context, name string) (p *place, version string, err error) {
	p = &place{lab: sc.lab, net: &network{mtu: sc.mesh.mtu}}
	switch name {
	case sysRaw, sysHosts:
		for i, h := range sc.lab.Hosts() {
			p.ends = append(p.ends, end{host: h})
			p.net.addrs = append(p.net.addrs, h.IPv4)
			if name == sysHosts {
				p.net.addrs[i] = sc.mesh.addrs[i]
			}
		}
		if name == sysRaw {
			p.net.mtu, version = 1500, "kernel"
		}
	case sysContainers:
		for _, n := range sc.cluster.Nodes {
			c, err := n.Contain(ctx, "bench", attach.Ask{})
			if err != nil {
				return nil, "", err
			}
			p.ends = append(p.ends, end{host: n.Host, ns: c.Path()})
			p.net.addrs = append(p.net.addrs, c.IPv4)
			p.net.mtu = c.MTU
		}
	case sysDocker, sysSwarm:
		if version, err = sc.startEngines(ctx); err == nil {
			err = sc.join(ctx, name, p)
		}
		if err != nil {
			return nil, version, err
		}
	}
	for _, e := range p.ends {
		a, err := startAgent(e)
		if err != nil {
			return nil, version, err
		}
		p.agents = append(p.agents, a)
	}
	return p, version, p.await(ctx)
}

// await waits until the second end answers the first.
func (p *place) await(ctx context.Context) error {
	for {
		_, err := p.pings(ctx, pingPatience, false)
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// startEngines starts Docker, unless it runs, and tells its version.
func (sc *scene) startEngines(ctx context.Context) (version string, err error) {
	if err := docker.Possible(); err != nil {
		return "", err
	}
	for _, n := range sc.cluster.Nodes[len(sc.engines):] {
		dir := filepath.Join(sc.tools.dir, "docker-"+n.Name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
		e, err := docker.Start(ctx, n.Host, dir, docker.Options{Plugin: n.DockerSocket()})
		if err != nil {
			return "", err
		}
		sc.engines = append(sc.engines, e)
		if err := e.LoadImage(ctx); err != nil {
			return "", err
		}
	}
	version, err = sc.engines[0].Docker(ctx, "version", "--format", "{{.Server.Version}}")
	return "Docker " + version, err
}

// join makes two networks of a kind, and a container on each host: in the first
// network, where the traffic is. In the second one there is another.
func (sc *scene) join(ctx context.Context, kind string, p *place) error {
	d := &networks{engine: sc.engines[0], dir: filepath.Join(sc.tools.dir, kind), container: kind, first: kind + "-1", second: kind + "-2"}
	make := d.onSwarm
	if kind == sysDocker {
		make = d.onMesh
	}
	if err := errors.Join(os.Mkdir(d.dir, 0o777), make(ctx, sc)); err != nil {
		return err
	}
	for i, e := range sc.engines {
		if err := d.sleeper(ctx, e, kind, d.first); err != nil {
			return err
		}
		if err := d.sleeper(ctx, e, kind+"-other", d.second); err != nil {
			return err
		}
		ns, err := e.Namespace(ctx, kind)
		if err != nil {
			return err
		}
		out, err := e.Docker(ctx, "inspect", "--format", `{{(index .NetworkSettings.Networks "`+d.first+`").IPAddress}}`, kind)
		if err != nil {
			return err
		}
		addr, err := netip.ParseAddr(out)
		if err != nil {
			return fmt.Errorf("find address of %s: %w", kind, err)
		}
		p.ends = append(p.ends, end{host: sc.lab.Hosts()[i], ns: ns})
		p.net.addrs = append(p.net.addrs, addr)
		d.far = addr
	}
	out, err := d.engine.Docker(ctx, "exec", kind, "cat", "/sys/class/net/eth0/mtu")
	if err == nil {
		p.net.mtu, err = strconv.Atoi(out)
	}
	if err == nil {
		sc.docker[kind] = d
	}
	return err
}
