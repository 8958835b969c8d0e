package registry

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"meshd/mesh"
	"meshd/mesh/trust"
)

const (
	// maxGenerations are kept of each signer: sleepers of some months get the key of
	// today, and nobody seals with those before the last two.
	maxGenerations = 4
	// maxParts are kept of one key: boxes for 2048 members. Of more, as when one by
	// one has joined, the newest are kept, and their signer makes another for who
	// lacks it.
	maxParts = 32
)

// decideRekey believes a rekey, refuses it, or lets it wait.
func (r *Registry) decideRekey(k *trust.Rekey) error {
	cert, err := r.signer("rekey", k.Signer, waiting{hash: k.Hash, retry: func() error { return r.decideRekey(k) }})
	if cert == nil {
		return err
	}
	known := r.rekeys[cert.id]
	all := keepRekeys(append(slices.Clone(known), k))
	if !slices.Contains(all, k) || slices.ContainsFunc(known, func(o *trust.Rekey) bool { return o.Hash == k.Hash }) {
		return ErrStale
	}
	if err := k.Verify(cert.Certificate); err != nil {
		return err
	}
	r.rekeys[cert.id] = all
	r.changes++
	return nil
}

// keepRekeys gives those of one signer that are worth room, newest first: a few
// generations, of each one key, of that so many parts. What is dropped does not
// depend on the order of arrival, and nobody pushes out what another has signed.
func keepRekeys(all []*trust.Rekey) []*trust.Rekey {
	slices.SortFunc(all, compareRekeys)
	var out []*trust.Rekey
	generations, parts := 0, 0
	for _, k := range all {
		switch last := len(out) - 1; {
		case last < 0 || out[last].Generation != k.Generation:
			generations, parts = generations+1, 1
		case out[last].KeyID != k.KeyID:
			continue
		default:
			parts++
		}
		if generations > maxGenerations {
			break
		}
		if parts <= maxParts {
			out = append(out, k)
		}
	}
	return out
}

// compareRekeys orders them for use: the newest key first, of that the newest part.
func compareRekeys(a, b *trust.Rekey) int {
	return cmp.Or(
		cmp.Compare(b.Generation, a.Generation), bytes.Compare(b.KeyID[:], a.KeyID[:]),
		b.At.Compare(a.At), a.Hash.Compare(b.Hash),
	)
}

func (r *Registry) setRekeys(signer mesh.NodeID, all []*trust.Rekey) {
	if len(all) == 0 {
		delete(r.rekeys, signer)
		return
	}
	r.rekeys[signer] = all
}

// Rekeys lists those by members who may rotate, the newest key first: of two of one
// generation the one with the larger KeyID. Two signers may have made them.
func (r *Registry) Rekeys() []*trust.Rekey {
	out := slices.Concat(slices.Collect(maps.Values(r.rekeys))...)
	slices.SortFunc(out, compareRekeys)
	return out
}
