package wg

import (
	"math/rand/v2"
	"testing"
)

func TestTable(t *testing.T) {
	table, r := newTable(), rand.New(rand.NewPCG(1, 2))
	owners := make([]*peer, 3)
	for i := range owners {
		owners[i] = &peer{}
	}
	have := map[uint32]*Session{}
	for step := range 20000 {
		if len(have) < 2000 && r.IntN(5) < 3 {
			owner := owners[step%3]
			s := &Session{local: table.reserve(owner, &counting{r.Uint64()})}
			if s.local == 0 || have[s.local] != nil || table.Lookup(s.local) != nil || table.peer(s.local) != owner {
				t.Fatalf("step %d: index %x", step, s.local)
			}
			table.put(s)
			have[s.local] = s
			continue
		}
		for index := range have {
			table.release(index)
			table.release(index) // nothing
			if table.Lookup(index) != nil || table.peer(index) != nil {
				t.Fatalf("step %d: index %x is there after its release", step, index)
			}
			delete(have, index)
			break
		}
	}
	for index, s := range have {
		if table.Lookup(index) != s || table.Lookup(index^1<<31) != nil {
			t.Errorf("index %x gives another session", index)
		}
	}
	if table.used != len(have) || table.Lookup(0) != nil || table.peer(0) != nil {
		t.Errorf("%d indices in use, want %d", table.used, len(have))
	}
	// A source that always says the same, also zero, gives different indices.
	table = newTable()
	for i := range 1000 {
		index := table.reserve(owners[0], zeros{})
		if table.peer(index) != owners[0] || table.used != i+1 {
			t.Fatalf("index %x", index)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
