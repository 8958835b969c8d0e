//go:build linux

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Meter counts what passes a host's port on the switch, in both directions,
// by UDP or TCP port.
type Meter struct {
	fd    *os.File                  // fixed at construction
	ports map[uint16]*atomic.Uint64 // fixed at construction
	rest  atomic.Uint64
	done  sync.WaitGroup
}

// Meter begins to count the host's traffic by the given ports. Call Stop.
func (h *Host) Meter(ports ...uint16) (*Meter, error) {
	fd, err := h.tap(0)
	if err != nil {
		return nil, fmt.Errorf("meter at %s: %w", h.Name, err)
	}
	m := &Meter{fd: fd, ports: map[uint16]*atomic.Uint64{}}
	for _, p := range ports {
		m.ports[p] = new(atomic.Uint64)
	}
	m.done.Go(m.run)
	return m, nil
}

// run counts until Stop. A frame is cut behind the ports; its length is told.
func (m *Meter) run() {
	raw, err := m.fd.SyscallConn()
	if err != nil {
		return
	}
	head := make([]byte, 64)
	for {
		var n int
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, recvErr = unix.Recvfrom(int(fd), head, unix.MSG_TRUNC)
			return !errors.Is(recvErr, unix.EAGAIN)
		})
		if err != nil {
			return
		}
		if recvErr != nil {
			continue
		}
		m.counter(head[:min(n, len(head))]).Add(uint64(n))
	}
}

// counter finds where a frame counts.
//
//	Ethernet 14 │ IPv4 20: protocol at 9  │ source port 2, destination port 2
//	            │ IPv6 40: next header at 6 │
func (m *Meter) counter(frame []byte) *atomic.Uint64 {
	if len(frame) < 14+20+4 {
		return &m.rest
	}
	var protocol byte
	var rest []byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		size := int(frame[14]&15) * 4
		protocol, rest = frame[14+9], frame[min(14+size, len(frame)):]
	case unix.ETH_P_IPV6:
		protocol, rest = frame[14+6], frame[min(14+40, len(frame)):]
	}
	if len(rest) < 4 || protocol != unix.IPPROTO_UDP && protocol != unix.IPPROTO_TCP {
		return &m.rest
	}
	for _, p := range []uint16{binary.BigEndian.Uint16(rest[2:]), binary.BigEndian.Uint16(rest)} {
		if c := m.ports[p]; c != nil {
			return c
		}
	}
	return &m.rest
}

// Bytes is what was counted for a port, Ethernet header included; port 0 stands
// for all that is to none of the ports.
func (m *Meter) Bytes(port uint16) uint64 {
	if port == 0 {
		return m.rest.Load()
	}
	return m.ports[port].Load()
}

// Stop ends the counting.
func (m *Meter) Stop() {
	_ = m.fd.SetReadDeadline(time.Unix(1, 0))
	m.done.Wait()
	m.fd.Close()
}
