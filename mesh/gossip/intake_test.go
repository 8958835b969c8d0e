package gossip

import (
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"meshd/mesh/trust"
)

// What was had does not wake the loop, until what the core may have forgotten since is
// to come in again; with something else it does.
func TestWhatWasHad(t *testing.T) {
	var had taken
	i := &instance{ctx: t.Context(), inbox: newInbox(), taken: &had}
	one, two := recordBy(t, 1, 1), recordBy(t, 2, 1)
	arrives := func(objects ...[]byte) bool {
		i.NotifyMsg(encodeObjects(maxState, objects...))
		select {
		case m := <-i.inbox.waiting:
			if len(m.objects) != len(objects) {
				t.Errorf("of %d objects %d came in", len(objects), len(m.objects))
			}
			return true
		default:
			return false
		}
	}
	for range 2 {
		if !arrives(one) {
			t.Error("what the core has not had yet does not come in")
		}
	}
	had.has(sha256.Sum256(one), time.Now()) // begins to remember
	had.add(sha256.Sum256(one))
	if arrives(one) {
		t.Error("what was had comes in")
	}
	if !arrives(one, two) {
		t.Error("what is new does not come in with what was had")
	}
	had.since = time.Now().Add(-takenFor)
	if !arrives(one) {
		t.Error("what was had long ago does not come in")
	}
}

// Others are asked at once whether they know of a revocation, as of nothing else that
// gossip brings.
func TestRevocationIsUrgent(t *testing.T) {
	for kind := trust.KindCharter; kind <= trust.KindRekey; kind++ {
		object := slices.Clone(recordBy(t, 1, 1))
		object[1] = byte(kind)
		if got, err := trust.KindOf(object); got != kind || err != nil {
			t.Fatalf("made kind %d, not %d, error %v", got, kind, err)
		}
		l, _ := exchanging(t)
		if !l.take(object) {
			t.Fatalf("kind %d is not taken as news", kind)
		}
		if want := kind == trust.KindRevocation; l.speech.urgent != want {
			t.Errorf("kind %d is urgent: %t, want %t", kind, l.speech.urgent, want)
		}
	}
}

func TestRest(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0:                     stepEvery,
		stepEvery / stepRest:  stepEvery,
		20 * time.Millisecond: stepRest * 20 * time.Millisecond,
		time.Minute:           longestRest,
	} {
		if got := rest(stepEvery, took); got != want {
			t.Errorf("after %s it rests for %s, want %s", took, got, want)
		}
	}
}
