package exchange

import (
	"maps"
	"slices"
	"sync"
	"time"
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
	past map[uint64]refusal
}

type refusal struct {
	until time.Time
	pause time.Duration
}

// note remembers which of the named objects came. What was named and did not come
// may still come from another.
func (m *memory) note(named []uint64, objects [][]byte) {
	if len(objects) == 0 {
		return
	}
	came := make(map[uint64]bool, len(objects))
	for _, o := range objects {
		came[keyOf(o)] = true
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range named {
		if !came[k] {
			continue
		}
		if m.past == nil || len(m.past) >= maxRefusals {
			m.past = map[uint64]refusal{}
		}
		pause := min(max(2*m.past[k].pause, firstRefusal), lastRefusal)
		m.past[k] = refusal{now.Add(pause), pause}
	}
}

// worth lists those of keys that are worth asking for.
func (m *memory) worth(own *Set, keys []uint64) []uint64 {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetLocked(own)
	return slices.DeleteFunc(keys, func(k uint64) bool { return now.Before(m.past[k].until) })
}

// refused lists what need not come again yet.
func (m *memory) refused(own *Set) []uint64 {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetLocked(own)
	var out []uint64
	for k, r := range m.past {
		if now.Before(r.until) {
			out = append(out, k)
		}
	}
	return out
}

// forgetLocked forgets what is believed by now.
func (m *memory) forgetLocked(own *Set) {
	maps.DeleteFunc(m.past, func(k uint64, _ refusal) bool {
		_, believed := own.hashes[k]
		return believed
	})
}
