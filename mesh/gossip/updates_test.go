package gossip

import (
	"bytes"
	"crypto/ed25519"
	"slices"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/exchange"
	"meshd/mesh/member"
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
	u := updates{authors: map[author]*exchange.Allowance{}}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := range maxAuthors {
		u.authors[author{trust.Hash{byte(i), byte(i >> 8), 1}, true}] = &exchange.Allowance{Most: 1, Every: time.Hour}
	}
	if !u.note(recordBy(t, 1, 1), now) || len(u.authors) > maxAuthors {
		t.Errorf("%d authors are remembered", len(u.authors))
	}
}

func tombstoneBy(issuer, of byte, epoch, seq uint64) []byte {
	t := trust.Tombstone{Node: mesh.NodeID{of}, Version: mesh.Version{Epoch: epoch, Seq: seq}, Reason: trust.Expired, At: time.Unix(1_800_000_000, 0), Issuer: trust.Hash{issuer}}
	raw, err := t.Sign(anyKey)
	if err != nil {
		panic(err)
	}
	return raw
}

// Of what one node sends at once only the newest record of each member is looked at, and
// the newest tombstone of each issuer for an epoch; all else, and the order, stays.
func TestNewest(t *testing.T) {
	r := func(by byte, seq uint64) []byte { return recordBy(t, by, seq) }
	charter, junk := []byte("charter"), []byte{}
	all := [][]byte{
		charter, r(1, 1), r(2, 9), r(1, 3), junk, r(1, 2), r(2, 9), r(2, 8),
		tombstoneBy(1, 7, 2, 1), tombstoneBy(1, 7, 2, 5), tombstoneBy(2, 7, 2, 3), tombstoneBy(1, 7, 3, 1), tombstoneBy(1, 8, 2, 1), charter,
	}
	want := [][]byte{
		charter, r(2, 9), r(1, 3), junk,
		tombstoneBy(1, 7, 2, 5), tombstoneBy(2, 7, 2, 3), tombstoneBy(1, 7, 3, 1), tombstoneBy(1, 8, 2, 1), charter,
	}
	if got := newest(all); !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%d objects are left of %d, want %d", len(got), len(all), len(want))
	}
}

// exchanging is a loop without gossip, for what exchanges bring.
func exchanging(t *testing.T) (*loop, *talker) {
	t.Helper()
	c := &talker{heard: map[string]bool{}}
	g, err := New(Options{Core: c, Store: nowhere{}, Keyring: member.NewKeyring(make([]byte, 32))})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			select {
			case c := <-g.calls:
				c.do(time.Now())
				close(c.done)
			case <-t.Context().Done():
				return
			}
		}
	}()
	return &loop{Gossip: g}, c
}

// What a member signs as fast as it can costs others little, also if it brings all of it
// in exchanges, and nothing of anybody else's is left out for that.
func TestExchangeOfManyRecords(t *testing.T) {
	l, core := exchanging(t)
	var flood [][]byte
	for i := range 2000 {
		flood = append(flood, recordBy(t, 1, uint64(i+1)))
	}
	last, other := flood[len(flood)-1], recordBy(t, 2, 1)
	decided, err := l.Put(t.Context(), append(flood, other), true)
	if err != nil || len(decided) != 2 || !core.has(string(last)) || !core.has(string(other)) || len(core.heard) != 2 {
		t.Errorf("of %d records %d were decided about, and the core has had %d, error %v; want the last of each", len(flood)+1, len(decided), len(core.heard), err)
	}

	// A newer one with each of many exchanges.
	all := 0
	for i := range 200 {
		decided, err := l.Put(t.Context(), [][]byte{recordBy(t, 1, uint64(5000+i)), recordBy(t, byte(i+3), 1)}, true)
		if err != nil || len(decided) == 0 {
			t.Fatalf("exchange %d: %d objects, error %v", i, len(decided), err)
		}
		all += len(decided) - 1
	}
	if all == 0 || all > 2*recordsBurst {
		t.Errorf("200 exchanges had the core look at %d records of one member, want about %d", all, recordsBurst)
	}
	if got := len(core.heard) - 2 - all; got != 200 {
		t.Errorf("of 200 other members %d are heard", got)
	}
}
