package member

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"meshd/mesh"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

// RotateGrace is how long gossip keys are kept after a rotation that is not urgent:
// tokens with them last a day by default.
const RotateGrace = 24 * time.Hour

const (
	// freshFor is how many renewals a member may be late with before its word on keys
	// counts no more: one may be lost.
	freshFor = 2
	// handOverAfter is how long newcomers who lack the key are gathered, so that a
	// crowd which joins together takes one rekey and not one each.
	handOverAfter = 10 * time.Second
	// rotateNow is how close the end of a key is when newcomers who have it are not
	// gathered any more.
	rotateNow = waitForUse + handOverAfter
	// rotateTurn keeps those who may rotate from doing it at the same time.
	rotateTurn = time.Hour
	// maxAhead is how far a new key's generation may be above the newest one that counts:
	// nobody can use up all that there are.
	maxAhead = 8
	// maxGeneration is above all that mesh could have come to; a key beyond it that nobody
	// vouches for any more counts as one of before any rotation.
	maxGeneration = trust.MaxGeneration / 2
)

// rekeying is what is known of the keys that others have sealed.
type rekeying struct {
	opened  map[trust.Hash]GossipKey // what this node has opened; no bytes: it is not for it, or no key
	lacking time.Time                // since when somebody lacks the newest key; zero: nobody does
	newest  trust.KeyID              // the newest key
	signers map[trust.Hash]bool      // certificates of all who have sealed that in this run
	orphan  time.Time                // since when one of them counts no more, or none was; zero: all is well
}

// turnKeys lets the keyring follow what was sealed to this node and what others say
// of theirs. It gives the new one, if it is another.
func (m *Member) turnKeys(now time.Time) *Keyring {
	before := m.cfg.Keyring.Clone()
	m.forgetGenerations()
	m.noteOrphan(now)
	m.rotateByItself(now)
	m.handOver(now)
	var sealed []GossipKey
	for _, k := range m.openRekeys() {
		if len(k.Key) > 0 {
			sealed = append(sealed, k)
		}
	}
	off := time.Duration(0)
	if m.doubts(now) {
		off = m.jump.by // or a grace would be over, or last for years
	}
	next, again := m.cfg.Keyring.Next(now.Add(-off), sealed, append(m.generations(now), m.newcomers(now)...))
	if !again.IsZero() {
		m.wakeAt(again.Add(off))
	}
	if next.Equal(before) {
		return nil
	}
	m.cfg.Keyring.Wipe(next)
	m.cfg.Keyring = next
	out := next.Clone()
	return &out
}

// openRekeys opens each rekey once, and forgets what it held when that is out of use.
func (m *Member) openRekeys() map[trust.Hash]GossipKey {
	all := m.rekeysThatCount()
	opened := make(map[trust.Hash]GossipKey, len(all))
	for _, r := range all {
		k, known := m.rekeys.opened[r.Hash]
		if r.Generation < m.cfg.Keyring.Send {
			clear(k.Key)
			k, known = GossipKey{}, true
		}
		if !known && r.For(m.id) {
			if key, err := r.Open(m.id, m.cfg.SealKey); err == nil {
				k = GossipKey{Generation: r.Generation, Key: key, Made: r.At, Grace: r.Grace}
			}
		}
		opened[r.Hash] = k
	}
	m.rekeys.opened = opened
	return opened
}

// rekeysThatCount are those by members, but for generations that are too far ahead of
// all others. A node that has slept for longer than those are kept which it knows goes
// on from the oldest of the newer ones.
func (m *Member) rekeysThatCount() []*trust.Rekey {
	all, reach := m.reg.Rekeys(), m.cfg.Keyring.Newest() // the newest first
	near := func(r *trust.Rekey) bool { return reach <= r.Generation && r.Generation <= reach+maxAhead }
	newer := slices.IndexFunc(all, func(r *trust.Rekey) bool { return r.Generation <= reach })
	if newer < 0 {
		newer = len(all)
	}
	if newer > 0 && !slices.ContainsFunc(all, near) {
		reach = all[newer-1].Generation
	}
	for _, r := range slices.Backward(all[:newer]) {
		if r.Generation > reach+maxAhead {
			break
		}
		reach = max(reach, r.Generation)
	}
	return slices.DeleteFunc(all, func(r *trust.Rekey) bool { return r.Generation > reach })
}

// isSealed tells whether a member who counts has sealed a key.
func (m *Member) isSealed(k GossipKey) bool {
	return slices.ContainsFunc(m.reg.Rekeys(), func(r *trust.Rekey) bool {
		return r.Generation == k.Generation && r.KeyID == trust.KeyIDOf(k.Key)
	})
}

// forgetGenerations makes keys ones of before any rotation whose generation nobody can
// follow, once who made them was revoked.
func (m *Member) forgetGenerations() {
	ring := &m.cfg.Keyring
	for i, k := range ring.Keys {
		if k.Generation <= maxGeneration || m.isSealed(k) {
			continue
		}
		ring.Keys[i].Generation, ring.Keys[i].Made, ring.Keys[i].Grace = 0, time.Time{}, 0
		m.rekeys.opened = nil // older ones may count again
	}
	if ring.Send > maxGeneration && ring.Sending().Key == nil {
		ring.Send = 0
	}
	slices.SortStableFunc(ring.Keys, func(a, b GossipKey) int { return cmp.Compare(b.Generation, a.Generation) })
}

