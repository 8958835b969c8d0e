package member

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"meshd/mesh/trust"
)

// GossipKey is one generation of the key that hides gossip from strangers. There
// are several of one generation if two members rotated at once.
type GossipKey struct {
	Generation uint64        // 0: of before any rotation, from init or a token
	Key        []byte        // AES-256
	Made       time.Time     // when it was sealed to the members; zero: unknown
	Installed  time.Time     // when this node got it; zero: it had it from the start
	Grace      time.Duration // for how long the keys before it are kept at least, since there are tokens with them
}

// Keyring are the gossip keys of a node: it reads what was sealed with any of
// them. A key is installed by all, then used, then dropped:
//
//	        sealed to us          all have it, or 1 min        all send with a newer one,
//	(none) ─────────────► installed ───────────► sends with it ───────────► dropped
//	                                                or 2 min, and its grace is over
//
// So at no moment does anybody send what a member cannot read that runs and has a
// minute to hear of a key.
type Keyring struct {
	Keys []GossipKey // the newest first
	Send uint64      // generation that this node sends with; the first key of it
}

const (
	// sendAnyway is how long a new key waits for members who do not say that they
	// have it: long enough for a rekey and a record to reach everybody, short
	// enough that one who is stopped does not keep all from rotating.
	sendAnyway = time.Minute
	// waitForUse is how long after its installation a key that was given out waits for
	// those who send with one before: as long again as they wait for others.
	waitForUse = 2 * sendAnyway
	// maxKeys bounds what is kept of keys that somebody is still said to use.
	maxKeys = 16
)

// NewKeyring is that of a node whose keys are of before any rotation.
func NewKeyring(keys ...[]byte) Keyring {
	var k Keyring
	for _, key := range keys {
		k.Keys = append(k.Keys, GossipKey{Key: bytes.Clone(key)})
	}
	return k
}

// Newest is the newest generation installed.
func (k Keyring) Newest() uint64 {
	if len(k.Keys) == 0 {
		return 0
	}
	return k.Keys[0].Generation
}

// Sending is the key that this node sends with. Its bytes are nil if there is none.
func (k Keyring) Sending() GossipKey {
	i := slices.IndexFunc(k.Keys, func(g GossipKey) bool { return g.Generation == k.Send })
	if i < 0 {
		return GossipKey{}
	}
	return k.Keys[i]
}

// Clone copies it, with the bytes of the keys.
func (k Keyring) Clone() Keyring {
	k.Keys = slices.Clone(k.Keys)
	for i := range k.Keys {
		k.Keys[i].Key = bytes.Clone(k.Keys[i].Key)
	}
	return k
}

// Equal compares two keyrings.
func (k Keyring) Equal(o Keyring) bool {
	return k.Send == o.Send && slices.EqualFunc(k.Keys, o.Keys, func(a, b GossipKey) bool {
		return a.Generation == b.Generation && bytes.Equal(a.Key, b.Key) && a.Made.Equal(b.Made) &&
			a.Installed.Equal(b.Installed) && a.Grace == b.Grace
	})
}

// Wipe overwrites those keys that stay does not have.
func (k Keyring) Wipe(stay Keyring) {
	for _, g := range k.Keys {
		if !slices.ContainsFunc(stay.Keys, func(s GossipKey) bool { return bytes.Equal(s.Key, g.Key) }) {
			clear(g.Key)
		}
	}
}

// Next is the keyring that should follow: from the keys that rekeys have sealed to
// this node, and what the fresh records of all other members say of theirs. It
// shares no memory with k. again is when to ask although nothing has come; zero:
// never.
func (k Keyring) Next(now time.Time, opened []GossipKey, others []trust.Generations) (next Keyring, again time.Time) {
	next = k.Clone()
	next.install(now, opened)
	again = next.goOver(now, others)
	if at := next.drop(now, others); !at.IsZero() && (again.IsZero() || at.Before(again)) {
		again = at
	}
	return next, again
}

