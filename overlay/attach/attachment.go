package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"meshd/tun"
)

// Attach gives a container an address and makes its link. The same ask again
// gets the same answer, and its link again if it has gone; another one with the
// same ID fails with [ErrInUse]. For a first use of a network it waits until this
// node holds a subnet, or fails with [ErrNoLease].
func (m *Manager) Attach(ctx context.Context, ask Ask) (Attachment, error) {
	ask, err := ask.normal()
	if err != nil {
		return Attachment{}, fmt.Errorf("attach: %w", err)
	}
	a, err := m.attach(ctx, ask)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s to %s: %w", ask.ID, ask.Network, err)
	}
	return a, nil
}

func (m *Manager) attach(ctx context.Context, ask Ask) (Attachment, error) {
	done, err := m.begin(ctx, ask.ID)
	if err != nil {
		return Attachment{}, err
	}
	defer done()
	n, e, used := m.find(ask.ID)
	if used {
		return Attachment{}, ErrInUse
	}
	if e != nil && e.making { // it could not be undone
		if err := m.remove(ctx, n, e); err != nil {
			return Attachment{}, err
		}
		e = nil
	}
	fresh := e == nil
	if fresh {
		n, e, err = m.admit(ctx, ask)
	} else if n.name != ask.Network || !e.fits(ask) {
		err = ErrInUse
	}
	if err != nil {
		return Attachment{}, err
	}
	if err := m.link(ctx, n, e); err != nil {
		if fresh {
			// Whatever has ended the ask, what it began goes; if not now, by Collect.
			m.mu.Lock()
			e.making = true
			m.mu.Unlock()
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
			defer cancel()
			err = errors.Join(err, m.remove(undo, n, e))
			_ = m.follow(undo) // as in Detach
		}
		return Attachment{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return n.attachment(e), nil
}

// link makes the link of an entry, once the host is ready for it, and saves the
// entry, if it is a new one.
func (m *Manager) link(ctx context.Context, n *network, e *entry) error {
	if err := m.follow(ctx); err != nil {
		return err
	}
	if err := m.noteMoved(ctx, n, e); err != nil {
		return err
	}
	if err := m.addPort(ctx, n, e); err != nil {
		return err
	}
	m.mu.Lock()
	delete(n.missing, e.ID)
	if e.making || e.Boot != m.opt.Boot {
		e.making, e.Boot = false, m.opt.Boot
		n.changes++
	}
	m.mu.Unlock()
	return m.commit(n)
}

// noteMoved sees, before a link without an end here is made a second time, whether
// the container has the first.
func (m *Manager) noteMoved(ctx context.Context, n *network, e *entry) error {
	p := e.port(n.name)
	if p.Name != "" || e.making || e.Moved || e.Boot != m.opt.Boot {
		return nil
	}
	ports, err := m.opt.Host.Ports(ctx)
	if err != nil {
		return err
	}
	here := func(o tun.Port) bool { return o.Peer == p.Peer }
	if !slices.ContainsFunc(ports, here) {
		m.mu.Lock()
		e.Moved = true
		n.changes++
		m.mu.Unlock()
	}
	return nil
}

// addPort makes the link of an entry as it is to be.
func (m *Manager) addPort(ctx context.Context, n *network, e *entry) error {
	m.links.RLock()
	defer m.links.RUnlock()
	m.mu.Lock()
	p := n.port(e)
	m.mu.Unlock()
	if err := m.opt.Host.AddPort(ctx, p); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e.made = &p
	return nil
}

// undoWait bounds what is done for an ask that has ended.
const undoWait = 5 * time.Second

// admit gives an ask its addresses.
func (m *Manager) admit(ctx context.Context, ask Ask) (n *network, e *entry, err error) {
	err = m.await(ctx, ask.Network, func(of *network) error {
		n = of
		e, err = n.admit(ask, m.world.MTU)
		if err == nil {
			m.ids[ask.ID] = n
		}
		return err
	})
	return n, e, err
}

// Detach removes a container's link and frees its addresses, but for reserved
// ones. What is not attached is detached already.
func (m *Manager) Detach(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	done, err := m.begin(ctx, id)
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	defer done()
	n, e, _ := m.find(id)
	switch {
	case e != nil:
		err = m.remove(ctx, n, e)
	case m.damaged(): // it may be in what could not be read
		name, peer := links(id, Bridge) // the peer's is the same for every mode
		err = m.opt.Host.DelPort(ctx, tun.Port{Name: name, Peer: peer})
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	_ = m.follow(ctx) // the next ask tries again, and nobody needs what is left of the plan
	return nil
}

// damaged tells whether the document of some network could not be read.
func (m *Manager) damaged() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.networks {
		if n.broken != nil {
			return true
		}
	}
	return false
}

// remove undoes an attachment. Its ID is busy.
func (m *Manager) remove(ctx context.Context, n *network, e *entry) error {
	if err := m.opt.Host.DelPort(ctx, e.port(n.name)); err != nil {
		return err
	}
	m.mu.Lock()
	n.drop(e)
	delete(m.ids, e.ID)
	m.mu.Unlock()
	// If this cannot be saved, a start finds the entry without its link, and
	// Collect takes it then.
	return m.commit(n)
}