// noteOrphan looks whether somebody who has sealed the newest key was revoked, or has
// gone: then the key is in the wrong hands. If nobody else has sealed it, nobody tells
// newcomers which generation it is, either.
func (m *Member) noteOrphan(now time.Time) {
	ring, k := &m.cfg.Keyring, &m.rekeys
	if ring.Newest() == 0 {
		k.orphan = time.Time{}
		return
	}
	newest := trust.KeyIDOf(ring.Keys[0].Key)
	if k.newest != newest {
		k.newest, k.signers = newest, map[trust.Hash]bool{}
	}
	sealed := false
	for _, r := range m.reg.Rekeys() {
		if r.Generation == ring.Newest() && r.KeyID == newest {
			sealed, k.signers[r.Signer] = true, true
		}
	}
	for signer := range k.signers {
		_, counts := m.reg.Certificate(signer)
		sealed = sealed && counts
	}
	switch {
	case sealed || !m.contact.exchanged:
		k.orphan = time.Time{}
	case k.orphan.IsZero():
		k.orphan = now
	}
}

// generations are those of the keys that fresh members work with.
func (m *Member) generations(now time.Time) []trust.Generations {
	var out []trust.Generations
	for _, n := range m.members(now) {
		if n.ID != m.id && m.isFresh(n, now) {
			out = append(out, n.Record.Keys)
		}
	}
	return out
}

// newcomers are the generations of those who are being admitted, or have been and
// were not heard of yet: a token does not tell the generation of its key. With it
// they are told that they are members, and which key is in use.
func (m *Member) newcomers(now time.Time) []trust.Generations {
	silent := func(n registry.Member) bool {
		_, heard := m.watch.heard[n.ID]
		return n.ID != m.id && !heard
	}
	if len(m.guests.turns) == 0 && !slices.ContainsFunc(m.members(now), silent) {
		return nil
	}
	return []trust.Generations{{Newest: m.cfg.Keyring.Newest()}}
}

// isFresh tells whether a member was heard of so lately that it is likely to run.
func (m *Member) isFresh(n registry.Member, now time.Time) bool {
	return n.Record != nil && !n.Record.Left && now.Sub(m.watch.heard[n.ID].at) < freshFor*m.renewEvery()
}

// RotateGossip hands a new gossip key to all members. The keys before it are kept
// for the grace at least, since tokens carry them. It fails with [ErrNotAllowed]
// if this node's certificate does not let it rotate, and with [ErrNotNow] while
// the last rotation goes on, which takes a minute at most: nobody can hold it up by what
// it says of its keys. Without grace it is not waited for.
func (m *Member) RotateGossip(now time.Time, key []byte, grace time.Duration) error {
	switch {
	case !mayRotate(m.cert):
		return fmt.Errorf("rotate gossip key: %w: %s", ErrNotAllowed, m.whoMayRotate(now))
	case !m.vouches(now):
		return fmt.Errorf("rotate gossip key: %w: this node's certificate counts for nothing now", ErrNotAllowed)
	case grace > 0 && m.rotating(now): // else it is urgent, and waits for nobody
		return fmt.Errorf("rotate gossip key: %w: the last rotation goes on for up to a minute%s", ErrNotNow, m.laggards(now))
	}
	generation := m.cfg.Keyring.Newest() + 1
	if all := m.rekeysThatCount(); len(all) > 0 {
		generation = max(generation, all[0].Generation+1)
	}
	if err := m.seal(now, GossipKey{Generation: generation, Key: key, Grace: grace}, m.members(now)); err != nil {
		return fmt.Errorf("rotate gossip key: %w", err)
	}
	m.todo.dirty = true
	return nil
}

// rotating tells whether members still have time to go over to the newest key.
func (m *Member) rotating(now time.Time) bool {
	newest := m.cfg.Keyring.Newest()
	if newest == 0 || !m.clock(now).Before(m.cfg.Keyring.Keys[0].Installed.Add(sendAnyway)) {
		return false
	}
	return m.cfg.Keyring.Send < newest || slices.ContainsFunc(m.generations(now), func(g trust.Generations) bool { return g.Sends < newest })
}

