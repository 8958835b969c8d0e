package trust

import (
	"errors"
	"slices"
	"testing"

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
