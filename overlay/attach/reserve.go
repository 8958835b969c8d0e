package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// Reserve holds an address for a door that will attach something with it.
func (m *Manager) Reserve(ctx context.Context, w Want) (netip.Prefix, error) {
	ask, err := Ask{ID: w.Door + "/", Network: w.Network, Addresses: []netip.Addr{w.Address}}.normal()
	if err = errors.Join(err, checkDoor(w.Door)); err != nil {
		return netip.Prefix{}, fmt.Errorf("reserve address: %w", err)
	}
	var n *network
	var a netip.Prefix
	err = m.await(ctx, ask.Network, func(of *network) (err error) {
		n = of
		if a, err = n.take(w.Address); err == nil {
			n.reserve(&reservation{w.Door, a, w.Keep})
		}
		return err
	})
	if err == nil {
		if err = m.commit(n); err != nil {
			m.mu.Lock()
			n.release(a.Addr())
			m.mu.Unlock()
		}
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("reserve address in %s: %w", ask.Network, err)
	}
	_ = m.follow(ctx) // as in Detach; Attach will insist
	return a, nil
}

// Release gives back what a door has reserved; what is attached with it keeps it.
// An address that the door has not reserved is released already.
func (m *Manager) Release(ctx context.Context, door, network string, a netip.Addr) error {
	m.mu.Lock()
	n := m.networks[network]
	if n == nil || n.reserved[a] == nil || n.reserved[a].Door != door {
		m.mu.Unlock()
		return nil
	}
	n.release(a)
	m.mu.Unlock()
	if err := m.commit(n); err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	_ = m.follow(ctx) // as in Detach
	return nil
}

// Use says that something, such as a network of Docker, will attach containers to
// a network, and waits until this node holds a subnet there. The use has an ID as
// an [Ask] has, lasts until [Manager.Unuse], and may be repeated.
func (m *Manager) Use(ctx context.Context, id, network string) (Subnet, error) {
	ask, err := Ask{ID: id, Network: network}.normal()
	if err != nil {
		return Subnet{}, fmt.Errorf("use network: %w", err)
	}
	s, err := m.use(ctx, id, ask.Network)
	if err != nil {
		return Subnet{}, fmt.Errorf("use network %s: %w", ask.Network, err)
	}
	return s, nil
}

func (m *Manager) use(ctx context.Context, id, name string) (Subnet, error) {
	done, err := m.begin(ctx, id)
	if err != nil {
		return Subnet{}, err
	}
	defer done()
	var n *network
	fresh := false
	err = m.await(ctx, name, func(of *network) error {
		n = of
		if at := m.ids[id]; at != nil && (at != n || !n.uses[id]) {
			return ErrInUse
		}
		if !n.uses[id] {
			m.ids[id], n.uses[id] = n, true
			n.changes++
			fresh = true
		}
		return nil
	})
	if err != nil {
		return Subnet{}, err
	}
	if err = m.commit(n); err == nil {
		err = m.follow(ctx)
	}
	if err != nil {
		if fresh { // whoever was refused may not come back
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
			defer cancel()
			err = errors.Join(err, m.unuse(undo, id))
		}
		return Subnet{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return n.mine(m.world.MTU), nil
}

// Unuse ends a use; what is attached stays. There is none: fine.
func (m *Manager) Unuse(ctx context.Context, id string) error {
	done, err := m.begin(ctx, id)
	if err != nil {
		return fmt.Errorf("end use %s: %w", id, err)
	}
	defer done()
	if err := m.unuse(ctx, id); err != nil {
		return fmt.Errorf("end use %s: %w", id, err)
	}
	return nil
}

// unuse ends a use whose ID is busy.
func (m *Manager) unuse(ctx context.Context, id string) error {
	m.mu.Lock()
	n := m.ids[id]
	if n == nil || !n.uses[id] {
		m.mu.Unlock()
		return nil
	}
	delete(n.uses, id)
	delete(m.ids, id)
	n.changes++
	m.mu.Unlock()
	if err := m.commit(n); err != nil {
		return err
	}
	_ = m.follow(ctx) // as in Detach
	return nil
}
