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
	d.Weather = weather{Latency: d.upTo(60 * time.Millisecond), Jitter: d.upTo(40 * time.Millisecond), Loss: d.Float64() / 20}
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

func (d *drawer) joinNext() {
	if d.next < len(d.Hosts) && d.Hosts[d.next].Admitted != byNobody {
		d.join(d.next)
		d.next++
	}
}

func (d *drawer) join(n int) {
	d.add(0, func(w *world) { w.hosts[n].come() }, "n%d joins%s%s", n, clockText(d.Hosts[n].Skew), map[admission]string{byPin: fmt.Sprintf(", pinned to slot %d", d.Pin), byNobody: " with an expired token"}[d.Hosts[n].Admitted])
}

func clockText(skew time.Duration) string {
	if skew == 0 {
		return ""
	}
	return fmt.Sprintf(", its clock %s off", skew)
}

// come makes a host a member, and starts it.
func (h *host) come() {
	if h.member == nil {
		h.join()
		h.wanted, h.startAt = true, time.Time{}
	}
}

// again starts a host that was stopped.
func (h *host) again() { h.wanted = h.member != nil && !h.left }

// fault draws one.
func (d *drawer) fault() {
	faults := []func(){
		d.joinNext, d.joinNext, d.crash, d.crash, d.restart, d.reboot, d.leave, d.partition, d.partition, d.oneWay, d.flap, d.lossy,
		d.slow, d.doubles, d.flush, d.deleteTUN, d.refuse, d.diskFull, d.move, d.move, d.seedsDie, d.twoSides, d.revoke, d.forget,
	}
	faults[d.IntN(len(faults))]()
}

func (d *drawer) crash() {
	n, down := d.host(), d.between(50*time.Millisecond, 20*time.Second)
	d.add(0, func(w *world) { w.hosts[n].off() }, "n%d: kill -9", n)
	d.add(down, func(w *world) { w.hosts[n].again() }, "n%d starts again", n)
}

// off kills a daemon and does not let it start.
func (h *host) off() {
	h.wanted = false
	h.kill()
}

func (d *drawer) restart() {
	n := d.host()
	d.add(0, func(w *world) {
		w.hosts[n].stop()
		w.hosts[n].startAt = time.Now().Add(100 * time.Millisecond)
	}, "n%d: systemctl restart", n)
}

func (d *drawer) reboot() {
	n, down := d.host(), d.between(2*time.Second, 20*time.Second)
	d.add(0, func(w *world) {
		h := w.hosts[n]
		h.off()
		h.hurtRoutes()
		h.kernel.Damage(func(s *tun.HostState) { *s = tun.HostState{} })
	}, "n%d: power fails", n)
	d.add(down, func(w *world) { w.hosts[n].again() }, "n%d boots", n)
}

