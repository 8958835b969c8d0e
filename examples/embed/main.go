//go:build linux

// Command embed is a node of a mesh inside another program: here one that prints
// its addresses in the mesh when it has them, and then waits. It takes root. The
// state is made beforehand, with a token of the mesh:
//
//	echo 'state_dir: /var/lib/embed' >embed.yaml
//	meshctl --config embed.yaml join -
//	embed --state /var/lib/embed
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"meshd/mesh/exchange"
	"meshd/mesh/gossip"
	"meshd/mesh/member"
	"meshd/mesh/statedir"
	"meshd/overlay"
	"meshd/overlay/tunnel/native"
	"meshd/tun/device"
	"meshd/tun/hostnet"
)

const (
	tunnelPort = 51880 // UDP
	gossipPort = 51881 // UDP and TCP
	link       = "mesh0"
	queues     = 1 // of the TUN device, each with a thread
)

func main() {
	state := flag.String("state", "", "state `directory`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *state); err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, state string) error {
	if state == "" {
		return errors.New("--state is missing: name the state directory")
	}
	// Whoever writes the state must be alone with it.
	release, err := statedir.Lock(state)
	if err != nil {
		return err
	}
	defer release()
	dir, err := statedir.Open(state)
	if err != nil {
		return err
	}
	node, err := build(dir, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	go func() { // ends with the program
		<-node.Ready()
		for _, lease := range node.Status().Node.Leases {
			fmt.Println("ready:", lease.Addresses)
		}
	}()
	return node.Run(ctx) // until ctx is done; what is sent to the mesh then is unreachable, never in clear text
}

// build puts the parts together.
func build(dir *statedir.Dir, log *slog.Logger) (*overlay.Node, error) {
	// The engine's threads wait in the kernel, with a slot of Go's scheduler each.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + queues*native.WorkersPerQueue)
	state, err := dir.BeginEpoch() // before anything is said: a new life of this node
	if err != nil {
		return nil, err
	}
	membership := dir.Membership()
	table, _ := dir.LoadTable() // caches: without them it asks the other members
	peers, _ := dir.LoadPeers()

	// Who is in the mesh and who owns what: decided from signed objects, purely.
	of := dir.Member()
	of.Suites = native.Suites() // what the engine below speaks
	core, err := member.New(time.Now(), of, state, table)
	if err != nil {
		return nil, err
	}
	// What carries those objects between members.
	members, err := gossip.New(gossip.Options{
		Core: core, Store: dir, Self: core.ID(), Keyring: membership.Keyring, Seeds: membership.Seeds, Peers: peers,
		Bind: netip.AddrPortFrom(netip.IPv6Unspecified(), gossipPort), Tunnels: exchange.Kernel{}, Log: log,
	})
	if err != nil {
		return nil, err
	}
	return overlay.New(overlay.Options{
		Self: core.ID(), Name: core.Name(), Version: "embed", Log: log,
		Mesh: members,
		Host: hostnet.New(hostnet.Options{Log: log}), // addresses and routes
		NewEngine: func() (overlay.Engine, error) { // what carries packets; called again if it ends
			dev, err := device.Open(device.Options{Name: link, Offload: device.On, Queues: queues, USO: true})
			if err != nil {
				return nil, err
			}
			stamp, _ := dir.LoadStamp() // a cache, too
			return native.New(native.Options{
				TUN: dev, PrivateKey: dir.Keys().Tunnel, Port: tunnelPort, Stamp: stamp, SaveStamp: dir.SaveStamp, Log: log,
			}), nil
		},
		Link: link, TunnelPort: tunnelPort, GossipPort: gossipPort,
	}), nil
}
