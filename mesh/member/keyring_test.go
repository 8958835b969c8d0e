package member

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"meshd/mesh/trust"
)

var ringStart = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func ringKey(n byte) []byte { return bytes.Repeat([]byte{n}, trust.GossipKeySize) }

// ring is a keyring in short: "3 2* 1", the one that is sent with has the star.
func ring(k Keyring) string {
	var out []string
	for _, g := range k.Keys {
		text := fmt.Sprint(g.Generation)
		if bytes.Equal(g.Key, k.Sending().Key) {
			text += "*"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func opened(generation uint64) GossipKey {
	return GossipKey{Generation: generation, Key: ringKey(byte(generation)), Made: ringStart, Grace: time.Hour}
}

func says(newest, sends uint64) trust.Generations {
	return trust.Generations{Newest: newest, Sends: sends}
}

func TestKeyringNext(t *testing.T) {
	type step struct {
		after  time.Duration // since the start
		opened []GossipKey
		others []trust.Generations
		want   string
		again  time.Duration // since the start; zero: never
	}
	immediate := opened(1)
	immediate.Grace = 0
	now2 := opened(2)
	now2.Grace = 0
	short := opened(1)
	short.Key = short.Key[:31]
	named := opened(3)
	named.Key = ringKey(0)
	twin := opened(1)
	twin.Key = ringKey(99)
	both := []GossipKey{opened(1), twin}
	for name, steps := range map[string][]step{
		"nothing happens": {
			{0, nil, nil, "0*", 0},
			{time.Hour, nil, []trust.Generations{says(0, 0)}, "0*", 0},
		},
		"alone": {
			{0, []GossipKey{opened(1)}, nil, "1* 0", time.Hour},
			{time.Hour, nil, nil, "1*", 0},
		},
		"install, use, drop": {
			{0, []GossipKey{opened(1)}, []trust.Generations{says(0, 0), says(0, 0)}, "1 0*", time.Minute},
			{time.Second, nil, []trust.Generations{says(1, 0), says(0, 0)}, "1 0*", time.Minute},
			{2 * time.Second, nil, []trust.Generations{says(1, 0), says(1, 0)}, "1* 0", time.Hour},
			{time.Hour - time.Second, nil, []trust.Generations{says(1, 1), says(1, 1)}, "1* 0", time.Hour},
			{time.Hour, nil, []trust.Generations{says(1, 1), says(1, 1)}, "1*", 0},
			{4 * time.Hour, []GossipKey{opened(1)}, []trust.Generations{says(1, 1)}, "1*", 0},
		},
		"grace": {
			{0, []GossipKey{opened(1)}, []trust.Generations{says(1, 1)}, "1* 0", time.Hour},
			{time.Hour - time.Second, nil, []trust.Generations{says(1, 1)}, "1* 0", time.Hour},
			{time.Hour, nil, []trust.Generations{says(1, 1)}, "1*", 0},
		},
		"no grace": {
			{0, []GossipKey{immediate}, []trust.Generations{says(1, 0)}, "1* 0", 2 * time.Minute},
			{time.Second, nil, []trust.Generations{says(1, 1)}, "1*", 0},
		},
		"one who is down, or lies, keeps no key for ever": {
			{0, []GossipKey{immediate}, []trust.Generations{says(0, 0), says(1, 0)}, "1 0*", time.Minute},
			{time.Minute, nil, []trust.Generations{says(0, 0), says(1, 1)}, "1* 0", 2 * time.Minute},
			{2*time.Minute - time.Second, nil, []trust.Generations{says(0, 0), says(1, 1)}, "1* 0", 2 * time.Minute},
			{2 * time.Minute, nil, []trust.Generations{says(0, 0), says(1, 1)}, "1*", 0},
		},
		"nor with a grace": {
			{0, []GossipKey{opened(1)}, []trust.Generations{says(0, 0)}, "1 0*", time.Minute},
			{time.Minute, nil, []trust.Generations{says(0, 0)}, "1* 0", time.Hour},
			{time.Hour, nil, []trust.Generations{says(0, 0)}, "1*", 0},
		},
		"each key by itself": {
			{0, []GossipKey{immediate}, []trust.Generations{says(1, 0)}, "1* 0", 2 * time.Minute},
			{time.Second, []GossipKey{now2}, []trust.Generations{says(2, 1)}, "2* 1", 2*time.Minute + time.Second},
			{2 * time.Second, nil, []trust.Generations{says(2, 2)}, "2*", 0},
		},
		"a rotation at once, then one with a grace": {
			{0, []GossipKey{immediate}, []trust.Generations{says(1, 0)}, "1* 0", 2 * time.Minute},
			{time.Second, []GossipKey{opened(2)}, []trust.Generations{says(2, 1)}, "2* 1", time.Hour + time.Second},
		},
		"one who does not say that it has it": {
			{0, []GossipKey{opened(1)}, []trust.Generations{says(0, 0)}, "1 0*", time.Minute},
			{time.Minute - time.Second, nil, []trust.Generations{says(0, 0)}, "1 0*", time.Minute},
			{time.Minute, nil, []trust.Generations{says(0, 0)}, "1* 0", time.Hour},
		},
		"the clock is set back meanwhile": {
			{time.Hour, []GossipKey{opened(1)}, []trust.Generations{says(0, 0)}, "1 0*", time.Hour + time.Minute},
			{0, nil, []trust.Generations{says(0, 0)}, "1 0*", time.Minute},
			{time.Minute, nil, []trust.Generations{says(0, 0)}, "1* 0", time.Hour},
		},
		"two in a row": {
			{0, []GossipKey{opened(1)}, []trust.Generations{says(0, 0)}, "1 0*", time.Minute},
			{time.Second, []GossipKey{opened(1), opened(2)}, []trust.Generations{says(1, 0)}, "2 1* 0", time.Minute + time.Second},
			{2 * time.Second, nil, []trust.Generations{says(2, 1)}, "2* 1 0", time.Hour},
			{2 * time.Hour, nil, []trust.Generations{says(2, 2)}, "2*", 0},
		},
		"what was dropped does not come back": {
			{0, []GossipKey{opened(2)}, []trust.Generations{says(2, 2)}, "2* 0", time.Hour},
			{time.Hour, []GossipKey{opened(1)}, []trust.Generations{says(2, 2)}, "2*", 0},
		},
		"after a long sleep": {
			{0, []GossipKey{opened(1), opened(2), opened(3)}, []trust.Generations{says(3, 3)}, "3* 2 1 0", time.Hour},
		},
		"a key that a token has brought gets its generation": {
			{0, []GossipKey{named}, []trust.Generations{says(3, 3)}, "3*", 0},
		},
		"a key that is none": {
			{0, []GossipKey{short}, nil, "0*", 0},
		},
		"two rotate at once": {
			{0, both, []trust.Generations{says(1, 0)}, "1* 1 0", time.Hour},
		},
		"two rotate at once, heard of the other way round": {
			{0, []GossipKey{both[1], both[0]}, []trust.Generations{says(1, 0)}, "1* 1 0", time.Hour},
		},
	} {
		k := NewKeyring(ringKey(0))
		for i, s := range steps {
			before := k.Clone()
			next, again := k.Next(ringStart.Add(s.after), s.opened, s.others)
			if !k.Equal(before) {
				t.Errorf("%s, step %d: it has changed what it was asked about", name, i)
			}
			var wantAgain time.Time
			if s.again != 0 {
				wantAgain = ringStart.Add(s.again)
			}
			if got := ring(next); got != s.want || !again.Equal(wantAgain) {
				t.Errorf("%s, step %d: %s, again at %v; want %s at %v", name, i, got, again, s.want, wantAgain)
			}
			if settled, _ := next.Next(ringStart.Add(s.after), s.opened, s.others); !settled.Equal(next) {
				t.Errorf("%s, step %d: asked again at once it is %s", name, i, ring(settled))
			}
			k = next
		}
	}
	first, _ := NewKeyring(ringKey(0)).Next(ringStart, both, nil)
	second, _ := NewKeyring(ringKey(0)).Next(ringStart, []GossipKey{both[1], both[0]}, nil)
	if !bytes.Equal(first.Sending().Key, second.Sending().Key) {
		t.Error("two members send with different keys of one generation")
	}
}

// Whatever comes, a keyring can send, is sorted and bounded; generations in use only
// grow; no key goes that somebody fresh says to send with, for two minutes, and none
// of before outlives that and the grace.
func TestKeyringLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, now := NewKeyring(ringKey(0)), ringStart
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(-int64(time.Minute), int64(2*time.Hour)).Draw(t, "later")))
			var come []GossipKey
			for range rapid.IntRange(0, 3).Draw(t, "keys") {
				g := opened(rapid.Uint64Range(0, 40).Draw(t, "generation"))
				g.Key = ringKey(byte(rapid.IntRange(0, 60).Draw(t, "key")))
				come = append(come, g)
			}
			var others []trust.Generations
			for range rapid.IntRange(0, 3).Draw(t, "members") {
				sends := rapid.Uint64Range(0, 40).Draw(t, "sends")
				others = append(others, says(sends+rapid.Uint64Range(0, 2).Draw(t, "ahead"), sends))
			}
			next, again := k.Next(now, come, others)
			falling := func(a, b GossipKey) int { return int(b.Generation) - int(a.Generation) }
			switch {
			case len(next.Sending().Key) != trust.GossipKeySize:
				t.Fatalf("%s cannot send", next)
			case next.Send < k.Send:
				t.Fatalf("%s after %s", next, k)
			case len(next.Keys) > maxKeys || !slices.IsSortedFunc(next.Keys, falling):
				t.Fatalf("%s", ring(next))
			case !next.DropsBy().IsZero() && !now.Before(next.DropsBy()):
				t.Fatalf("%s at %v, and the older ones were to go by %v", ring(next), now, next.DropsBy())
			case !again.IsZero() && !again.After(now):
				t.Fatalf("asks again at %v, and it is %v", again, now)
			}
			for _, had := range k.Keys {
				stays := slices.ContainsFunc(next.Keys, func(g GossipKey) bool { return bytes.Equal(g.Key, had.Key) })
				used := slices.ContainsFunc(others, func(o trust.Generations) bool { return o.Sends <= had.Generation && o.Sends < next.Send })
				used = used && now.Before(next.Sending().Installed.Add(waitForUse))
				if !stays && used && len(next.Keys) < maxKeys {
					t.Fatalf("generation %d went, and others say %v", had.Generation, others)
				}
			}
			k = next
		}
	})
}

