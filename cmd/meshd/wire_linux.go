package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/gossip"
	"meshd/mesh/lease"
	"meshd/mesh/member"
	"meshd/mesh/statedir"
	"meshd/overlay"
	"meshd/overlay/config"
	"meshd/overlay/status"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/wggo"
	"meshd/tun/device"
	"meshd/tun/hostnet"
)

// assemble chooses the concrete parts of a node and puts them together. It
// raises the epoch, so each call is a new start.
func assemble(cfg *config.Config, log *slog.Logger) (*overlay.Node, error) {
	dir, err := openState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	state, err := dir.BeginEpoch()
	if err != nil {
		return nil, withCode(err)
	}
	core, err := newMember(cfg, dir, state)
	if err != nil {
		return nil, exit.With(exit.Data, fmt.Errorf("state in %s: %w", cfg.StateDir, err))
	}
	peers, err := dir.LoadPeers()
	if err != nil {
		return nil, withCode(err)
	}
	membership, err := gossip.New(gossip.Options{
		Core: core, Self: core.ID(), Keys: dir.Membership().GossipKeys, Bind: cfg.Listen.Gossip,
		Seeds: seeds(cfg, dir), Peers: peers, Store: dir, Log: log,
	})
	if err != nil {
		return nil, err
	}
	return overlay.New(overlay.Options{
		Self: core.ID(), Name: nodeName(core), Version: version, Log: log,
		Mesh: membership, Host: hostnet.New(hostnet.Options{Log: log}),
		NewEngine:  func(mtu int) (overlay.Engine, error) { return newEngine(cfg, dir, mtu, log) },
		Link:       cfg.Interface.Name,
		MTU:        cfg.Interface.MTU,
		TunnelPort: cfg.Listen.Tunnel.Port(),
		GossipPort: cfg.Listen.Gossip.Port(),
		Advertise:  cfg.Advertise,
	}), nil
}

func openState(path string) (*statedir.Dir, error) {
	dir, err := statedir.Open(path)
	if err != nil {
		return nil, withCode(err)
	}
	return dir, nil
}

// newMember builds the membership machine from what is on disk.
func newMember(cfg *config.Config, dir *statedir.Dir, state member.State) (*member.Member, error) {
	if state.Left {
		return nil, errors.New("this node has left its mesh: join one again with `meshctl join TOKEN`")
	}
	table, err := dir.LoadTable()
	if err != nil {
		return nil, err
	}
	keys, membership := dir.Keys(), dir.Membership()
	return member.New(now(), member.Config{
		Identity: keys.Identity, Charter: membership.Charter, Certificate: membership.Certificate,
		TunnelKey: mesh.Key(keys.Tunnel.PublicKey().Bytes()), Nonce: randomNonce(),
		Founder: membership.Founder, HasSeeds: len(seeds(cfg, dir)) > 0,
		OnConflict: lease.OnConflict(cfg.Lease.OnConflict), Labels: cfg.Node.Labels,
		Suites: []string{tunnel.ChaCha20Poly1305},
	}, state, table)
}