func (d *drawer) leave() {
	if n := d.host(); n > 1 && d.Hosts[n].Admitted != byNobody { // the seeds stay
		d.add(0, func(w *world) {
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
func cutOff(from, to []int, cut bool) func(*world) {
	return func(w *world) {
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

func both(f, g func(*world)) func(*world) {
	return func(w *world) { f(w); g(w) }
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
func (d *drawer) worse(change func(*weather)) {
	x, usual := d.Weather, d.Weather
	change(&x)
	d.add(0, func(w *world) { w.weather(x) }, "weather: %s", x)
	d.add(d.between(5*time.Second, 40*time.Second), func(w *world) { w.weather(usual) }, "weather: %s", usual)
}

func (d *drawer) lossy() { d.worse(func(x *weather) { x.Loss = 0.05 + 0.45*d.Float64() }) }

func (d *drawer) slow() {
	d.worse(func(x *weather) { x.Latency, x.Jitter = d.upTo(300*time.Millisecond), d.upTo(300*time.Millisecond)+1 })
}

func (d *drawer) doubles() { d.worse(func(x *weather) { x.Duplicate = d.Float64() }) }

func (d *drawer) flush() {
	n := d.host()
	what, damage := "routes", func(s *tun.HostState) { s.Routes = nil }
	if d.chance(0.3) {
		what, damage = "addresses and routes", func(s *tun.HostState) { s.Addresses, s.Routes = nil, nil }
	}
	d.add(0, func(w *world) {
		if h := w.hosts[n]; h.kernel.State().Link != "" {
			h.hurtRoutes()
			h.kernel.Damage(damage)
		}
	}, "n%d: %s are flushed", n, what)
}

func (d *drawer) deleteTUN() {
	n := d.host()
	d.add(0, func(w *world) { w.hosts[n].removeTUN() }, "n%d: the TUN device is deleted", n)
}

func (d *drawer) refuse() {
	n, times := d.host(), 1+d.IntN(6)
	d.add(0, func(w *world) {
		w.hosts[n].excuse()
		w.hosts[n].kernel.Fail(times)
		w.hosts[n].kernel.Damage(func(s *tun.HostState) { s.MTU++ })
	}, "n%d: the MTU is changed, and the kernel refuses the next %d changes", n, times)
}

func (d *drawer) diskFull() {
	n := d.host()
	d.add(0, func(w *world) { w.hosts[n].disk.Fail(true) }, "n%d: the disk is full", n)
	d.add(d.between(2*time.Second, time.Minute), func(w *world) { w.hosts[n].disk.Fail(false) }, "n%d: the disk has room", n)
}

func (d *drawer) move() {
	n := 1 + d.IntN(len(d.Hosts)-1) // one seed keeps its address, as one does by name
	d.add(0, func(w *world) {
		h := w.hosts[n]
		h.moves++
		h.setAddress(address(n, h.moves))
		w.rewire()
	}, "n%d gets another address", n)
}

func (d *drawer) seedsDie() {
	down := d.between(10*time.Second, time.Minute)
	for n := range 2 {
		d.add(0, func(w *world) { w.hosts[n].off() }, "n%d, a seed: kill -9", n)
		d.add(down, func(w *world) { w.hosts[n].again() }, "n%d starts again", n)
	}
}

// submit hands in what the CA has signed about a host, at the first other one that
// can save it.
func (w *world) submit(about *host, sign func(ed25519.PrivateKey) ([]byte, error)) bool {
	raw, err := sign(w.mesh.CA())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range w.members() {
		if h != about && h.life != nil && h.disk.Check() == nil && h.life.submit(raw) == nil {
			return true
		}
	}
	return false
}

// revoke throws a host out, which may have vouched for others. Its daemon runs on.
func (d *drawer) revoke() {
	n := 2 + d.IntN(len(d.Hosts)-2)
	if d.Hosts[n].Admitted == byNobody || d.chance(0.5) {
		return
	}
	d.add(0, func(w *world) {
		h := w.hosts[n]
		r := trust.Revocation{Node: h.id, At: time.Now()}
		if h.member != nil && !h.left && w.submit(h, r.Sign) {
			h.revoked = true
		}
	}, "n%d: meshctl revoke", n)
}

// forget frees what a host has, although it may live. It claims afresh then.
func (d *drawer) forget() {
	n := d.host()
	if d.Hosts[n].Admitted == byNobody || d.Hosts[n].Admitted == byPin {
		return
	}
	d.add(0, func(w *world) {
		h := w.hosts[n]
		if h.member == nil || h.left || h.revoked {
			return
		}
		at := mesh.Version{Epoch: w.truth.forget(h), Seq: trust.WholeEpoch}
		t := trust.Tombstone{Node: h.id, Version: at, Reason: trust.Forgotten, At: time.Now()}
		if at.Epoch == 0 || !w.submit(h, t.Sign) {
			w.truth.recall(h)
		}
	}, "n%d: meshctl forget, with the CA key", n)
}

// twoSides lets two hosts join on the two sides of a partition, each by a seed.
func (d *drawer) twoSides() {
	if d.next < 2 || d.next+1 >= len(d.Hosts) || d.Hosts[d.next+1].Admitted == byNobody {
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
	d.add(0, func(w *world) {
		w.heal()
		if _, err := w.settle(w.bound()); err != nil {
			w.violate("heal", "%v", err)
			return
		}
		w.say("", "nothing of gossip gets through for %s", length)
		w.silence = true
		w.rewire()
		for end := time.Now().Add(length); time.Now().Before(end) && !w.failed(); {
			if lost := w.unreached(w.members()); lost != "" {
				w.violate("I5", "gossip is silent, and %s", lost)
			}
			w.pass(10 * time.Second)
		}
	}, "all faults end, and then gossip is cut")
}