func TestKeyringIsWiped(t *testing.T) {
	k, _ := NewKeyring(ringKey(7)).Next(ringStart, []GossipKey{opened(1)}, nil)
	next, _ := k.Next(ringStart.Add(time.Hour), nil, nil)
	if len(next.Keys) != 1 {
		t.Fatal(ring(next))
	}
	copied := k.Clone()
	k.Wipe(next)
	if !bytes.Equal(k.Keys[0].Key, ringKey(1)) || !bytes.Equal(k.Keys[1].Key, make([]byte, trust.GossipKeySize)) {
		t.Errorf("after it was wiped: %x and %x", k.Keys[0].Key, k.Keys[1].Key)
	}
	if !bytes.Equal(copied.Keys[1].Key, ringKey(7)) {
		t.Error("a copy shares its memory")
	}
}

func TestKeyringIsNotPrinted(t *testing.T) {
	k := NewKeyring([]byte("0123456789abcdef0123456789abcdef"))
	text, err := json.Marshal([]any{k, k.Keys[0]})
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %s %x %q %v %+v %#v %s", k, k, k, k, k, k, k.Keys[0], k.Keys, k.Keys[0], text)
	for _, secret := range []string{"0123", "30313233", "MDEy", "48 49 50", "0x30, 0x31"} {
		if strings.Contains(all, secret) {
			t.Errorf("a key is printed: %s", all)
		}
	}
}
