package sim

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// crowdSchedule is all that a seed decides for a crowd.
type crowdSchedule struct {
	Seed    uint64
	Network mesh.Network
	Skews   []time.Duration // of the hosts' clocks
	Short   []bool          // whose certificates are for half a day; nil: nobody's
	Steps   []crowdStep
	End     time.Duration
}

type crowdStep struct {
	At   time.Duration
	Text string
	do   func(*crowd)
}

// tiny is a network of four subnets.
var tiny = mesh.Network{
	Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/22"), IPv4Len: 24,
	IPv6: netip.MustParsePrefix("fd00:86::/48"), IPv6Len: 64,
}

// crowdDrawer makes a schedule.
type crowdDrawer struct {
	*crowdSchedule
	*rand.Rand
	at   time.Duration
	next int
}

// drawCrowd makes the schedule of a seed.
func drawCrowd(seed uint64) *crowdSchedule {
	d := &crowdDrawer{crowdSchedule: &crowdSchedule{Seed: seed, Network: small}, Rand: rand.New(rand.NewPCG(seed, 10))}
	if d.chance(0.3) {
		d.Network = tiny // not enough for all
	}
	for range 4 + d.IntN(3) {
		skew := time.Duration(0)
		if d.chance(0.3) {
			skew = d.between(-2*time.Minute, 2*time.Minute)
		}
		d.Skews = append(d.Skews, skew)
	}
	if d.chance(0.5) {
		for range d.Skews {
			d.Short = append(d.Short, d.chance(0.5))
		}
	}
	for range 2 + d.IntN(2) {
		d.join()
		d.at += d.between(0, 4*time.Second)
	}
	d.at += 5 * time.Second
	for range 4 + d.IntN(8) {
		d.at += d.between(0, 15*time.Second)
		faults := []func(){
			d.join, d.crash, d.crash, d.crashInSave, d.restart, d.partition, d.partition, d.oneWay, d.flap, d.lossy, d.doubles,
			d.forever, d.suspend, d.suspend, d.off, d.backup, d.copied, d.leave, d.forget, d.revoke, d.renumber, d.setClock, d.setClock, d.setClock,
		}
		faults[d.IntN(len(faults))]()
	}
	d.End = d.at + d.between(0, 20*time.Second)
	d.Steps = slices.DeleteFunc(d.Steps, func(s crowdStep) bool { return s.At > d.End })
	slices.SortStableFunc(d.Steps, func(a, b crowdStep) int { return int(a.At - b.At) })
	return d.crowdSchedule
}

// play does what the schedule says, when it says so.
func (c *crowd) play(s *crowdSchedule) {
	for _, step := range s.Steps {
		if wait := step.At - c.now.Sub(c.begin); wait > 0 {
			c.pass(wait)
		}
		if len(c.wrong) > 0 {
			return
		}
		c.say("%s", step.Text)
		step.do(c)
	}
	c.pass(s.End - c.now.Sub(c.begin))
}

func (d *crowdDrawer) chance(p float64) bool { return d.Float64() < p }

func (d *crowdDrawer) between(least, most time.Duration) time.Duration {
	return least + time.Duration(d.Int64N(int64(most-least))).Round(time.Millisecond)
}

func (d *crowdDrawer) add(in time.Duration, do func(*crowd), format string, args ...any) {
	d.Steps = append(d.Steps, crowdStep{d.at + in, fmt.Sprintf(format, args...), do})
}

func (d *crowdDrawer) host() int { return d.IntN(len(d.Skews)) }

// length is how long a fault lasts: shorter than a lease mostly, now and then
// longer.
func (d *crowdDrawer) length() time.Duration {
	if d.chance(0.3) {
		return d.between(crowdTTL, 3*crowdTTL)
	}
	return d.between(time.Second, crowdTTL/2)
}

func (d *crowdDrawer) join() {
	if n := d.next; n < len(d.Skews) {
		d.next++
		life := ""
		if d.Short != nil && d.Short[n] {
			life = ", for half a day"
		}
		d.add(0, func(c *crowd) { c.hosts[n].join() }, "n%d joins%s%s", n, clockText(d.Skews[n]), life)
	}
}

func (d *crowdDrawer) crash() {
	n := d.host()
	d.add(0, func(c *crowd) { c.hosts[n].wanted = false; c.hosts[n].kill() }, "n%d: kill -9", n)
	d.add(d.between(0, 20*time.Second), func(c *crowd) { c.hosts[n].again() }, "n%d starts again", n)
}

