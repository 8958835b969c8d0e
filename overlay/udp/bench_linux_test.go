package udp

import (
	"fmt"
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
