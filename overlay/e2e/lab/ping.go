//go:build linux

package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"
)

// Ping sends one ICMP echo request from the host and waits for the reply, for a
// second if ctx has no earlier deadline. It gives the round-trip time.
func (h *Host) Ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return h.echo(ctx, to, 0)
}

// Await sends ICMP echo requests from the host until one is answered, and gives
// the time that it took from the call.
func (h *Host) Await(ctx context.Context, to netip.Addr) (time.Duration, error) {
	start := time.Now()
	_, err := h.echo(ctx, to, 50*time.Millisecond)
	return time.Since(start), err
}

// family is how ICMP echo works for one family of addresses.
type family struct {
	network        string // for net.ListenPacket
	request, reply byte   // types of messages (RFC 792, RFC 4443)
}

var (
	icmp4 = family{"ip4:icmp", 8, 0}
	icmp6 = family{"ip6:ipv6-icmp", 128, 129}
)

func familyOf(a netip.Addr) family {
	if a.Is6() {
		return icmp6
	}
	return icmp4
}

// echo sends a request, and another one after each interval unless that is
// zero, until a reply comes or ctx is done.
func (h *Host) echo(ctx context.Context, to netip.Addr, every time.Duration) (time.Duration, error) {
	fail := func(err error) (time.Duration, error) {
		return 0, fmt.Errorf("ping %s from %s: %w", to, h.Name, err)
	}
	f := familyOf(to)
	c, err := h.ListenPacket(ctx, f.network, "")
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()

	// Every raw socket gets every reply: the number tells ours.
	id := rand.Uint64()
	var sent []time.Time
	var sendErr error
	buf := make([]byte, 1500)
	for {
		sent = append(sent, time.Now()) // before: the reply may be there when WriteTo returns
		_, sendErr = c.WriteTo(echoMessage(f.request, id, len(sent)-1), &net.IPAddr{IP: to.AsSlice()})
		if sendErr != nil && every == 0 {
			return fail(sendErr)
		}
		if every > 0 {
			_ = c.SetReadDeadline(time.Now().Add(every))
		}
		for {
			if ctx.Err() != nil {
				return fail(errors.Join(errors.New("no reply"), context.Cause(ctx), sendErr))
			}
			n, _, err := c.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
				break // the next request
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return fail(err)
			}
			if seq, ok := echoSeq(buf[:n], f.reply, id); ok && seq < len(sent) {
				return time.Since(sent[seq]), nil
			}
		}
	}
}

// echoMessage builds an echo request.
//
//	| type | code 0 | checksum | identifier | sequence | id (8 bytes) |
func echoMessage(kind byte, id uint64, seq int) []byte {
	m := []byte{kind, 0, 0, 0}
	m = binary.BigEndian.AppendUint16(m, uint16(id))
	m = binary.BigEndian.AppendUint16(m, uint16(seq))
	m = binary.BigEndian.AppendUint64(m, id)
	var sum uint32 // for IPv6 the kernel overwrites it
	for i := 0; i < len(m); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(m[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(m[2:], ^uint16(sum+sum>>16))
	return m
}

// echoSeq tells whether m is a reply to the request with that id, and to which.
func echoSeq(m []byte, kind byte, id uint64) (int, bool) {
	if len(m) != 16 || m[0] != kind || binary.BigEndian.Uint64(m[8:]) != id {
		return 0, false
	}
	return int(binary.BigEndian.Uint16(m[6:])), true
}