// crashInSave is a crash at the worst moment.
func (d *crowdDrawer) crashInSave() {
	n, when, text := d.host(), beforeSave, "before"
	if d.chance(0.5) {
		when, text = afterSave, "after"
	}
	d.add(0, func(c *crowd) { c.hosts[n].dies = when }, "n%d: kill -9 right %s it saves next", n, text)
	d.add(d.between(time.Second, 30*time.Second), func(c *crowd) {
		c.hosts[n].dies = never
		c.hosts[n].again()
	}, "n%d starts again, if it died", n)
}

func (h *machine) again() {
	h.wanted = h.card != nil
	h.boot()
}

func (d *crowdDrawer) restart() {
	n := d.host()
	d.add(0, func(c *crowd) { c.hosts[n].stop(); c.hosts[n].boot() }, "n%d: systemctl restart", n)
}

// off is a host that is off for longer than a lease lasts, perhaps.
func (d *crowdDrawer) off() {
	n, length := d.host(), d.length()
	d.add(0, func(c *crowd) { c.hosts[n].wanted = false; c.hosts[n].stop() }, "n%d is off for %s", n, length)
	d.add(length, func(c *crowd) { c.hosts[n].again() }, "n%d is on again", n)
	d.wait(length)
}

// wait lets some of a long fault pass before the next.
func (d *crowdDrawer) wait(length time.Duration) {
	if d.chance(0.5) {
		d.at += length
	}
}

func (d *crowdDrawer) suspend() {
	n, length := d.host(), d.length()
	d.add(0, func(c *crowd) { c.hosts[n].sleep() }, "n%d is suspended for %s", n, length)
	d.add(length, func(c *crowd) { c.hosts[n].wake() }, "n%d wakes up", n)
	d.wait(length)
}

func (d *crowdDrawer) split() (a, b []int) {
	all := d.Perm(len(d.Skews))
	n := 1 + d.IntN(len(all)-1)
	a, b = all[:n], all[n:]
	slices.Sort(a)
	slices.Sort(b)
	return a, b
}

func (c *crowd) part(from, to []int, cut bool) {
	for _, a := range from {
		for _, b := range to {
			if cut {
				c.cut[[2]int{a, b}] = true
			} else {
				delete(c.cut, [2]int{a, b})
			}
		}
	}
}

func (d *crowdDrawer) apart(length time.Duration, oneWay bool) {
	a, b := d.split()
	what := "partition"
	if oneWay {
		what = "one-way partition"
	}
	d.add(0, func(c *crowd) {
		c.part(a, b, true)
		if !oneWay {
			c.part(b, a, true)
		}
	}, "%s for %s: %s | %s", what, length, names(a), names(b))
	d.add(length, func(c *crowd) { c.part(a, b, false); c.part(b, a, false) }, "it heals: %s | %s", names(a), names(b))
}

func (d *crowdDrawer) partition() { d.apart(d.between(time.Second, crowdTTL/2), false) }

func (d *crowdDrawer) oneWay() { d.apart(d.length(), true) }

// forever is a partition that is longer than a lease.
func (d *crowdDrawer) forever() {
	length := d.between(crowdTTL, 3*crowdTTL)
	d.apart(length, false)
	d.wait(length)
}

func (d *crowdDrawer) flap() {
	for range 3 + d.IntN(4) {
		d.apart(d.between(100*time.Millisecond, 3*time.Second), false)
		d.at += d.between(0, 4*time.Second)
	}
}

func (d *crowdDrawer) lossy() {
	share := 0.05 + 0.45*d.Float64()
	d.add(0, func(c *crowd) { c.loss = share }, "%.0f %% is lost", 100*share)
	d.add(d.length(), func(c *crowd) { c.loss = 0 }, "nothing is lost")
}

func (d *crowdDrawer) doubles() {
	d.add(0, func(c *crowd) { c.double = 0.7 }, "most comes twice")
	d.add(d.length(), func(c *crowd) { c.double = 0 }, "all comes once")
}

// backup brings a disk back as it was some time ago.
func (d *crowdDrawer) backup() {
	n, age := d.host(), d.length()
	d.add(0, func(c *crowd) { c.hosts[n].backup = c.hosts[n].disk.clone() }, "n%d: a backup is made", n)
	d.add(age, func(c *crowd) { c.restore(n) }, "n%d: the backup of %s ago is restored", n, age)
	d.wait(age)
}

func (c *crowd) restore(n int) {
	h := c.hosts[n]
	if h.card == nil || h.out || h.backup.state.Epoch == 0 {
		return
	}
	h.kill()
	h.disk, h.excuse = h.backup.clone(), "its backup was restored"
	h.void = 0 // the disk knows nothing of that; by its clock the backup may be of tomorrow
	h.again()
	c.revokeAgain()
}

