package gossip

import (
	"crypto/ed25519"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

var anyKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

func recordBy(t *testing.T, certificate byte, seq uint64) []byte {
	t.Helper()
	r := trust.Record{Version: mesh.Version{Epoch: 1, Seq: seq}, Certificate: trust.Hash{certificate}, Nonce: 1, Key: mesh.Key{1}}
	raw, err := r.Sign(anyKey)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestUpdates(t *testing.T) {
	var u updates
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	// One that signs a hundred records a second, for a minute.
	relayed, taken := 0, 0
	for i := range 6000 {
		raw := recordBy(t, 1, uint64(i+1))
		if at := now.Add(time.Duration(i) * 10 * time.Millisecond); !u.tooMany(raw, at) {
			taken++
			if u.note(raw, at) {
				relayed++
			}
		}
	}
	if t.Logf("of 6000 records %d taken, %d relayed", taken, relayed); relayed < 60 || relayed > 60+recordsBurst+1 {
		t.Errorf("want about one a second after %d", recordsBurst)
	}
	if taken > 3*relayed {
		t.Error("too many are taken")
	}
	// Others do not suffer by it, nor do other objects of its own.
	later := now.Add(time.Minute)
	if other := recordBy(t, 2, 1); u.tooMany(other, later) || !u.note(other, later) {
		t.Error("another's record is left out")
	}
	admission := (&trust.Admission{Certificate: trust.Hash{3}, Admitter: trust.Hash{1}, Seen: now}).Sign(anyKey)
	if u.tooMany(admission, later) || !u.note(admission, later) {
		t.Error("an admission counts as a record")
	}
	// After a while of silence it is heard again.
	if last := recordBy(t, 1, 7000); u.tooMany(last, later.Add(3*time.Second)) || !u.note(last, later.Add(3*time.Second)) {
		t.Error("its last record is left out for ever")
	}
}

// What nobody has verified counts against nobody.
func TestUpdatesNotVerified(t *testing.T) {
	var u updates
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := range 1000 {
		if u.tooMany(recordBy(t, 1, uint64(i+1)), now) {
			t.Fatalf("forged record %d silences its owner", i)
		}
	}
	if !u.note(recordBy(t, 1, 1001), now) {
		t.Error("the first true one is left out")
	}
	for _, junk := range [][]byte{nil, {0}, []byte("junk")} {
		if u.tooMany(junk, now) || !u.note(junk, now) {
			t.Errorf("%q has an author", junk)
		}
	}
}

// Many signers do not fill memory.
func TestUpdatesAreBounded(t *testing.T) {
	u := updates{authors: map[author]*allowance{}}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := range maxAuthors {
		u.authors[author{trust.Hash{byte(i), byte(i >> 8), 1}, true}] = &allowance{most: 1, every: time.Hour}
	}
	if !u.note(recordBy(t, 1, 1), now) || len(u.authors) > maxAuthors {
		t.Errorf("%d authors are remembered", len(u.authors))
	}
}
