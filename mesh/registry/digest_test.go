package registry

import (
	"fmt"
	"math/big"
	"testing"
	"time"

	"meshd/mesh/exchange"
	"meshd/mesh/trust"
)

// The holder of a stolen token, which is revoked now, cannot make certificates that let
// who has not heard of it seem to know the same as who has: if digests were linear, some
// hundred of them would do.
func TestPreparedCertificatesHideNoRevocation(t *testing.T) {
	s := newScene(t)
	knows, lacks := s.r, New(s.charter)
	feed(lacks, knows.Table())
	stolen := s.credential(1, start.Add(24*time.Hour))
	hear(t, knows, s.revocation(trust.Revocation{Credential: stolen.Serial}), s.revocation(trust.Revocation{Node: s.bad.ID()}))
	digest := func(more ...trust.Hash) *big.Int {
		d := exchange.NewSet(append(lacks.Settled(), more...)).Digest()
		return new(big.Int).SetBytes(d[:])
	}
	known := exchange.NewSet(knows.Settled()).Digest()
	var certs []*trust.Certificate
	var steps []*big.Int // what each of them changes of the digest
	for i := range 8*len(known) + 8 {
		c := s.certificate(fmt.Sprint("x", i), stolen)
		certs, steps = append(certs, c), append(steps, new(big.Int).Xor(digest(), digest(c.Hash)))
	}
	which := sumTo(steps, new(big.Int).Xor(digest(), new(big.Int).SetBytes(known[:])))
	if len(which) == 0 {
		t.Fatal("found no certificates to try with")
	}
	for _, i := range which {
		hear(t, lacks, certs[i].Raw)
		if knows.Add(certs[i].Raw) == nil {
			t.Fatal("a certificate by a revoked token is taken in")
		}
	}
	if exchange.NewSet(lacks.Settled()).Digest() == known {
		t.Errorf("%d and %d revocations are known, and nobody sees a difference, by %d certificates", len(lacks.Revocations()), len(knows.Revocations()), len(which))
	}
}

// sumTo finds vectors whose exclusive or is the target, by Gauss' elimination.
func sumTo(vectors []*big.Int, target *big.Int) (which []int) {
	type row struct{ value, from *big.Int } // the vector, and of which it is made
	basis := map[int]row{}                  // by their highest bit
	reduce := func(r row) row {
		for r.value.Sign() != 0 {
			b, ok := basis[r.value.BitLen()]
			if !ok {
				break
			}
			r.value.Xor(r.value, b.value)
			r.from.Xor(r.from, b.from)
		}
		return r
	}
	for i, v := range vectors {
		if r := reduce(row{new(big.Int).Set(v), new(big.Int).SetBit(new(big.Int), i, 1)}); r.value.Sign() != 0 {
			basis[r.value.BitLen()] = r
		}
	}
	r := reduce(row{new(big.Int).Set(target), new(big.Int)})
	for i := range vectors {
		if r.value.Sign() == 0 && r.from.Bit(i) == 1 {
			which = append(which, i)
		}
	}
	return which
}
