package main

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/status"
)

// said are the core's reasons not to do something, in the words of the control API.
var said = []struct{ core, api error }{
	{member.ErrUnknownNode, status.ErrUnknownNode},
	{member.ErrNotNow, status.ErrNotNow},
	{member.ErrInUse, status.ErrLeaseInUse},
	{member.ErrNotAllowed, status.ErrNotAllowed},
	{member.ErrRefused, status.ErrRefused},
	{trust.ErrNotNext, status.ErrNotNext},
	{trust.ErrForbidden, status.ErrRefused},
	{trust.ErrMalformed, status.ErrRefused},
	{trust.ErrSignature, status.ErrRefused},
}

// operate makes a change in the core and waits until what follows from it is
// saved. A change that could not be saved is not begun.
func (p *parts) operate(ctx context.Context, do func(now time.Time) error) error {
	err := p.change(ctx, func(now time.Time) error {
		if err := p.dir.Check(); err != nil {
			return err
		}
		return do(now)
	})
	for _, s := range said {
		if errors.Is(err, s.core) {
			return worded{err, s.api}
		}
	}
	if err != nil {
		return err
	}
	if err := p.gossip.Saved(ctx); err != nil {
		return err
	}
	p.node.Planned(ctx)
	return nil
}

// worded is an error that is also another one, and keeps its text.
type worded struct {
	error
	api error
}

// Unwrap gives both.
func (w worded) Unwrap() []error { return []error{w.error, w.api} }

// Objects implements [status.Objects].
func (p *parts) Objects(ctx context.Context) (all [][]byte, err error) {
	err = p.change(ctx, func(time.Time) error { all = p.core.Table(); return nil })
	return all, err
}

// Submit implements [status.Objects].
func (p *parts) Submit(ctx context.Context, raw []byte) error {
	return p.operate(ctx, func(time.Time) error { return p.core.Submit(raw) })
}

// Renumber implements [status.Leases].
func (p *parts) Renumber(ctx context.Context, network string, force bool) error {
	return p.operate(ctx, func(now time.Time) error { return p.core.Renumber(now, network, force) })
}

// Release implements [status.Leases].
func (p *parts) Release(ctx context.Context, network string) error {
	err := p.change(ctx, func(time.Time) error { return p.dir.Check() })
	if err == nil {
		err = p.node.Release(ctx, network)
	}
	if err != nil {
		return err
	}
	return p.gossip.Saved(ctx)
}

// Forget implements [status.Leases].
func (p *parts) Forget(ctx context.Context, id mesh.NodeID) error {
	return p.operate(ctx, func(now time.Time) error { return p.core.Forget(now, id) })
}

// Keys implements [status.Keys].
func (p *parts) Keys(ctx context.Context) (status.KeysReply, error) {
	var r status.KeysReply
	err := p.change(ctx, func(time.Time) error {
		ring := p.core.Keyring()
		r.Tunnel = p.core.TunnelKey().String()
		for _, k := range ring.Keys {
			var drops *time.Time
			if k.Generation < ring.Send {
				drops = known(ring.DropsBy())
			}
			r.Gossip = append(r.Gossip, status.GossipKey{
				DropsBy: drops, Generation: k.Generation, ID: trust.KeyIDOf(k.Key).String(), Made: known(k.Made), Installed: known(k.Installed),
				Sends: k.Generation == ring.Send && trust.KeyIDOf(k.Key) == trust.KeyIDOf(ring.Sending().Key),
			})
		}
		ring.Wipe(member.Keyring{})
		return nil
	})
	return r, err
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// RotateGossip implements [status.Keys].
func (p *parts) RotateGossip(ctx context.Context, now bool) error {
	key := make([]byte, trust.GossipKeySize)
	_, _ = rand.Read(key) // never fails since Go 1.24
	keep := member.RotateGrace
	if now {
		keep = 0
	}
	return p.operate(ctx, func(now time.Time) error { return p.core.RotateGossip(now, key, keep) })
}

// RotateTunnel implements [status.Keys]. The key is saved before anybody hears of it:
// peers that know it would not talk to a daemon that comes back with the old one.
func (p *parts) RotateTunnel(ctx context.Context) error {
	key := statedir.NewTunnelKey()
	return p.operate(ctx, func(time.Time) error {
		if err := p.dir.SaveTunnelKey(key); err != nil {
			return err
		}
		p.node.SetTunnelKey(key.Scalar)
		p.core.SetTunnelKey(key.Public, key.Prove(p.core.ID()))
		return nil
	})
}
