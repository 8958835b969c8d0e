package native

import (
	"sync/atomic"

	"meshd/overlay/tunnel"
)

// reason is why packets were dropped.
type reason uint8

const (
	dropSource reason = iota
	dropDestination
	dropMalformed
	dropEndpoint
	dropSpoofed
	dropNoRoute
	dropNoEndpoint
	dropWaiting
	dropTooBig
	dropSend
	dropReceive
	dropSession
	dropForged
	dropReplayed
	dropHandshake
	dropECN
	dropTUN
	reasons // how many there are
)

var reasonNames = [reasons]string{
	dropSource:      tunnel.DropSource,
	dropDestination: tunnel.DropDestination,
	dropMalformed:   tunnel.DropMalformed,
	dropEndpoint:    tunnel.DropEndpoint,
	dropSpoofed:     tunnel.DropSpoofed,
	dropNoRoute:     tunnel.DropNoRoute,
	dropNoEndpoint:  tunnel.DropNoEndpoint,
	dropWaiting:     tunnel.DropWaiting,
	dropTooBig:      tunnel.DropTooBig,
	dropSend:        tunnel.DropSend,
	dropReceive:     tunnel.DropReceive,
	dropSession:     tunnel.DropSession,
	dropForged:      tunnel.DropForged,
	dropReplayed:    tunnel.DropReplayed,
	dropHandshake:   tunnel.DropHandshake,
	dropECN:         tunnel.DropECN,
	dropTUN:         tunnel.DropTUN,
}

// drops counts packets by why they were dropped.
type drops [reasons]atomic.Uint64

func (d *drops) add(r reason, n int) { d[r].Add(uint64(n)) }

func (d *drops) snapshot() map[string]uint64 {
	out := make(map[string]uint64, reasons)
	for r, name := range reasonNames {
		out[name] = d[r].Load()
	}
	return out
}
