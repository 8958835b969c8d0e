package gossip

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Whatever members send, little of it waits.
func TestInboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newInbox()
		large := func(kind byte) message { return message{kind: kind, size: maxAnswer} }
		for range 10 * inboxSize {
			b.put(large(msgObjects))
		}
		if n := len(b.waiting); n != inboxBytes/maxAnswer {
			t.Errorf("%d answers of %d bytes wait", n, maxAnswer)
		}
		for range 10 * inboxSize {
			b.put(message{kind: msgWant})
		}
		if n := len(b.waiting); n != inboxSize {
			t.Errorf("%d messages wait", n)
		}

		table := func() bool { return b.putTable(t.Context(), func() message { return large(msgState) }) }
		for n := range inboxTables {
			if !table() {
				t.Errorf("table %d has no room beside the messages", n)
			}
		}
		begin := time.Now()
		if table() || time.Since(begin) != mergeWait {
			t.Errorf("one more waited for %s", time.Since(begin))
		}
		ended, end := context.WithCancel(t.Context())
		end()
		if b.putTable(ended, func() message { return large(msgState) }) {
			t.Error("one is taken in after the end")
		}

		// What is worked off makes room again, for as much and no more.
		for range 3 {
			for range inboxSize + inboxTables {
				b.done(<-b.waiting)
			}
			for range 10 {
				b.put(large(msgObjects))
			}
			if n := len(b.waiting); n != inboxBytes/maxAnswer {
				t.Errorf("%d answers wait afterwards", n)
			}
			for b.put(message{kind: msgWant}) {
			}
			for range inboxTables {
				if !table() {
					t.Error("no room for tables afterwards")
				}
			}
		}
	})
}