// laggards names those who do not send with the newest key, for people.
func (m *Member) laggards(now time.Time) string {
	var names []string
	for _, n := range m.members(now) {
		if n.ID != m.id && m.isFresh(n, now) && n.Record.Keys.Sends < m.cfg.Keyring.Newest() {
			names = append(names, n.Certificate.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	more := len(names) - 10
	if text := strings.Join(names[:min(len(names), 10)], ", "); more > 0 {
		return fmt.Sprintf(", for %s and %d more", text, more)
	}
	return ", for " + strings.Join(names, ", ")
}

func mayRotate(c *trust.Certificate) bool { return slices.Contains(c.Capabilities, trust.CapRotate) }

// whoMayRotate names them, for people.
func (m *Member) whoMayRotate(now time.Time) string {
	var names []string
	for _, n := range m.members(now) {
		if mayRotate(n.Certificate) {
			names = append(names, n.Certificate.Name)
		}
	}
	if len(names) == 0 {
		return "no member may"
	}
	return "ask on " + strings.Join(names, " or ")
}

// seal signs and spreads a key for members, in as many parts as it takes.
func (m *Member) seal(now time.Time, key GossipKey, members []registry.Member) error {
	var boxes []trust.Box
	for _, n := range members {
		if n.Certificate.SealKey.IsZero() || n.Record != nil && n.Record.Left {
			continue
		}
		b, err := trust.SealKey(key.Key, n.Certificate)
		if err != nil {
			return err
		}
		boxes = append(boxes, b)
	}
	for part := range slices.Chunk(boxes, trust.MaxBoxes) { // members are sorted, and so are these
		r := trust.Rekey{Generation: key.Generation, KeyID: trust.KeyIDOf(key.Key), Boxes: part, Grace: key.Grace, At: m.clock(now), Signer: m.cert.Hash}
		raw, err := r.Sign(m.cfg.Identity)
		if err != nil {
			return err
		}
		if err := m.Receive(raw); err != nil {
			return err
		}
		m.todo.outBound = append(m.todo.outBound, raw)
	}
	return nil
}

// handOver seals the newest key to members who have come since it was made. Of
// those who may, the one does it that has made it, or else who has waited longest. If
// nobody who counts has made it, it is sealed to all: who has it by a token learns its
// generation from that.
func (m *Member) handOver(now time.Time) {
	if !mayRotate(m.cert) || !m.vouches(now) {
		return
	}
	all := m.rekeysThatCount()
	k, made, signer := GossipKey{}, trust.Hash{}, trust.Hash{}
	if !m.rekeys.orphan.IsZero() {
		k = m.cfg.Keyring.Keys[0]
	}
	if len(all) > 0 && all[0].Generation >= k.Generation {
		made, signer = all[0].Hash, all[0].Signer
		i := slices.IndexFunc(m.cfg.Keyring.Keys, func(k GossipKey) bool {
			return k.Generation == all[0].Generation && trust.KeyIDOf(k.Key) == all[0].KeyID
		})
		if i < 0 {
			return
		}
		k = m.cfg.Keyring.Keys[i]
	}
	if k.Generation == 0 || k.Generation > maxGeneration {
		return // nobody else is to vouch for that
	}
	key := trust.KeyIDOf(k.Key)
	has := func(id mesh.NodeID) bool {
		return slices.ContainsFunc(all, func(r *trust.Rekey) bool { return r.KeyID == key && r.For(id) })
	}
	lack := slices.DeleteFunc(slices.Clone(m.members(now)), func(n registry.Member) bool {
		return n.Certificate.SealKey.IsZero() || n.Record != nil && n.Record.Left || has(n.ID)
	})
	if len(lack) == 0 {
		m.rekeys.lacking = time.Time{}
		return
	}
	if m.rekeys.lacking.IsZero() {
		m.rekeys.lacking = now
	}
	wait := handOverAfter
	if at := m.cfg.Keyring.DropsBy(); !at.IsZero() && at.Sub(now) < rotateNow {
		wait = 0 // what they can read is about to go
	}
	if signer != m.cert.Hash {
		wait += handOverAfter + m.lot(made, mesh.NodeID{}, now) // the one that has made it may be away
	}
	if at := m.rekeys.lacking.Add(wait); now.Before(at) {
		m.wakeAt(at)
		return
	}
	m.rekeys.lacking = time.Time{}
	_ = m.seal(now, k, lack) // who lacks it still does, and is asked for again
}

// rotateByItself rotates a key that is old, if this node may and it is its turn.
func (m *Member) rotateByItself(now time.Time) {
	if m.cfg.RotateEvery <= 0 || !mayRotate(m.cert) || !m.vouches(now) || m.doubts(now) || !m.contact.synced || m.rotating(now) || len(m.cfg.Keyring.Keys) == 0 {
		return
	}
	made := m.cfg.Keyring.Sending().Made
	if made.IsZero() {
		made = m.cert.Admitted // it came with the mesh, or is older than that
	}
	turn := 0
	for _, n := range m.members(now) {
		if n.ID.Compare(m.id) < 0 && mayRotate(n.Certificate) && m.isFresh(n, now) {
			turn++
		}
	}
	due := made.Add(m.cfg.RotateEvery)
	if o := m.rekeys.orphan; !o.IsZero() && o.Add(handOverAfter).Before(due) {
		due = o.Add(handOverAfter) // who made it was thrown out, and has it
	}
	if due = due.Add(time.Duration(turn) * rotateTurn); now.Before(due) {
		if !m.rekeys.orphan.IsZero() {
			m.wakeAt(due)
		}
		return
	}
	key := make([]byte, trust.GossipKeySize)
	_, _ = rand.Read(key)                     // never fails since Go 1.24
	_ = m.RotateGossip(now, key, RotateGrace) // else it is tried again at the next look
}
