package exchange

import "time"

// Allowance is a number of times that grows back with the time. It begins full.
// Its owner guards it.
type Allowance struct {
	// fixed at construction
	Most  int
	Every time.Duration // one more; above 0

	used int
	at   time.Time // up to which it has grown
}

// Take tells whether there is one left, and uses it up.
func (a *Allowance) Take(now time.Time) bool {
	if back := int(now.Sub(a.at) / a.Every); back >= a.used {
		a.used, a.at = 0, now
	} else if back > 0 {
		a.used, a.at = a.used-back, a.at.Add(time.Duration(back)*a.Every)
	}
	if a.used >= a.Most {
		return false
	}
	a.used++
	return true
}
