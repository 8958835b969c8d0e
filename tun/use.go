package tun

import "net/netip"

// Use is a range of addresses that means something to this host already,
// without us.
type Use struct {
	Prefix netip.Prefix
	What   string // for people, with all that tells it from others: "the default gateway 10.0.0.1"
	// Discards is true for a route that lets nothing through. Who has a longer
	// prefix takes nothing away from it.
	Discards bool
}
