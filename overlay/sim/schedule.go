package sim

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"meshd/mesh"
	"meshd/mesh/lease"
	"meshd/mesh/trust"
	"meshd/tun"
)

// Schedule is all that a seed decides: who is there, and what befalls them.
type Schedule struct {
	Seed    uint64
	Network mesh.Network
	Pin     int // slot to which the hosts with [ByPin] are pinned
	Hosts   []HostPlan
	Weather Weather
	Steps   []Step        // in order of time
	End     time.Duration // of all faults
}

// HostPlan is a host that may join. The first one founds the mesh; the first two
// are everybody's seeds.
type HostPlan struct {
	Identity [ed25519.SeedSize]byte
	Admitted Admitted
	Skew     time.Duration // of its clock
}

// Admitted says by what a host is a member.
type Admitted int

// Ways to become a member.
const (
	ByCA Admitted = iota
	ByToken
	ByAnother // token
	ByPin     // a token with a pin
	ByNobody  // its token has expired: it has the gossip key, and nobody admits it
)

// Step is something that happens.
type Step struct {
	At   time.Duration
	Text string
	do   func(*World)
}

func idOf(identity ed25519.PrivateKey) mesh.NodeID {
	return trust.IdentityOf(identity.Public().(ed25519.PublicKey))
}

// Small is a network in which subnets are scarce, so that conflicts are many.
var Small = mesh.Network{
	Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/20"), IPv4Len: 24,
	IPv6: netip.MustParsePrefix("fd00:86::/48"), IPv6Len: 64,
}

// Wish finds the subnet that a node claims if all are free.
func Wish(network mesh.Network, id mesh.NodeID) int {
	a := lease.New(lease.Config{Self: id, Network: network, Permit: func([]netip.Prefix) bool { return true }}, mesh.Lease{})
	a.Step(time.Unix(0, 0), lease.World{MayClaim: true, Epoch: 1})
	l, _ := a.Lease()
	slot, err := network.SlotOf(l.Prefixes[0])
	if err != nil {
		panic(err) // it has chosen a subnet of its own network
	}
	return slot
}

// Wishing draws identities until one wishes for the slot.
func Wishing(r *rand.Rand, network mesh.Network, slot int) (identity [ed25519.SeedSize]byte) {
	for {
		for i := 0; i < len(identity); i += 8 {
			binary.LittleEndian.PutUint64(identity[i:], r.Uint64())
		}
		if Wish(network, idOf(ed25519.NewKeyFromSeed(identity[:]))) == slot {
			return identity
		}
	}
}

// drawer makes a schedule.
type drawer struct {
	*Schedule
	*rand.Rand
	at   time.Duration
	next int // host to join
}

// Draw makes the schedule of a seed.
func Draw(seed uint64) *Schedule {
	d := &drawer{Schedule: &Schedule{Seed: seed, Network: Small}, Rand: rand.New(rand.NewPCG(seed, 2))}
	d.Pin = d.IntN(Small.Slots())
	slot := d.Pin
	for i := range 5 + d.IntN(4) {
		if d.chance(0.4) { // else the same first wish as the host before
			slot = d.IntN(Small.Slots())
		}
		by := ByCA
		if i > 0 {
			by = []Admitted{ByToken, ByAnother}[d.IntN(2)]
		}
		h := HostPlan{Identity: Wishing(d.Rand, Small, slot), Admitted: by}
		if d.chance(0.3) { // less than what is worth a warning
			h.Skew = d.upTo(4*time.Minute) - 2*time.Minute
		}
		d.Hosts = append(d.Hosts, h)
	}
	if d.chance(0.3) {
		d.Hosts[2+d.IntN(len(d.Hosts)-2)].Admitted = ByPin // only one, or they would have to fight
	}
	if d.chance(0.5) {
		d.Hosts = append(d.Hosts, HostPlan{Identity: Wishing(d.Rand, Small, slot), Admitted: ByNobody})
		d.join(len(d.Hosts) - 1)
	}
	d.Weather = Weather{Latency: d.upTo(60 * time.Millisecond), Jitter: d.upTo(40 * time.Millisecond)}
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
	d.Steps = slices.DeleteFunc(d.Steps, func(s Step) bool { return s.At > d.End })
	if d.chance(0.3) {
		d.controlPlaneCut()
	}
	slices.SortStableFunc(d.Steps, func(a, b Step) int { return int(a.At - b.At) })
	return d.Schedule
}

