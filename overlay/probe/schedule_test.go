package probe

import "testing"

// An answer that comes in no time by the clock is a measurement too: it is not asked for
// again and again. In the simulator, whose networks may have no latency, two nodes once
// probed each other for ever without time going on (seed 21137).
func TestAnswerInNoTime(t *testing.T) {
	s := newSchedule(1)
	s.setMTU(deviceMTU)
	s.set(start, []target{beta})
	asked := 0
	for range 100 {
		for _, o := range s.step(start) {
			if o.Size == size {
				asked++
			}
			s.answer(start, o.Addr, o.ID, o.Size)
		}
	}
	if rtt := s.results()[beta.ID].RTT; asked != 2 || rtt <= 0 { // the first one waited for a handshake
		t.Errorf("asked %d times in an instant, round trip %s", asked, rtt)
	}
}
