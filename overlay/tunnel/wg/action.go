package wg

import (
	"net/netip"
	"time"

	"meshd/mesh"
)

// Action is work for the owner: one of [Send], [Reply], [Use], [Move], [GiveUp],
// [Save].
type Action interface{ isAction() }

type (
	// Send a message to where the peer is now, as often as Copies says: once, unless
	// those before it seem to have been lost.
	Send struct {
		Peer   mesh.Key
		Packet []byte
		Copies int
	}
	// Reply to an address, of which nothing is known.
	Reply struct {
		To     netip.AddrPort
		Packet []byte
	}
	// Use the session for what goes to the peer from now on. Nil: there is none;
	// hold the data, and call Want.
	Use struct {
		Peer    mesh.Key
		Session *Session
	}
	// Move says that the peer has proved to be at that address.
	Move struct {
		Peer     mesh.Key
		Endpoint netip.AddrPort
	}
	// GiveUp says that the peer does not answer: drop the data that waits. The
	// next Want tries again.
	GiveUp struct{ Peer mesh.Key }
	// Save the stamp where the next run finds it, before the actions that follow.
	// It is asked for once a minute at most while the clock runs as it should.
	Save struct{ Stamp time.Time }
)

func (Send) isAction()   {}
func (Reply) isAction()  {}
func (Use) isAction()    {}
func (Move) isAction()   {}
func (GiveUp) isAction() {}
func (Save) isAction()   {}
