package trust

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"meshd/mesh"
)

func TestRevocation(t *testing.T) {
	w := newWorld(t)
	stays, other := mesh.NodeID{1}, w.joined.ID()
	for name, c := range map[string]struct {
		revocation              Revocation
		covers, founder, closes bool
	}{
		"node":                 {Revocation{Node: other}, true, false, false},
		"another node":         {Revocation{Node: stays}, false, false, false},
		"token":                {Revocation{Credential: w.credential.Serial}, true, false, true},
		"token, others stay":   {Revocation{Credential: w.credential.Serial, Except: []mesh.NodeID{stays}}, true, false, true},
		"token, the node too":  {Revocation{Credential: w.credential.Serial, Except: slices.SortedFunc(slices.Values([]mesh.NodeID{stays, other}), mesh.NodeID.Compare)}, false, false, true},
		"another token":        {Revocation{Credential: Serial{9}}, false, false, false},
		"who founded the mesh": {Revocation{Node: w.founder.ID()}, false, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.revocation.At = start
			r := must(ParseRevocation(must(c.revocation.Sign(key("ca")))(t), public("ca")))(t)
			if r.Covers(w.joined) != c.covers || r.Covers(w.founder) != c.founder || r.Ends(w.credential) != c.closes {
				t.Errorf("covers %v and %v, ends %v; want %v, %v, %v", r.Covers(w.joined), r.Covers(w.founder), r.Ends(w.credential), c.covers, c.founder, c.closes)
			}
		})
	}
	for name, r := range map[string]Revocation{
		"of nobody":      {},
		"of both":        {Node: stays, Credential: Serial{1}},
		"node, excepted": {Node: stays, Except: []mesh.NodeID{other}},
		"not sorted":     {Credential: Serial{1}, Except: []mesh.NodeID{{2}, {1}}},
		"twice the same": {Credential: Serial{1}, Except: []mesh.NodeID{{2}, {2}}},
	} {
		if _, err := r.Sign(key("ca")); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	whole := Revocation{Credential: Serial{1}, At: start}
	for i := range MaxExcept {
		whole.Except = append(whole.Except, mesh.NodeID{byte(i >> 8), byte(i)})
	}
	if raw := must(whole.Sign(key("ca")))(t); len(raw) > MaxObject {
		t.Errorf("%d exceptions take %d bytes", MaxExcept, len(raw))
	}
	whole.Except = whole.Except[:48]
	if raw := must(whole.Sign(key("ca")))(t); len(raw) > MaxBroadcast {
		t.Errorf("48 exceptions take %d bytes, too many for a broadcast", len(raw))
	}
	raw := must((&Revocation{Node: stays, At: start}).Sign(key("credential")))(t)
	if _, err := ParseRevocation(raw, public("ca")); !errors.Is(err, ErrSignature) {
		t.Errorf("by a token: %v", err)
	}
}

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

func TestRekey(t *testing.T) {
	w := newWorld(t)
	private := must(ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{5}, 32)))(t)
	member := *w.joined
	member.SealKey = mesh.Key(private.PublicKey().Bytes())
	secret := bytes.Repeat([]byte{8}, GossipKeySize)
	good := Rekey{
		Generation: 1, KeyID: KeyIDOf(secret), Boxes: []Box{must(SealKey(secret, &member))(t)}, At: start.Add(time.Hour), Signer: w.founder.Hash,
	}
	read := func(r Rekey, signer string) *Rekey {
		t.Helper()
		return must(ParseRekey(must(r.Sign(key(signer)))(t)))(t)
	}
	r := read(good, "founder")
	if err := r.Verify(w.founder); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Open(member.ID(), [32]byte(private.Bytes())); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("opened %x, %v", got, err)
	}
	if _, err := r.Open(member.ID(), [32]byte{1}); !errors.Is(err, ErrForbidden) {
		t.Error("with another seal key:", err)
	}
	if _, err := r.Open(w.founder.ID(), [32]byte(private.Bytes())); !errors.Is(err, ErrForbidden) {
		t.Error("for another node:", err)
	}
	if err := read(good, "node").Verify(w.founder); !errors.Is(err, ErrSignature) {
		t.Error("in another's name:", err)
	}
	plain := good
	plain.Signer = w.joined.Hash
	if err := read(plain, "node").Verify(w.joined); !errors.Is(err, ErrForbidden) {
		t.Error("by a member that may not:", err)
	}
	wrong := good
	wrong.KeyID = KeyID{1}
	if _, err := read(wrong, "founder").Open(member.ID(), [32]byte(private.Bytes())); !errors.Is(err, ErrForbidden) {
		t.Error("a box with another key:", err)
	}
	next, twin := good, good
	next.Generation, twin.KeyID = 2, KeyID{255}
	if !next.Newer(&good) || good.Newer(&next) || !twin.Newer(&good) {
		t.Error("the order of keys")
	}
	full := good
	full.Boxes = nil
	for i := range MaxBoxes {
		full.Boxes = append(full.Boxes, Box{mesh.NodeID{byte(i)}, good.Boxes[0].Sealed})
	}
	full.Generation = MaxGeneration
	if raw := must(full.Sign(key("founder")))(t); len(raw) > MaxObject {
		t.Errorf("%d boxes take %d bytes", MaxBoxes, len(raw))
	}
}

// A reserved subnet is one of a network, and goes with it.
func TestReserved(t *testing.T) {
	c := testCharter()
	c.Reserved = []netip.Prefix{prefix("10.86.9.0/24")}
	read := must(ParseCharter(must(c.Sign(key("ca")))(t), mesh.ID{}))(t)
	if !read.IsReserved([]netip.Prefix{prefix("10.86.9.0/24"), prefix("fd86:1:2:9::/64")}) || read.IsReserved([]netip.Prefix{prefix("10.86.8.0/24")}) {
		t.Error("not what was reserved:", read.Reserved)
	}
	if next := read.Next(start, read.Networks); !slices.Equal(next.Reserved, read.Reserved) {
		t.Error("lost with the next charter:", next.Reserved)
	}
	if next := read.Next(start, []mesh.Network{{Name: "b", IPv4: prefix("10.9.0.0/16"), IPv4Len: 24}}); len(next.Reserved) > 0 {
		t.Error("outlived its network:", next.Reserved)
	}
	for name, reserved := range map[string][]netip.Prefix{
		"no subnet":      {prefix("10.86.9.0/25")},
		"outside":        {prefix("10.87.9.0/24")},
		"twice the same": {prefix("10.86.9.0/24"), prefix("10.86.9.0/24")},
	} {
		c.Reserved = reserved
		if _, err := c.Sign(key("ca")); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