// install takes up keys that are not older than the one in use: older ones may
// have been dropped before.
func (k *Keyring) install(now time.Time, opened []GossipKey) {
	now = now.Round(0).UTC().Truncate(time.Second) // as it is saved
	for _, g := range opened {
		if g.Generation < max(k.Send, 1) || len(g.Key) != trust.GossipKeySize {
			continue
		}
		i := slices.IndexFunc(k.Keys, func(have GossipKey) bool { return bytes.Equal(have.Key, g.Key) })
		switch {
		case i < 0:
			g.Key, g.Installed, g.Made = bytes.Clone(g.Key), now, earliest(g.Made, now) // whatever its maker dates it to
			k.Keys = append(k.Keys, g)
		case k.Keys[i].Generation < g.Generation: // it came with a token, which does not tell its generation
			if k.Keys[i].Generation == k.Send && bytes.Equal(k.Sending().Key, g.Key) {
				k.Send = g.Generation
			}
			k.Keys[i].Generation, k.Keys[i].Made, k.Keys[i].Grace = g.Generation, earliest(g.Made, now), g.Grace
		}
	}
	// Two keys of one generation are in the same order everywhere.
	slices.SortStableFunc(k.Keys, func(a, b GossipKey) int {
		if a.Generation == 0 && b.Generation == 0 {
			return 0
		}
		first, second := trust.KeyIDOf(a.Key), trust.KeyIDOf(b.Key)
		return cmp.Or(cmp.Compare(b.Generation, a.Generation), bytes.Compare(second[:], first[:]))
	})
	for len(k.Keys) > maxKeys {
		last := len(k.Keys) - 1
		if k.Keys[last].Generation == k.Send {
			last = 0 // that many and nobody has gone over: the newest can wait
		}
		clear(k.Keys[last].Key)
		k.Keys = slices.Delete(k.Keys, last, last+1)
	}
}

// goOver sends with the newest key that everybody has, or had time to get.
func (k *Keyring) goOver(now time.Time, others []trust.Generations) (again time.Time) {
	for i := range k.Keys {
		g := &k.Keys[i]
		if g.Generation <= k.Send {
			break
		}
		if g.Installed.After(now.Add(time.Second)) { // the clock was set back
			g.Installed = now.Round(0).UTC().Truncate(time.Second)
		}
		lacks := func(o trust.Generations) bool { return o.Newest < g.Generation }
		if at := g.Installed.Add(sendAnyway); slices.ContainsFunc(others, lacks) && now.Before(at) {
			again = at // that of the oldest, which is the first to be due
			continue
		}
		k.Send = g.Generation
		break
	}
	return again
}

// drop gives up the keys before the one in use, each by itself: when the grace of a
// newer one is over and nobody sends with it, or with one that is older still. What
// others say is waited for only so long: who lies, or is down, must not keep a key in
// use that is in the wrong hands, and gets the new one through its tunnel.
func (k *Keyring) drop(now time.Time, others []trust.Generations) (again time.Time) {
	in, used := k.Sending(), k.Send
	for _, o := range others {
		used = min(used, o.Sends)
	}
	over, keep := in.Installed.Add(in.Grace), k.Keys[:0]
	for _, g := range k.Keys {
		if g.Generation >= k.Send {
			keep = append(keep, g)
			continue
		}
		at := over
		if g.Generation >= used {
			at = latest(over, in.Installed.Add(waitForUse))
		}
		if end := g.Installed.Add(g.Grace); g.Generation > 0 && end.Before(over) {
			over = end // what came before it was to go sooner
		}
		if !now.Before(at) {
			clear(g.Key)
			continue
		}
		keep = append(keep, g)
		if again.IsZero() || at.Before(again) {
			again = at
		}
	}
	clear(k.Keys[len(keep):])
	k.Keys = keep
	return again
}

// DropsBy is when the keys before the one that it sends with go at the latest,
// whatever others say; zero: there are none.
func (k Keyring) DropsBy() time.Time {
	in := k.Sending()
	if len(k.Keys) == 0 || k.Keys[len(k.Keys)-1].Generation >= k.Send {
		return time.Time{}
	}
	return latest(in.Installed.Add(in.Grace), in.Installed.Add(waitForUse))
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Format implements [fmt.Formatter] without the keys.
func (k Keyring) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, k.text()) }

// MarshalText implements [encoding.TextMarshaler] without the keys.
func (k Keyring) MarshalText() ([]byte, error) { return []byte(k.text()), nil }

func (k Keyring) text() string {
	return fmt.Sprintf("keyring of %d, newest %d, sends with %d", len(k.Keys), k.Newest(), k.Send)
}

// Format implements [fmt.Formatter] without the key.
func (g GossipKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, g.text()) }

// MarshalText implements [encoding.TextMarshaler] without the key.
func (g GossipKey) MarshalText() ([]byte, error) { return []byte(g.text()), nil }

func (g GossipKey) text() string { return fmt.Sprintf("gossip key of generation %d", g.Generation) }
