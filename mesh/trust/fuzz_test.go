package trust

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"meshd/mesh"
)

// fuzzObject feeds a parser. What it accepts must be in the one encoding that
// there is, and keep its bytes and hash.
func fuzzObject(f *testing.F, kind Kind, parse func(raw []byte) (Object, error)) {
	w := newWorld(f)
	for _, o := range w.objects() {
		f.Add(o.Raw)
	}
	f.Add(w.founder.Raw)
	signer := key(signers[kind])
	f.Fuzz(func(t *testing.T, raw []byte) {
		// Once as it is, and once as the body of a well signed object: no fuzzer
		// would ever find the signature.
		for _, raw := range [][]byte{raw, signRaw(signer, kind, raw)} {
			o, err := parse(raw)
			if err != nil {
				continue
			}
			if !bytes.Equal(o.Raw, raw) || o.Hash != sha256.Sum256(raw) {
				t.Fatal("the bytes were not kept")
			}
			var tree any
			if err := decMode.Unmarshal(raw, &tree); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(encode(tree), raw) {
				t.Fatal("accepted in another than the deterministic encoding")
			}
		}
	})
}

// addBodies seeds a fuzz target with the bare bodies, which it signs itself.
func addBodies(f *testing.F) {
	for _, o := range newWorld(f).objects() {
		e, err := open(o.Raw)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e.body)
	}
}

func FuzzCharter(f *testing.F) {
	addBodies(f)
	fuzzObject(f, KindCharter, func(raw []byte) (Object, error) {
		c, err := ParseCharter(raw, mesh.ID{})
		if err != nil {
			return Object{}, err
		}
		for _, n := range c.Networks {
			if n.Slots() < 2 || len(n.Slot(0)) == 0 {
				panic("accepted a network that cannot be cut")
			}
		}
		again, err := c.Sign(key("ca"))
		if err != nil {
			panic(err) // what is accepted can be signed
		}
		if _, err := ParseCharter(again, c.ID()); err != nil {
			panic(err)
		}
		return c.Object, nil
	})
}

func FuzzCredential(f *testing.F) {
	addBodies(f)
	fuzzObject(f, KindCredential, func(raw []byte) (Object, error) {
		c, err := ParseCredential(raw, public("ca"))
		if err != nil {
			return Object{}, err
		}
		if _, err := c.Sign(key("ca")); err != nil {
			panic(err)
		}
		return c.Object, nil
	})
}

func FuzzCertificate(f *testing.F) {
	addBodies(f)
	fuzzObject(f, KindCertificate, func(raw []byte) (Object, error) {
		c, err := ParseCertificate(raw, public("ca"))
		if err != nil {
			return Object{}, err
		}
		if err := CheckName(c.Name); err != nil {
			panic(err)
		}
		if _, err := c.Sign(key("ca")); err != nil {
			panic(err)
		}
		return c.Object, nil
	})
}

func FuzzAdmission(f *testing.F) {
	addBodies(f)
	fuzzObject(f, KindAdmission, func(raw []byte) (Object, error) {
		a, err := ParseAdmission(raw)
		if err != nil {
			return Object{}, err
		}
		return a.Object, nil
	})
}

func FuzzRecord(f *testing.F) {
	addBodies(f)
	w := newWorld(f)
	fuzzObject(f, KindRecord, func(raw []byte) (Object, error) {
		r, err := ParseRecord(raw)
		if err != nil {
			return Object{}, err
		}
		if _, err := r.Sign(key("node")); err != nil {
			panic(err)
		}
		_ = r.Verify(w.joined, w.charter.Ranges())
		return r.Object, nil
	})
}

func FuzzRevocation(f *testing.F) {
	addBodies(f)
	w := newWorld(f)
	fuzzObject(f, KindRevocation, func(raw []byte) (Object, error) {
		r, err := ParseRevocation(raw, public("ca"))
		if err != nil {
			return Object{}, err
		}
		if _, err := r.Sign(key("ca")); err != nil {
			panic(err)
		}
		if r.Covers(w.joined) && r.Node != w.joined.ID() && !r.Ends(w.credential) {
			panic("covers a node that it does not name")
		}
		return r.Object, nil
	})
}

func FuzzTombstone(f *testing.F) {
	addBodies(f)
	w := newWorld(f)
	fuzzObject(f, KindTombstone, func(raw []byte) (Object, error) {
		t, err := ParseTombstone(raw)
		if err != nil {
			return Object{}, err
		}
		if _, err := t.Sign(key("founder")); err != nil {
			panic(err)
		}
		_ = t.Verify(w.founder, public("ca"))
		if next := (mesh.Version{Epoch: t.Version.Epoch + 1, Seq: 1}); t.Voids(next, mesh.Lease{ClaimEpoch: next.Epoch}) {
			panic("voids what is claimed after it")
		}
		return t.Object, nil
	})
}

func FuzzRekey(f *testing.F) {
	addBodies(f)
	w := newWorld(f)
	fuzzObject(f, KindRekey, func(raw []byte) (Object, error) {
		r, err := ParseRekey(raw)
		if err != nil {
			return Object{}, err
		}
		if _, err := r.Sign(key("founder")); err != nil {
			panic(err)
		}
		_ = r.Verify(w.founder)
		for _, b := range r.Boxes {
			if !r.For(b.Node) {
				panic("a box is not found")
			}
			if _, err := r.Open(b.Node, [32]byte{1}); err == nil {
				panic("a box opens with any key")
			}
		}
		return r.Object, nil
	})
}

func FuzzToken(f *testing.F) {
	w := newWorld(f)
	f.Add(w.token.String())
	f.Add("meshd1.")
	f.Add("")
	f.Add(string(encode(tokenBody{w.charter.Raw, w.credential.Raw, w.token.Key.Seed(), w.token.GossipKey, nil})))
	f.Fuzz(func(t *testing.T, text string) {
		// Once as it is, and once as what a right checksum covers.
		for _, text := range []string{text, sealRaw([]byte(text))} {
			token, err := ParseToken(text)
			if err != nil {
				continue
			}
			again, err := ParseToken(token.String())
			if err != nil {
				t.Fatal(err)
			}
			if again.String() != token.String() {
				t.Fatal("a token does not write itself as it was read")
			}
		}
	})
}
