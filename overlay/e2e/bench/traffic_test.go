//go:build linux

package main

import (
	"net/netip"
	"testing"
	"time"

	"meshd/tun/netns"
)

// What the generator sends over loopback arrives, at the rate that was asked for,
// and only what belongs to the trial counts.
func TestTraffic(t *testing.T) {
	netns.RequireRoot(t) // larger buffers than the system allows
	local := netip.MustParseAddr("127.0.0.1")
	tr := &traffic{}
	do := func(o order) answer {
		t.Helper()
		a, err := tr.carryOut(o)
		if err != nil {
			t.Fatalf("%s: %v", o.Do, err)
		}
		return a
	}
	// received waits until the receiver has looked.
	received := func(want int64) int64 {
		var got int64
		for range 100 {
			if got = do(order{Do: "count"}).Packets; got >= want {
				break
			}
			<-time.After(10 * time.Millisecond)
		}
		return got
	}

	port := do(order{Do: "listen", At: addrPort(local, 0)}).Port
	to := addrPorts([]netip.Addr{local}, port)
	for _, flows := range []int{1, 7} {
		trial := uint32(100 + flows)
		do(order{Do: "expect", Trial: trial})
		do(order{Do: "send", To: to, Trial: trial + 1, Size: 64, Flows: 1, Rate: 1000, For: 20 * time.Millisecond})
		sent := do(order{Do: "send", To: to, Trial: trial, Size: 64, Flows: flows, Rate: 10000, For: 100 * time.Millisecond})
		// More would be too fast; how much less depends on the machine.
		if most := int64(10000*sent.Took.Seconds()) + batch; sent.Packets > most || sent.Packets == 0 {
			t.Errorf("%d flows: %d packets were sent in %v, want at most %d", flows, sent.Packets, sent.Took, most)
		}
		if got := received(sent.Packets); got != sent.Packets {
			t.Errorf("%d flows: %d of %d packets count", flows, got, sent.Packets)
		}
	}
	flood := do(order{Do: "send", To: to, Trial: 1, Size: 64, Flows: 1, For: 20 * time.Millisecond})
	if flood.Packets < batch {
		t.Errorf("without a limit, %d packets were sent", flood.Packets)
	}
	do(order{Do: "silence"})

	echo := do(order{Do: "echo", At: addrPort(local, 0)}).Port
	pings := do(order{Do: "ping", To: addrPorts([]netip.Addr{local}, echo), Size: 64, Count: 20, For: 10 * time.Second})
	if len(pings.RTT) != 20 || pings.Lost != 0 {
		t.Errorf("%d pings came back, %d were lost", len(pings.RTT), pings.Lost)
	}
	if _, err := tr.carryOut(order{Do: "dance"}); err == nil {
		t.Error("an unknown order was carried out")
	}
}
