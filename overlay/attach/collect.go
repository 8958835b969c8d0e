package attach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"meshd/tun"
)

// Collect undoes what is half-made, removes links that nothing is known of, and puts
// those back on their bridge that somebody has taken off. It takes back what has been
// left over for the grace: attachments whose link went with its container or was never
// moved into one, and reservations that nothing was attached with. It gives the
// attachments that it has ended. Call it every few seconds; the grace counts from the
// first call that sees what is left over.
func (m *Manager) Collect(ctx context.Context, now time.Time) ([]Attachment, error) {
	ports, err := m.opt.Host.Ports(ctx)
	if err != nil {
		return nil, fmt.Errorf("collect attachments: list links: %w", err)
	}
	ended, err := m.end(ctx, append(m.halfMade(), m.lost(ports, now)...))
	m.lapse(now)
	errs := []error{err, m.save(), m.sweep(ctx, ports)}
	if err := m.follow(ctx); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, m.mend(ctx, ports))
	}
	if err := errors.Join(errs...); err != nil {
		return ended, fmt.Errorf("collect attachments: %w", err)
	}
	return ended, nil
}

// halfMade lists what was not made and could not be undone.
func (m *Manager) halfMade() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for id, n := range m.ids {
		if e := n.entries[id]; e != nil && e.making && m.busy[id] == nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// lost lists what has been without a link for the grace, or with one that no
// container has.
func (m *Manager) lost(ports []tun.Port, now time.Time) []string {
	there, here := map[string]bool{}, map[string]bool{}
	for _, p := range ports {
		there[p.Name], here[p.Peer] = true, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for id, n := range m.ids {
		e := n.entries[id]
		if e == nil || e.making || m.busy[id] != nil {
			continue
		}
		p := e.port(n.name)
		gone := !there[p.Name]
		if p.Name == "" { // it has no end here
			gone = e.Boot != m.opt.Boot
			if !gone && !here[p.Peer] && !e.Moved {
				e.Moved = true
				n.changes++
			}
		}
		switch since, noted := n.missing[id]; {
		case !gone && !here[p.Peer]:
			delete(n.missing, id)
		case !noted:
			n.missing[id] = now
		case now.Sub(since) >= m.opt.Grace:
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// end ends what is half-made or lost, and still is when its turn comes. It gives
// what somebody was told of.
func (m *Manager) end(ctx context.Context, ids []string) ([]Attachment, error) {
	var ended []Attachment
	var errs []error
	for _, id := range ids {
		a, err := m.endOne(ctx, id)
		if err != nil {
			errs = append(errs, fmt.Errorf("end %s: %w", id, err))
		} else if a.ID != "" {
			ended = append(ended, a)
		}
	}
	return ended, errors.Join(errs...)
}

func (m *Manager) endOne(ctx context.Context, id string) (Attachment, error) {
	done, err := m.begin(ctx, id)
	if err != nil {
		return Attachment{}, err
	}
	defer done()
	n, e, _ := m.find(id)
	if e == nil {
		return Attachment{}, nil
	}
	m.mu.Lock()
	_, missing := n.missing[id]
	a, hasOther := n.attachment(e), e.Moved && e.Boot == m.opt.Boot
	m.mu.Unlock()
	switch {
	case e.making: // nobody was told of it
		return Attachment{}, m.remove(ctx, n, e)
	case missing && hasOther: // the container has one, and its door did not need a second
		return Attachment{}, m.opt.Host.DelPort(ctx, tun.Port{Peer: a.Peer})
	case missing:
		return a, m.remove(ctx, n, e)
	}
	return Attachment{}, nil
}

// lapse takes back reservations that were not used for the grace.
func (m *Manager) lapse(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.networks {
		for a, r := range n.reserved {
			switch since, noted := n.idle[a]; {
			case r.Keep || n.holder[a] != nil:
				delete(n.idle, a)
			case !noted:
				n.idle[a] = now
			case now.Sub(since) >= m.opt.Grace:
				n.release(a)
			}
		}
	}
}

// save makes everything durable that is not yet.
func (m *Manager) save() error {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.networks))
	m.mu.Unlock()
	var errs []error
	for _, n := range all {
		errs = append(errs, m.commit(n))
	}
	return errors.Join(errs...)
}

// mend puts links of containers back on their bridge: that was removed with
// everything that is ours, or by somebody else. Those without a bridge are made as
// the lease is now.
func (m *Manager) mend(ctx context.Context, ports []tun.Port) error {
	var errs []error
	for id, name := range m.astray(ports) {
		err := m.mendOne(ctx, id)
		if err != nil {
			errs = append(errs, fmt.Errorf("put %s back: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// astray gives the links that are not as they should be, by attachment.
func (m *Manager) astray(ports []tun.Port) map[string]string {
	byName := map[string]tun.Port{}
	for _, p := range ports {
		byName[p.Name] = p
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]string{}
	for id, n := range m.ids {
		e := n.entries[id]
		if e == nil || e.making {
			continue
		}
		want := n.port(e)
		have, there := byName[want.Name]
		down := e.Mode == PTP && len(want.Addresses) == 0
		other := e.Mode == Bridge && have.Parent != want.Parent || e.Mode == PTP && (e.made == nil || !reflect.DeepEqual(*e.made, want))
		if there && (other || have.Down != down) {
			out[id] = want.Name
		}
	}
	return out
}

func (m *Manager) mendOne(ctx context.Context, id string) error {
	done, err := m.begin(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	n, e, _ := m.find(id)
	if e == nil {
		return nil // it has been detached meanwhile
	}
	return m.addPort(ctx, n, e)
}

// sweep removes links that no attachment has: a document was deleted, or a
// backup put in its place. Their containers have addresses that are free now.
func (m *Manager) sweep(ctx context.Context, ports []tun.Port) error {
	m.links.Lock()
	defer m.links.Unlock()
	if m.damaged() {
		return nil // they may be what could not be read
	}
	m.mu.Lock()
	known := map[string]bool{}
	for _, n := range m.networks {
		for _, e := range n.entries {
			p := e.port(n.name)
			known[p.Name], known[p.Peer] = true, true
		}
	}
	delete(known, "")
	m.mu.Unlock()
	var errs []error
	for _, p := range ports {
		if !known[p.Name] && !known[p.Peer] {
			errs = append(errs, m.opt.Host.DelPort(ctx, p))
		}
	}
	return errors.Join(errs...)
}
