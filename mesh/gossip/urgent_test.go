package gossip_test

import (
	"crypto/ed25519"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
)

// A revocation does not wait for the pause after a step to be over, as other news does,
// and what others are told has it at once.
func TestRevocationDoesNotWait(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		s, x := startStepping(t)
		time.Sleep(30 * time.Second)
		revocation, err := (&trust.Revocation{Node: mesh.NodeID{1}, At: time.Now()}).Sign(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
		if err != nil {
			t.Fatal(err)
		}
		for _, object := range [][]byte{[]byte("news"), revocation} {
			x.Hear([]byte("something before " + string(object)))
			synctest.Wait()
			begin := time.Now().Add(time.Millisecond)
			time.Sleep(time.Millisecond)
			x.Hear(object)
			synctest.Wait()
			s.mu.Lock()
			acted := slices.ContainsFunc(s.at, func(at time.Time) bool { return !at.Before(begin) })
			s.mu.Unlock()
			if want := &object[0] == &revocation[0]; acted != want {
				t.Errorf("1 ms after a step it acts on what comes: %v, want %v", acted, want)
			}
			time.Sleep(time.Second)
		}
	})
}
