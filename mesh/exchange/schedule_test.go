package exchange

import (
	"net/netip"
	"testing"
	"time"

	"meshd/mesh"
)

// scheduled is a schedule with as many others, by their numbers.
func scheduled(now time.Time, count int) (*schedule, []*peer) {
	others := map[mesh.NodeID]netip.Addr{}
	for i := range count {
		id := mesh.NodeID{byte(i)}
		others[id] = mesh.ControlAddr(mesh.ID{1}, id)
	}
	s := &schedule{}
	s.set(now, others)
	var all []*peer
	for i := range count {
		all = append(all, s.peers[mesh.NodeID{byte(i)}])
	}
	return s, all
}

// Who was cut off holds nobody for away once somebody answers; who only failed with
// some leaves those alone.
func TestCutOff(t *testing.T) {
	for failures, away := range map[int]bool{lonely - 1: true, lonely: false} {
		now := time.Now()
		s, all := scheduled(now, lonely+1)
		for _, p := range all[:failures] {
			s.failed(now, p, true)
		}
		s.met(now, all[lonely], false)
		for _, p := range all[:failures] {
			if is := now.Before(p.awayTo); is != away {
				t.Errorf("after %d failures and a success one that failed is away: %t, want %t", failures, is, away)
			}
		}
		if hurries := s.news > 0; hurries == away {
			t.Errorf("after %d failures and a success it hurries: %t", failures, hurries)
		}
	}
}

// Who meets nobody tries often, for some time; also who has lost everybody.
func TestEager(t *testing.T) {
	now := time.Now()
	s, all := scheduled(now, lonely)
	pause := func(now time.Time) time.Duration { s.asked(now, nil); return s.at.Sub(now) }
	often := func(what string, now time.Time, want bool) {
		t.Helper()
		if d := pause(now); d < every/2 != want {
			t.Errorf("%s the next exchange is after %s", what, d)
		}
	}
	often("at the start", now, true)
	often("after long without company", now.Add(eager), false)
	s.met(now, all[0], false)
	often("in company", now, false)
	for range lonely - 1 {
		s.failed(now, all[0], false)
	}
	often("after some failures", now, false)
	s.failed(now, all[0], false)
	often("when nobody answers any more", now, true)
	often("when nobody has answered for long", now.Add(eager), false)
}

// Where nothing is new there is less to compare, until somebody does not answer.
func TestCalm(t *testing.T) {
	now := time.Now()
	s, all := scheduled(now, 2)
	s.met(now, all[0], false)
	pause := func(what string, now time.Time, want time.Duration) {
		t.Helper()
		s.asked(now, nil)
		if d := s.at.Sub(now); d < want*3/4 || d > want*5/4 {
			t.Errorf("%s the next exchange is after %s, want about %s", what, d, want)
		}
	}
	pause("soon after a member came", now.Add(stillFor-1), every)
	now = now.Add(stillFor)
	pause("when all is still", now, calm)
	s.failed(now, all[0], false)
	pause("when somebody does not answer", now, every)
	s.met(now, all[1], false)
	pause("when only another one does", now, every)
	s.met(now, all[0], false)
	pause("when it does", now, calm)
	s.met(now, all[1], true)
	for range s.news {
		pause("with news", now, haste)
	}
	pause("soon after news", now, every)
	pause("long after news", now.Add(stillFor), calm)
}

// Who does not answer in time is left alone, a little longer the second time; one
// who refuses at once is not.
func TestAway(t *testing.T) {
	now := time.Now()
	s, all := scheduled(now, 2)
	s.failed(now, all[0], false)
	if !all[0].awayTo.IsZero() {
		t.Error("one that refuses is left alone")
	}
	for _, want := range []time.Duration{firstAway, lastAway, lastAway} {
		s.failed(now, all[0], true)
		if is := all[0].awayTo.Sub(now); is != want {
			t.Errorf("left alone for %s, want %s", is, want)
		}
	}
	for range 20 {
		if p := s.pick(now); p != all[1] {
			t.Fatalf("asked is %v, who is left alone", p)
		}
	}
	s.met(now, all[0], false)
	if !all[0].awayTo.IsZero() {
		t.Error("one that answers is left alone")
	}
}