// DrawWishers makes a mesh of one node and n more that want the same subnet first,
// of a network of 256. Which one they try next is their own choice.
func DrawWishers(seed uint64, n int) *Schedule {
	wide := Small
	wide.IPv4 = netip.MustParsePrefix("10.86.0.0/16")
	d := &drawer{Schedule: &Schedule{Seed: seed, Network: wide}, Rand: rand.New(rand.NewPCG(seed, 3))}
	d.Hosts = []HostPlan{{Identity: Wishing(d.Rand, wide, 0), Admitted: ByCA}}
	slot := 1 + d.IntN(wide.Slots()-1)
	for range n {
		d.Hosts = append(d.Hosts, HostPlan{Identity: Wishing(d.Rand, wide, slot), Admitted: ByToken})
	}
	d.Weather = Weather{Latency: d.upTo(60 * time.Millisecond), Jitter: d.upTo(40 * time.Millisecond), Loss: d.Float64() / 20}
	return d.Schedule
}

func (d *drawer) chance(p float64) bool { return d.Float64() < p }

func (d *drawer) upTo(most time.Duration) time.Duration {
	return time.Duration(d.Int64N(int64(most))).Round(time.Millisecond)
}

func (d *drawer) between(least, most time.Duration) time.Duration {
	return least + d.upTo(most-least)
}

// add adds a step, some time from now.
func (d *drawer) add(in time.Duration, do func(*World), format string, args ...any) {
	d.Steps = append(d.Steps, Step{d.at + in, fmt.Sprintf(format, args...), do})
}

func (d *drawer) host() int { return d.IntN(len(d.Hosts)) }

func (d *drawer) joinNext() {
	if d.next < len(d.Hosts) && d.Hosts[d.next].Admitted != ByNobody {
		d.join(d.next)
		d.next++
	}
}

func (d *drawer) join(n int) {
	d.add(0, func(w *World) { w.hosts[n].come() }, "n%d joins%s%s", n, clockText(d.Hosts[n].Skew), map[Admitted]string{ByPin: fmt.Sprintf(", pinned to slot %d", d.Pin), ByNobody: " with an expired token"}[d.Hosts[n].Admitted])
}

func clockText(skew time.Duration) string {
	if skew == 0 {
		return ""
	}
	return fmt.Sprintf(", its clock %s off", skew)
}

// come makes a host a member, and starts it.
func (h *Host) come() {
	if h.member == nil {
		h.join()
		h.wanted, h.startAt = true, time.Time{}
	}
}

// again starts a host that was stopped.
func (h *Host) again() { h.wanted = h.member != nil && !h.left }

// fault draws one.
func (d *drawer) fault() {
	faults := []func(){
		d.joinNext, d.joinNext, d.crash, d.crash, d.restart, d.reboot, d.leave, d.partition, d.partition, d.oneWay, d.flap, d.lossy,
		d.slow, d.doubles, d.flush, d.deleteTUN, d.refuse, d.diskFull, d.move, d.move, d.seedsDie, d.twoSides,
	}
	faults[d.IntN(len(faults))]()
}

func (d *drawer) crash() {
	n, down := d.host(), d.between(50*time.Millisecond, 20*time.Second)
	d.add(0, func(w *World) { w.hosts[n].off() }, "n%d: kill -9", n)
	d.add(down, func(w *World) { w.hosts[n].again() }, "n%d starts again", n)
}

