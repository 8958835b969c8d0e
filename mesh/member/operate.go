package member

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

// Reasons for which a change is not made.
var (
	ErrUnknownNode = errors.New("no such member")
	ErrNotNow      = errors.New("not now")
	ErrInUse       = errors.New("the subnet is in use")
	ErrNotAllowed  = errors.New("this node may not do that")
	ErrRefused     = errors.New("object refused")
)

// Submit takes an object that the CA signed, from this node's operator, and
// spreads it with the next Step: a charter, a revocation, a certificate, a
// tombstone. It fails with [ErrRefused] if it is none of these; one that is known
// is fine.
func (m *Member) Submit(raw []byte) error {
	kind, err := trust.KindOf(raw)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	switch ca := m.reg.Charter().CA; kind {
	case trust.KindCharter:
		return m.SetCharter(raw)
	case trust.KindRevocation:
		_, err = trust.ParseRevocation(raw, ca)
	case trust.KindCertificate:
		var c *trust.Certificate
		if c, err = trust.ParseCertificate(raw, ca); err == nil && c.Credential != nil {
			err = errors.New("a token signed the certificate, not the CA")
		}
	case trust.KindTombstone:
		var t *trust.Tombstone
		if t, err = trust.ParseTombstone(raw); err == nil {
			err = t.Verify(nil, ca)
		}
	default:
		err = fmt.Errorf("kind %d is not the CA's to sign", kind)
	}
	if err == nil {
		err = m.Receive(raw)
	}
	switch {
	case errors.Is(err, registry.ErrStale):
		return nil // who asks again did not hear that all went well
	case err != nil:
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	m.todo.outBound = append(m.todo.outBound, slices.Clone(raw))
	return nil
}

// Forget says of a member that was not heard of for as long as a lease lasts that it is
// gone. Its leases are free when another member says so too, which comes by itself: each
// looks for itself. It fails with [ErrNotNow] if it was: then only the CA key forgets it.
func (m *Member) Forget(now time.Time, id mesh.NodeID) error {
	all := m.members(now)
	i := slices.IndexFunc(all, func(n registry.Member) bool { return n.ID == id })
	switch {
	case i < 0:
		return fmt.Errorf("forget node: %w: %s", ErrUnknownNode, id)
	case id == m.id:
		return fmt.Errorf("forget node: %w: it is this one: leave the mesh instead", ErrNotAllowed)
	case !m.vouches(now):
		return fmt.Errorf("forget node: %w: this node's certificate counts for nothing now", ErrNotAllowed)
	case !m.holdsAny(all[i]), m.hasBuried(all[i]):
		return nil // there is nothing to free
	}
	h := m.watch.heard[id]
	if heard := now.Sub(h.at); heard < m.cfg.TTL {
		return fmt.Errorf("forget node: %w: it was heard of %s ago, and leases last for %s; with the CA key it is forgotten at once",
			ErrNotNow, heard.Round(time.Second), m.cfg.TTL)
	}
	m.bury(all[i], trust.Forgotten, now)
	return nil
}

// Renumber gives the lease in a network up and takes another subnet. It fails with
// [ErrInUse] if something local has addresses of it, unless it is forced, and with
// [ErrNotNow] if there is no lease, or no other subnet to be had.
func (m *Member) Renumber(now time.Time, network string, force bool) error {
	i := slices.IndexFunc(m.nets.holdings, func(h *holding) bool { return h.network.Name == network })
	if i < 0 {
		return fmt.Errorf("renumber lease: %w: there is none in network %s", ErrNotNow, network)
	}
	h := m.nets.holdings[i]
	if m.isInUse(network) && !force {
		return fmt.Errorf("renumber lease: %w: containers have addresses of it", ErrInUse)
	}
	w := m.worldOf(h, m.claims(now)[network], now)
	switch _, has := h.alloc.Lease(); {
	case !w.MayClaim, !has:
		return fmt.Errorf("renumber lease: %w: this node has none in network %s to give up", ErrNotNow, network)
	case len(m.cert.Rights.Pins) > 0:
		return fmt.Errorf("renumber lease: %w: its certificate pins it to %s", ErrNotAllowed, m.cert.Rights.Pins)
	case !h.alloc.Renumber(w):
		return fmt.Errorf("renumber lease: %w: no other subnet of network %s is free", ErrNotNow, network)
	}
	m.todo.dirty = true
	return nil
}

// Keyring gives a copy of the gossip keys.
func (m *Member) Keyring() Keyring { return m.cfg.Keyring.Clone() }

// SetTunnelKey says which key peers reach this node's tunnel with, and proves it; it
// must be durable before.
func (m *Member) SetTunnelKey(key mesh.Key, possession []byte) {
	m.cfg.TunnelKey, m.cfg.Possession, m.todo.dirty = key, possession, true
}

// TunnelKey is the one that the next record tells.
func (m *Member) TunnelKey() mesh.Key { return m.cfg.TunnelKey }
