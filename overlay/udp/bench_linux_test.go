package udp

import (
	"fmt"
	"net/netip"
	"testing"
)

// BenchmarkTrains sends trains to itself, and receives them.
func BenchmarkTrains(b *testing.B) {
	for _, size := range []int{100, 1452} {
		for _, count := range []int{1, 8, 44} {
			b.Run(fmt.Sprintf("%d of %d bytes", count, size), func(b *testing.B) {
				g, err := Listen(0, 1)
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = g.Close() }()
				sent, got := Train{Data: make([]byte, size*count), Size: size, Remote: loopback(g, false)}, Train{}
				buf := make([]byte, MaxTrain)
				b.SetBytes(int64(len(sent.Data)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := g.IPv4(0).Send(&sent); err != nil {
						b.Fatal(err)
					}
					if err := g.IPv4(0).Receive(buf, &got); err != nil || len(got.Data) != len(sent.Data) {
						b.Fatalf("received %d bytes, %v", len(got.Data), err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "trains/s")
			})
		}
	}
}

// BenchmarkMany sends 1000 single datagrams to four peers over a wire, which
// receive them: what a call for many of them saves.
func BenchmarkMany(b *testing.B) {
	const datagrams, size = 1000, 128
	from, to := wired(b)
	from.settled(b, false, to)
	s := from.group.IPv4(0)
	var peers []*Socket
	for range 4 {
		peers = append(peers, listenIn(b, to.NS, 0, 1).IPv4(0))
	}
	var trains [datagrams]Train
	for i := range trains {
		port, err := peers[i%4].port()
		if err != nil {
			b.Fatal(err)
		}
		trains[i] = Train{Data: make([]byte, size), Remote: netip.AddrPortFrom(to.addr(false, false), port)}
	}
	bufs, got := make([][]byte, Batch), make([]Train, Batch)
	for i := range bufs {
		bufs[i] = make([]byte, MaxTrain)
	}
	sendOne := func() {
		for i := range trains {
			if _, err := s.Send(&trains[i]); err != nil {
				b.Fatal(err)
			}
		}
	}
	sendMany := func() {
		if _, err := s.SendMany(trains[:]); err != nil {
			b.Fatal(err)
		}
	}
	receiveOne := func() (n int) {
		for _, p := range peers {
			for p.Receive(bufs[0], &got[0]) == nil {
				n++
			}
		}
		return n
	}
	receiveMany := func() (n int) {
		for _, p := range peers {
			for {
				k, err := p.ReceiveMany(bufs, got)
				n += k
				if err != nil || k < Batch {
					break
				}
			}
		}
		return n
	}
	for _, c := range []struct {
		name    string
		send    func()
		receive func() int
		sending bool // is what is measured
	}{
		{"Send", sendOne, receiveMany, true},
		{"SendMany", sendMany, receiveMany, true},
		{"Receive", sendMany, receiveOne, false},
		{"ReceiveMany", sendMany, receiveMany, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !c.sending {
					b.StopTimer()
				}
				c.send()
				if c.sending {
					b.StopTimer()
				} else {
					b.StartTimer()
				}
				if n := c.receive(); n != datagrams {
					b.Fatalf("%d of %d arrived", n, datagrams)
				}
				b.StartTimer()
			}
			b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N*datagrams), "ns/datagram")
		})
	}
}