// off kills a daemon and does not let it start.
func (h *Host) off() {
	h.wanted = false
	h.kill()
}

func (d *drawer) restart() {
	n := d.host()
	d.add(0, func(w *World) {
		w.hosts[n].stop()
		w.hosts[n].startAt = time.Now().Add(100 * time.Millisecond)
	}, "n%d: systemctl restart", n)
}

func (d *drawer) reboot() {
	n, down := d.host(), d.between(2*time.Second, 20*time.Second)
	d.add(0, func(w *World) {
		h := w.hosts[n]
		h.off()
		h.hurtRoutes()
		h.kernel.Damage(func(s *tun.HostState) { *s = tun.HostState{} })
	}, "n%d: power fails", n)
	d.add(down, func(w *World) { w.hosts[n].again() }, "n%d boots", n)
}

func (d *drawer) leave() {
	if n := d.host(); n > 1 && d.Hosts[n].Admitted != ByNobody { // the seeds stay
		d.add(0, func(w *World) {
			w.hosts[n].disk.Fail(false)
			w.hosts[n].kernel.Fail(0)
			w.hosts[n].leave()
		}, "n%d: meshctl leave", n)
	}
}

// split draws two groups of hosts, none empty.
func (d *drawer) split() (a, b []int) {
	all := d.Perm(len(d.Hosts))
	n := 1 + d.IntN(len(all)-1)
	a, b = all[:n], all[n:]
	slices.Sort(a)
	slices.Sort(b)
	return a, b
}

func names(hosts []int) string {
	var out []string
	for _, n := range hosts {
		out = append(out, fmt.Sprintf("n%d", n))
	}
	return strings.Join(out, " ")
}

// cutOff cuts, or joins again, what goes from one group to another.
func cutOff(from, to []int, cut bool) func(*World) {
	return func(w *World) {
		for _, a := range from {
			for _, b := range to {
				if cut {
					w.cut[[2]int{a, b}] = true
				} else {
					delete(w.cut, [2]int{a, b})
				}
			}
		}
		w.rewire()
	}
}

func both(f, g func(*World)) func(*World) {
	return func(w *World) { f(w); g(w) }
}

func (d *drawer) partition() { d.part(d.between(time.Second, time.Minute)) }

func (d *drawer) part(length time.Duration) {
	a, b := d.split()
	d.add(0, both(cutOff(a, b, true), cutOff(b, a, true)), "partition: %s | %s", names(a), names(b))
	d.add(length, both(cutOff(a, b, false), cutOff(b, a, false)), "partition heals: %s | %s", names(a), names(b))
}

func (d *drawer) oneWay() {
	a, b := d.split()
	d.add(0, cutOff(a, b, true), "one-way partition: nothing from %s to %s", names(a), names(b))
	d.add(d.between(time.Second, time.Minute), cutOff(a, b, false), "one-way partition heals: %s to %s", names(a), names(b))
}

func (d *drawer) flap() {
	for range 3 + d.IntN(4) {
		d.part(d.between(100*time.Millisecond, 3*time.Second))
		d.at += d.upTo(4 * time.Second)
	}
}

// worse changes the weather for a while.
func (d *drawer) worse(change func(*Weather)) {
	x, usual := d.Weather, d.Weather
	change(&x)
	d.add(0, func(w *World) { w.weather(x) }, "weather: %s", x)
	d.add(d.between(5*time.Second, 40*time.Second), func(w *World) { w.weather(usual) }, "weather: %s", usual)
}

func (d *drawer) lossy() { d.worse(func(x *Weather) { x.Loss = 0.05 + 0.45*d.Float64() }) }

func (d *drawer) slow() {
	d.worse(func(x *Weather) { x.Latency, x.Jitter = d.upTo(300*time.Millisecond), d.upTo(300*time.Millisecond)+1 })
}

func (d *drawer) doubles() { d.worse(func(x *Weather) { x.Duplicate = d.Float64() }) }

