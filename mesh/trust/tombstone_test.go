package trust

import (
	"errors"
	"testing"
	"time"

	"meshd/mesh"
)

// What a tombstone voids: see the picture at its type.
func TestTombstoneVoids(t *testing.T) {
	tomb := Tombstone{Version: mesh.Version{Epoch: 3, Seq: 2}}
	for _, c := range []struct {
		epoch, seq, claimed uint64
		want                bool
	}{
		{2, 9, 2, true}, {3, 1, 1, true}, {3, 2, 3, true},
		{3, 3, 1, false}, // cut off, and went on
		{4, 1, 3, true},  // off, and outran it by a restart
		{4, 1, 4, false}, // claimed afresh
	} {
		if got := tomb.Voids(mesh.Version{Epoch: c.epoch, Seq: c.seq}, mesh.Lease{ClaimEpoch: c.claimed}); got != c.want {
			t.Errorf("record (%d,%d), claimed in %d: void %v", c.epoch, c.seq, c.claimed, got)
		}
	}
}

func TestTombstoneVerify(t *testing.T) {
	w := newWorld(t)
	good := Tombstone{Node: w.joined.ID(), Version: mesh.Version{Epoch: 3, Seq: 2}, Reason: Expired, At: start.Add(time.Hour), Issuer: w.founder.Hash}
	verify := func(tomb Tombstone, signer string, issuer *Certificate) error {
		raw, err := tomb.Sign(key(signer))
		if err != nil {
			return err
		}
		return must(ParseTombstone(raw))(t).Verify(issuer, public("ca"))
	}
	if err := verify(good, "founder", w.founder); err != nil {
		t.Error(err)
	}
	byCA := good
	byCA.Issuer, byCA.Version.Seq, byCA.Reason = Hash{}, WholeEpoch, Forgotten
	if err := verify(byCA, "ca", nil); err != nil {
		t.Error("by the CA:", err)
	}
	if err := verify(byCA, "founder", nil); !errors.Is(err, ErrSignature) {
		t.Error("in the CA's name:", err)
	}
	if err := verify(good, "node", w.founder); !errors.Is(err, ErrSignature) {
		t.Error("in another's name:", err)
	}
	if err := verify(good, "founder", w.joined); !errors.Is(err, ErrForbidden) {
		t.Error("another certificate:", err)
	}
	whole := good
	whole.Version.Seq = WholeEpoch
	if err := verify(whole, "founder", w.founder); !errors.Is(err, ErrForbidden) {
		t.Error("a whole epoch by a member:", err)
	}
	own := good
	own.Node = w.founder.ID()
	if err := verify(own, "founder", w.founder); !errors.Is(err, ErrForbidden) {
		t.Error("of the issuer itself:", err)
	}
	late := good
	late.At = w.founder.NotAfter
	if err := verify(late, "founder", w.founder); !errors.Is(err, ErrForbidden) {
		t.Error("after the issuer's certificate:", err)
	}
}
