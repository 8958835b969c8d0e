package attach

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"meshd/mesh"
)

// Here callers wait: for a lease, for who works on the same ID, for the host, and for
// the disk.

// await calls do, with the lock held, once addresses can be given in a network,
// and makes it known meanwhile that this is wanted.
func (m *Manager) await(ctx context.Context, name string, do func(*network) error) error {
	ctx, cancel := context.WithTimeout(ctx, m.opt.Wait)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	var waits *network
	for {
		lack := m.lackLocked(name)
		if lack == nil {
			lack = do(m.networks[name])
		}
		if waits == nil && errors.Is(lack, ErrNoLease) && m.networks[name] != nil {
			waits = m.networks[name]
			waits.waiting++
			defer func() { waits.waiting-- }()
		}
		if !errors.Is(lack, ErrNoLease) {
			return lack
		}
		moved := m.moved
		m.mu.Unlock()
		err := m.follow(ctx)
		if err == nil {
			select {
			case <-moved:
			case <-ctx.Done():
			}
		}
		m.mu.Lock()
		if ctx.Err() != nil {
			return lack
		}
		if err != nil {
			return err
		}
	}
}

// lackLocked says why no address can be given in a network.
func (m *Manager) lackLocked(name string) error {
	view := m.world.View
	if view == nil {
		return fmt.Errorf("%w yet: the daemon starts", ErrNoLease)
	}
	n := m.networks[name]
	switch {
	case n == nil, n.ranges == nil:
		return fmt.Errorf("%w: %s", ErrUnknownNetwork, name)
	case n.delegated:
		return fmt.Errorf("%w: see subnet_env in the config file", ErrDelegated)
	case n.broken != nil:
		return n.broken
	case n.pools != nil:
		return nil
	case n.lease.State == mesh.Pending:
		return fmt.Errorf("%w yet: it has announced %s and waits for objections", ErrNoLease, n.lease.Prefixes[0])
	case view.State != mesh.Ready:
		return fmt.Errorf("%w: it is %s, see `meshctl status`", ErrNoLease, view.State)
	}
	return fmt.Errorf("%w: none was granted, see `meshctl status`", ErrNoLease)
}

// begin makes the caller the only one who works on an ID, until done.
func (m *Manager) begin(ctx context.Context, id string) (done func(), err error) {
	mine := make(chan struct{})
	for {
		m.mu.Lock()
		other := m.busy[id]
		if other == nil {
			m.busy[id] = mine
		}
		m.mu.Unlock()
		if other == nil {
			return func() {
				m.mu.Lock()
				delete(m.busy, id)
				m.mu.Unlock()
				close(mine)
			}, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// follow has the host follow what Networks says, if it does not yet.
func (m *Manager) follow(ctx context.Context) error {
	select {
	case m.tell <- struct{}{}:
		defer func() { <-m.tell }()
	case <-ctx.Done():
		return ctx.Err()
	}
	now := m.Networks()
	if !m.unsure && reflect.DeepEqual(now, m.told) {
		return nil
	}
	m.unsure = true
	if err := m.opt.Changed(ctx); err != nil {
		return err
	}
	m.told, m.unsure = now, false
	return nil
}

// commit makes a network durable as it is now. Whoever comes while another one
// writes is written with all who wait, at once.
func (m *Manager) commit(n *network) error {
	m.mu.Lock()
	need := n.changes
	m.mu.Unlock()
	n.saving.Lock()
	defer n.saving.Unlock()
	if n.saved >= need {
		return nil
	}
	m.mu.Lock()
	now := n.changes
	raw, err := n.document().encode()
	m.mu.Unlock()
	if err == nil {
		err = m.opt.Store.SaveAttachments(n.name, raw)
	}
	if err != nil {
		return fmt.Errorf("save attachments: %w", err)
	}
	n.saved = now
	return nil
}