func (d *drawer) flush() {
	n := d.host()
	what, damage := "routes", func(s *tun.HostState) { s.Routes = nil }
	if d.chance(0.3) {
		what, damage = "addresses and routes", func(s *tun.HostState) { s.Addresses, s.Routes = nil, nil }
	}
	d.add(0, func(w *World) {
		if h := w.hosts[n]; h.kernel.State().Link != "" {
			h.hurtRoutes()
			h.kernel.Damage(damage)
		}
	}, "n%d: %s are flushed", n, what)
}

func (d *drawer) deleteTUN() {
	n := d.host()
	d.add(0, func(w *World) { w.hosts[n].removeTUN() }, "n%d: the TUN device is deleted", n)
}

func (d *drawer) refuse() {
	n, times := d.host(), 1+d.IntN(6)
	d.add(0, func(w *World) {
		w.hosts[n].excuse()
		w.hosts[n].kernel.Fail(times)
		w.hosts[n].kernel.Damage(func(s *tun.HostState) { s.MTU++ })
	}, "n%d: the MTU is changed, and the kernel refuses the next %d changes", n, times)
}

func (d *drawer) diskFull() {
	n := d.host()
	d.add(0, func(w *World) { w.hosts[n].disk.Fail(true) }, "n%d: the disk is full", n)
	d.add(d.between(2*time.Second, time.Minute), func(w *World) { w.hosts[n].disk.Fail(false) }, "n%d: the disk has room", n)
}

func (d *drawer) move() {
	n := 1 + d.IntN(len(d.Hosts)-1) // one seed keeps its address, as one does by name
	d.add(0, func(w *World) {
		h := w.hosts[n]
		h.moves++
		h.setAddress(address(n, h.moves))
		w.rewire()
	}, "n%d gets another address", n)
}

func (d *drawer) seedsDie() {
	down := d.between(10*time.Second, time.Minute)
	for n := range 2 {
		d.add(0, func(w *World) { w.hosts[n].off() }, "n%d, a seed: kill -9", n)
		d.add(down, func(w *World) { w.hosts[n].again() }, "n%d starts again", n)
	}
}

// twoSides lets two hosts join on the two sides of a partition, each by a seed.
func (d *drawer) twoSides() {
	if d.next < 2 || d.next+1 >= len(d.Hosts) || d.Hosts[d.next+1].Admitted == ByNobody {
		return
	}
	a, b := []int{0, d.next}, []int{1, d.next + 1}
	for n := range d.Hosts {
		if n == 0 || n == 1 || n == d.next || n == d.next+1 {
			continue
		}
		if d.chance(0.5) {
			a = append(a, n)
		} else {
			b = append(b, n)
		}
	}
	length := d.between(10*time.Second, 40*time.Second)
	d.add(0, both(cutOff(a, b, true), cutOff(b, a, true)), "partition: %s | %s", names(a), names(b))
	d.joinNext()
	d.joinNext()
	d.add(length, both(cutOff(a, b, false), cutOff(b, a, false)), "partition heals: %s | %s", names(a), names(b))
	d.at += length
}

// controlPlaneCut lets all gossip fail while all else is well, for minutes.
func (d *drawer) controlPlaneCut() {
	d.at = d.End
	length := d.between(time.Minute, 3*time.Minute)
	d.add(0, func(w *World) {
		w.heal()
		if _, err := w.Settle(w.Bound()); err != nil {
			w.violate("heal", "%v", err)
			return
		}
		w.say("", "nothing of gossip gets through for %s", length)
		w.silence = true
		w.rewire()
		for end := time.Now().Add(length); time.Now().Before(end) && !w.Failed(); {
			if lost := w.unreached(w.members()); lost != "" {
				w.violate("I5", "gossip is silent, and %s", lost)
			}
			w.Pass(10 * time.Second)
		}
	}, "all faults end, and then gossip is cut")
}
