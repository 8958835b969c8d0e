package gossip

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	// maxPeers bounds the addresses that are remembered: above the size of any
	// mesh that this is made for, and 10 KB of state.
	maxPeers = 512
	// atOnce is how many addresses are tried in one round while alone. Each
	// takes up to dialTimeout, all at the same time.
	atOnce = 8
	// eager is how long a node that is alone tries often, so that hosts which
	// boot together find each other within a second or two.
	eager = 30 * time.Second
)

// book is what is known of where members' gossip can be reached. It decides whom
// to try and when; it does not try.
type book struct {
	known   []netip.AddrPort // most recently seen first
	changed bool             // since the owner saved it

	alone time.Time // since when nobody else is live
	live  int       // how many addresses are live

	// Where a table was exchanged, and when. A member has more addresses than
	// the one that it tells: a seed's IPv6 address, or a name for several hosts.
	reached map[netip.AddrPort]time.Time
}

// reachedFor is how long an address that was reached is not tried again while
// nobody goes away. Else every member would exchange its table with the seed
// every few seconds, through another of its addresses.
const reachedFor = 10 * time.Minute

// reach notes where a table was exchanged.
func (b *book) reach(addresses []netip.AddrPort, now time.Time) {
	for _, a := range addresses {
		b.reached[a] = now
	}
}

// skip lists the addresses that were reached not long ago.
func (b *book) skip(now time.Time) []netip.AddrPort {
	maps.DeleteFunc(b.reached, func(_ netip.AddrPort, at time.Time) bool { return now.Sub(at) >= reachedFor })
	return slices.Collect(maps.Keys(b.reached))
}

func newBook(known []netip.AddrPort, now time.Time) *book {
	b := &book{alone: now, reached: map[netip.AddrPort]time.Time{}}
	for _, a := range known {
		if usable(a) && !slices.Contains(b.known, a) && len(b.known) < maxPeers {
			b.known = append(b.known, a)
		}
	}
	return b
}

// usable tells whether an address is worth a try.
func usable(a netip.AddrPort) bool {
	return a.IsValid() && a.Port() != 0 && !a.Addr().IsUnspecified() && !a.Addr().IsMulticast()
}

// plain gives the one form in which addresses are compared.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// see notes which addresses are live now.
func (b *book) see(live []netip.AddrPort, now time.Time) {
	if len(live) < b.live {
		clear(b.reached) // whoever has gone may be back at any of them
	}
	b.live = len(live)
	if len(live) > 0 {
		b.alone = time.Time{}
	} else if b.alone.IsZero() {
		b.alone = now
	}
	for _, a := range live {
		if !usable(a) || slices.Contains(b.known, a) {
			continue
		}
		b.known = slices.Insert(b.known, 0, a)
		b.known = b.known[:min(len(b.known), maxPeers)]
		b.changed = true
	}
}

// pause is how long to wait before the next try.
func (b *book) pause(now time.Time) time.Duration {
	switch {
	case b.alone.IsZero():
		return jitter(4*time.Second, 6*time.Second) // heals a partition, finds a seed that came back
	case now.Sub(b.alone) < eager:
		return jitter(500*time.Millisecond, time.Second)
	}
	return jitter(2*time.Second, 5*time.Second)
}

// targets picks whom to try: while alone all seeds and some of the known
// addresses; else one address that is not live, a seed every other time. Our own
// addresses are never tried.
func targets(alone bool, seeds, known, live, own []netip.AddrPort) []netip.AddrPort {
	var all []netip.AddrPort
	worth := func(from []netip.AddrPort) []netip.AddrPort {
		begin := len(all)
		for _, a := range from {
			if usable(a) && !slices.Contains(live, a) && !slices.Contains(own, a) && !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
		out := slices.Clone(all[begin:])
		rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
	first, then := worth(seeds), worth(known)
	if alone {
		// Half of the places at least are for known addresses, should all of a
		// long list of seeds be dead.
		first = first[:min(len(first), max(atOnce/2, atOnce-len(then)))]
		return append(first, then[:min(len(then), atOnce-len(first))]...)
	}
	if len(first) == 0 || len(then) > 0 && rand.IntN(2) == 0 {
		first = then
	}
	return first[:min(len(first), 1)]
}

// jitter draws a duration, so that nodes which started together drift apart.
func jitter(least, most time.Duration) time.Duration {
	return least + rand.N(most-least)
}
