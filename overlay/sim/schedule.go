package sim

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/lease"
	"meshd/mesh/trust"
)

// schedule is all that a seed decides: who is there, and what befalls them.
type schedule struct {
	Seed    uint64
	Network mesh.Network
	Pin     int // slot to which the hosts with byPin are pinned
	Hosts   []hostPlan
	Weather weather
	Steps   []step        // in order of time
	End     time.Duration // of all faults
}

// hostPlan is a host that may join. The first one founds the mesh; the first two
// are everybody's seeds.
type hostPlan struct {
	Identity [ed25519.SeedSize]byte
	Admitted admission
	Skew     time.Duration // of its clock
}

// admission says by what a host is a member.
type admission int

// Ways to become a member.
const (
	byCA admission = iota
	byToken
	byAnother // token
	byPin     // a token with a pin
	byNobody  // its token has expired: it has the gossip key, and nobody admits it
)

// step is something that happens.
type step struct {
	At   time.Duration
	Text string
	do   func(*world)
}

func idOf(identity ed25519.PrivateKey) mesh.NodeID {
	return trust.IdentityOf(identity.Public().(ed25519.PublicKey))
}

// small is a network in which subnets are scarce, so that conflicts are many.
var small = mesh.Network{
	Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/20"), IPv4Len: 24,
	IPv6: netip.MustParsePrefix("fd00:86::/48"), IPv6Len: 64,
}

// wish finds the subnet that a node claims if all are free.
func wish(network mesh.Network, id mesh.NodeID) int {
	a := lease.New(lease.Config{Self: id, Network: network, Permit: func([]netip.Prefix) bool { return true }}, mesh.Lease{})
	a.Step(time.Unix(0, 0), lease.World{MayClaim: true, Epoch: 1})
	l, _ := a.Lease()
	slot, err := network.SlotOf(l.Prefixes[0])
	if err != nil {
		panic(err) // it has chosen a subnet of its own network
	}
	return slot
}

// wishing draws identities until one wishes for the slot.
func wishing(r *rand.Rand, network mesh.Network, slot int) (identity [ed25519.SeedSize]byte) {
	for {
		for i := 0; i < len(identity); i += 8 {
			binary.LittleEndian.PutUint64(identity[i:], r.Uint64())
		}
		if wish(network, idOf(ed25519.NewKeyFromSeed(identity[:]))) == slot {
			return identity
		}
	}
}

// drawer makes a schedule.
type drawer struct {
	*schedule
	*rand.Rand
	at   time.Duration
	next int // host to join
}

// draw makes the schedule of a seed.
func draw(seed uint64) *schedule {
	d := &drawer{schedule: &schedule{Seed: seed, Network: small}, Rand: rand.New(rand.NewPCG(seed, 2))}
	d.Pin = d.IntN(small.Slots())
	slot := d.Pin
	for i := range 5 + d.IntN(4) {
		if d.chance(0.4) { // else the same first wish as the host before
			slot = d.IntN(small.Slots())
		}
		by := byCA
		if i > 0 {
			by = []admission{byToken, byAnother}[d.IntN(2)]
		}
		h := hostPlan{Identity: wishing(d.Rand, small, slot), Admitted: by}
		if d.chance(0.3) { // less than what is worth a warning
			h.Skew = d.upTo(4*time.Minute) - 2*time.Minute
		}
		d.Hosts = append(d.Hosts, h)
	}
	if d.chance(0.3) {
		d.Hosts[2+d.IntN(len(d.Hosts)-2)].Admitted = byPin // only one, or they would have to fight
	}
	if d.chance(0.5) {
		d.Hosts = append(d.Hosts, hostPlan{Identity: wishing(d.Rand, small, slot), Admitted: byNobody})
		d.join(len(d.Hosts) - 1)
	}
	d.Weather = weather{Latency: d.upTo(60 * time.Millisecond), Jitter: d.upTo(40 * time.Millisecond)}
	if d.chance(0.5) {
		d.Weather.Loss, d.Weather.Duplicate = d.Float64()/20, d.Float64()/20
	}
	for range 2 + d.IntN(3) {
		d.joinNext()
		d.at += d.upTo(4 * time.Second)
	}
	for range 6 + d.IntN(10) {
		d.at += d.upTo(10 * time.Second)
		d.fault()
	}
	// What has not ended by then ends all at once.
	d.End = d.at + d.upTo(15*time.Second)
	d.Steps = slices.DeleteFunc(d.Steps, func(s step) bool { return s.At > d.End })
	if d.chance(0.3) {
		d.controlPlaneCut()
	}
	slices.SortStableFunc(d.Steps, func(a, b step) int { return int(a.At - b.At) })
	return d.schedule
}

// drawWishers makes a mesh of one node and n more that want the same subnet first,
// of a network of 256. Which one they try next is their own choice.
func drawWishers(seed uint64, n int) *schedule {
	wide := small
	wide.IPv4 = netip.MustParsePrefix("10.86.0.0/16")
	d := &drawer{schedule: &schedule{Seed: seed, Network: wide}, Rand: rand.New(rand.NewPCG(seed, 3))}
	d.Hosts = []hostPlan{{Identity: wishing(d.Rand, wide, 0), Admitted: byCA}}
	slot := 1 + d.IntN(wide.Slots()-1)
	for range n {
		d.Hosts = append(d.Hosts, hostPlan{Identity: wishing(d.Rand, wide, slot), Admitted: byToken})
	}
	d.Weather = weather{Latency: d.upTo(60 * time.Millisecond), Jitter: d.upTo(40 * time.Millisecond)}
	if d.chance(0.5) {
		d.Weather.Loss = d.Float64() / 20
	}
	return d.schedule
}

func (d *drawer) chance(p float64) bool { return d.Float64() < p }

func (d *drawer) upTo(most time.Duration) time.Duration {
	return time.Duration(d.Int64N(int64(most))).Round(time.Millisecond)
}

func (d *drawer) between(least, most time.Duration) time.Duration {
	return least + d.upTo(most-least)
}

// add adds a step, some time from now.
func (d *drawer) add(in time.Duration, do func(*world), format string, args ...any) {
	d.Steps = append(d.Steps, step{d.at + in, fmt.Sprintf(format, args...), do})
}

func (d *drawer) host() int { return d.IntN(len(d.Hosts)) }
