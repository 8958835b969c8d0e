package sim

import (
	"errors"
	"slices"
	"time"

	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

// asks has the daemon compare tables with somebody every few seconds.
func (h *machine) asks(life int) {
	h.c.after(time.Second+time.Duration(h.c.random.Int64N(int64(3*time.Second))), func() {
		if h.life != life {
			return
		}
		if o := h.somebody(); h.runs() && o != nil {
			h.exchange(o)
		}
		h.asks(life)
	})
}

// somebody is another host, as seeds and cached addresses have it, whether it
// answers or not.
func (h *machine) somebody() *machine {
	var all []*machine
	for _, o := range h.c.hosts {
		if o != h && o.card != nil && !o.out {
			all = append(all, o)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[h.c.random.IntN(len(all))]
}

// elders are up to n of the members that were admitted first, of those that run.
func (h *machine) elders(n int) (all []*machine) {
	if h.view == nil {
		return nil
	}
	for _, id := range h.view.Elders() {
		i := slices.IndexFunc(h.c.hosts, func(o *machine) bool { return o.id == id && o.runs() })
		if i >= 0 && len(all) < n {
			all = append(all, h.c.hosts[i])
		}
	}
	return all
}

// toldLate is how much older what a daemon tells may be than what it knows.
const toldLate = 250 * time.Millisecond

// talks tells whether a stream between two gets through.
func (h *machine) talks(o *machine) bool {
	c := h.c
	return h.runs() && o.runs() && !c.cut[[2]int{h.number, o.number}] && !c.cut[[2]int{o.number, h.number}] && !c.chance(c.loss)
}

// exchange has two tell each other what they lack. It may end halfway; and what the other
// one hears it tells only a moment later.
func (h *machine) exchange(o *machine) {
	if !h.talks(o) {
		return
	}
	mine, theirs := h.m.Table(), o.m.Table()
	h.put(lacking(theirs, mine))
	h.m.Synced()
	h.step()
	if o.runs() && !h.c.chance(h.c.loss) {
		o.soon(time.Duration(h.c.random.Int64N(int64(toldLate))), func() {
			o.put(lacking(mine, theirs))
			o.m.Synced()
			o.step()
		})
	}
}

// lacking gives what is in one table and not in the other.
func lacking(from, have [][]byte) (out [][]byte) {
	known := make(map[string]bool, len(have))
	for _, raw := range have {
		known[string(raw)] = true
	}
	for _, raw := range from {
		if !known[string(raw)] {
			out = append(out, raw)
		}
	}
	return out
}

func (h *machine) put(objects [][]byte) {
	for _, raw := range objects {
		h.receive(raw)
	}
}

func (h *machine) receive(raw []byte) {
	if err := h.m.Receive(raw); err != nil && !errors.Is(err, registry.ErrStale) {
		h.c.say("      %s refuses: %v", h, err)
	}
}

// spread sends an object to all others, as far as it gets.
func (h *machine) spread(raw []byte) {
	c := h.c
	if kind, err := trust.KindOf(raw); err == nil && kind == trust.KindTombstone {
		if t, err := trust.ParseTombstone(raw); err == nil {
			c.buried[t.Node] = max(c.buried[t.Node], t.Version.Epoch)
		}
	}
	for _, o := range c.hosts {
		if o == h || c.cut[[2]int{h.number, o.number}] {
			continue
		}
		times := 1
		if c.chance(c.double) {
			times = 2
		}
		for range times {
			if c.chance(c.loss) {
				continue
			}
			c.after(time.Millisecond+time.Duration(c.random.Int64N(int64(80*time.Millisecond))), func() {
				if o.runs() {
					o.receive(raw)
					o.takes()
				}
			})
		}
	}
}

// takes has the daemon do what is due with what has come.
func (h *machine) takes() {
	c := h.c
	switch {
	case c.round == 0:
		h.step()
	case !c.heard[h]:
		c.heard[h] = true
		c.after(c.round, func() {
			if c.heard[h] = false; h.runs() {
				h.step()
			}
		})
	}
}

// fetch asks somebody for a certificate, unless it is being asked for.
func (h *machine) fetch(hash trust.Hash) {
	asked := h.c.asked[h]
	if asked[hash] == h.life {
		return
	}
	asked[hash] = h.life
	h.soon(100*time.Millisecond, func() {
		delete(asked, hash)
		if o := h.somebody(); o != nil && h.talks(o) {
			h.put(o.m.Lookup(hash))
			h.step()
		}
	})
}