// copied starts another host on a copy of a disk, while the first one runs.
func (d *crowdDrawer) copied() {
	n := d.host()
	d.add(0, func(c *crowd) { c.clone(n) }, "n%d is cloned", n)
}

func (c *crowd) clone(n int) {
	h := c.hosts[n]
	if !h.runs() || h.twin != nil || h.out || c.revoked[h.id] || h.disk.state.Epoch == 0 {
		return
	}
	h.twin = c.add(h.name+"'", h.keys, 0)
	h.twin.clock = h.clock
	h.twin.card, h.twin.cert, h.twin.disk, h.twin.twin = h.card, h.cert, h.disk.clone(), h
	h.excuse, h.twin.excuse = "it was cloned", "it is a clone"
	h.twin.again()
}

func (d *crowdDrawer) leave() {
	n := 1 + d.IntN(len(d.Skews)-1)
	d.add(0, func(c *crowd) {
		h := c.hosts[n]
		if !h.runs() || h.twin != nil {
			return
		}
		h.m.Leave(h.now())
		h.step()
		h.out = true
		h.kill()
		c.revokeAgain()
	}, "n%d: meshctl leave", n)
}

// operator is a running member on which the CA's objects are handed in.
func (c *crowd) operator() *machine {
	for _, h := range c.hosts {
		if h.runs() && !h.out && !c.revoked[h.id] {
			return h
		}
	}
	return nil
}

func (c *crowd) submit(sign func(ed25519.PrivateKey) ([]byte, error)) bool {
	h := c.operator()
	if h == nil {
		return false
	}
	raw, err := sign(c.mesh.CA())
	if err == nil {
		err = h.m.Submit(raw)
	}
	if err != nil {
		c.violate("I6", "%s refuses what the CA has signed: %v", h, err)
		return false
	}
	h.step()
	return h.runs() || contains(h.disk.table, raw) // else it died before it said that all went well
}

func contains(table [][]byte, raw []byte) bool {
	return slices.ContainsFunc(table, func(o []byte) bool { return bytes.Equal(o, raw) })
}

// forget frees what a node has, by the CA's word. If it lives, it claims afresh.
func (d *crowdDrawer) forget() {
	n := d.host()
	d.add(0, func(c *crowd) {
		h := c.hosts[n]
		if h.card == nil || h.out {
			return
		}
		t := trust.Tombstone{Node: h.id, Version: mesh.Version{Epoch: h.disk.state.Epoch, Seq: trust.WholeEpoch}, Reason: trust.Forgotten, At: c.now}
		if t.Version.Epoch == 0 {
			return
		}
		before := h.excuse
		h.excuse = "it was forgotten" // which the host that hands it in heeds at once
		if !c.submit(t.Sign) {
			h.excuse = before
		} else if h.twin != nil {
			h.twin.excuse = h.excuse
		}
	}, "n%d: meshctl forget, with the CA key", n)
}

// revoke throws a node out, perhaps one that has admitted others.
func (d *crowdDrawer) revoke() {
	if !d.chance(0.5) {
		return
	}
	n := 1 + d.IntN(len(d.Skews)-1)
	d.add(0, func(c *crowd) { c.revoke(n) }, "n%d: meshctl revoke", n)
}

func (c *crowd) revoke(n int) {
	h := c.hosts[n]
	if h.card == nil || h.out || c.operator() == nil || c.operator().id == h.id {
		return
	}
	before := c.purge
	c.purge = true
	r := trust.Revocation{Node: h.id, At: c.now}
	if !c.submit(r.Sign) {
		c.purge = before
		return
	}
	c.revoked[h.id] = true
	c.revocations = append(c.revocations, r)
}

// revokeAgain is what an operator does who sees that nobody knows of a revocation any
// more: only a disk had it that is gone, since nobody else was within reach.
func (c *crowd) revokeAgain() {
	for _, r := range c.revocations {
		raw, err := r.Sign(c.mesh.CA())
		known := func(h *machine) bool {
			return !h.out && (contains(h.disk.table, raw) || h.m != nil && contains(h.m.Table(), raw))
		}
		if err != nil || slices.ContainsFunc(c.hosts, known) {
			continue
		}
		if c.say("      nobody knows any more that %s is revoked", r.Node.Short()); !c.submit(r.Sign) {
			delete(c.revoked, r.Node)
		}
	}
}

func (d *crowdDrawer) renumber() {
	n := d.host()
	d.add(0, func(c *crowd) { c.hosts[n].renumber() }, "n%d: meshctl lease renumber", n)
}
