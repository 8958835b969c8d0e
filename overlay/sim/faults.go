package sim

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
	"meshd/tun"
)

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
		d.slow, d.doubles, d.flush, d.deleteTUN, d.refuse, d.diskFull, d.move, d.move, d.seedsDie, d.twoSides, d.revoke, d.forget, d.setClock, d.setClock,
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
