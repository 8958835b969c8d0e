package exchange_test

import (
	"net/netip"
	"testing"
	"time"

	"meshd/mesh/exchange"
	"meshd/mesh/meshtest"
)

// However many members come at once, so many are heard and no more: each may take
// memory. The others are served when these have ended.
func TestManyAtOnce(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		const most = 8
		tunnels := meshtest.NewTunnels()
		node := start(t, tunnels, 1)[0]
		node.SetView(viewOf(0, most+5))
		time.Sleep(time.Minute)
		heard := func(n int) bool {
			conn := connect(t, tunnels, netip.AddrPortFrom(control(n), exchange.AskPort), node.addr)
			_, err := conn.Write(question[:1]) // and says nothing more
			return err == nil
		}
		for n := 1; n < most+5; n++ {
			if want := n <= most; heard(n) != want {
				t.Errorf("member %d of those that come at once is heard: %t, want %t", n, !want, want)
			}
		}
		time.Sleep(5 * time.Second)
		if !heard(most + 1) {
			t.Error("one that comes when the others have ended is not heard")
		}
	})
}
