package exchange

import (
	"maps"
	"sync"
	"time"

	"meshd/mesh/trust"
)

const (
	// firstRefusal and lastRefusal bound how long an object that came and is not
	// believed is neither asked for nor taken again: what it rests on may come.
	firstRefusal, lastRefusal = 5 * time.Second, 5 * time.Minute
	// maxRefusals bounds how many are remembered; members alone can fill it.
	maxRefusals = 4096
)

// memory is of the objects that came and are not believed. Without it each exchange
// between two nodes that differ for good would carry them again.
type memory struct {
	mu   sync.Mutex
	past map[trust.Hash]refusal
}

type refusal struct {
	until time.Time
	pause time.Duration
}

// note remembers objects that came, were asked for or offered by name, and were
// decided about. What was named and did not come may still come from another.
func (m *memory) note(decided []trust.Hash) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, h := range decided {
		if m.past == nil || len(m.past) >= maxRefusals {
			m.past = map[trust.Hash]refusal{}
		}
		pause := min(max(2*m.past[h].pause, firstRefusal), lastRefusal)
		m.past[h] = refusal{now.Add(pause), pause}
	}
}

// refused lists what need not come again yet.
func (m *memory) refused(own *Set) []trust.Hash {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.past, func(h trust.Hash, _ refusal) bool { return own.has[h] }) // it is believed by now
	var out []trust.Hash
	for h, r := range m.past {
		if now.Before(r.until) {
			out = append(out, h)
		}
	}
	return out
}
