package wggo

import (
	"crypto/ecdh"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

// A device has one key, and knows each peer by one. So a key changes in steps, while
// the sessions of the one before carry on:
//
//	         changes its key                     the others
//	0 s      is told; goes on as before
//	...                                          hear of it: a second peer of the device,
//	                                             without prefixes, beside the one that is
//	3 s      takes the new key; the sessions
//	         receive only, so the next packet
//	         makes another                  ──►  the second peer is heard of: it gets the
//	                                             prefixes, and the first one goes
//
// That is answered only then. What is under way to the first peer in that moment is
// lost.
const (
	// goOverAfter: the others have heard of the key by then, or must do without a
	// session until they have.
	goOverAfter = 3 * time.Second
	// askAfter: a peer that has not initiated by itself, since it has nothing to send
	// or its engine needs no other session, is asked for one then.
	askAfter = 2 * goOverAfter
	// askEvery: and asked again, since it does not answer before it has the key.
	askEvery = 500 * time.Millisecond
	// moveAfter: a peer that is not heard of gets the prefixes all the same.
	moveAfter = 30 * time.Second
	// changeEvery is how often is looked whether a peer has gone over. It takes a
	// millisecond for 200 peers.
	changeEvery = 20 * time.Millisecond
)

// ownKey is the key of this end.
type ownKey struct {
	private tunnel.PrivateKey
	public  mesh.Key
	next    tunnel.PrivateKey // to come; zero: none
	at      time.Time         // when
}

// setKey takes a key at once.
func (e *Engine) setKey(key tunnel.PrivateKey) error {
	private, err := ecdh.X25519().NewPrivateKey(key[:])
	if err != nil {
		return fmt.Errorf("read private key: %w", err)
	}
	if err := e.device.IpcSet("private_key=" + hex.EncodeToString(key[:]) + "\n"); err != nil {
		return err
	}
	e.own = ownKey{private: key, public: mesh.Key(private.PublicKey().Bytes())}
	return nil
}

// planKeys begins to go over to another key, and looks after peers that do.
func (e *Engine) planKeys(want tunnel.PrivateKey) error {
	none := tunnel.PrivateKey{}
	switch {
	case want == none || want == e.own.next:
	case want == e.own.private:
		e.own.next = none
	case len(e.peers) == 0:
		return e.setKey(want)
	default:
		e.own.next, e.own.at = want, time.Now().Add(goOverAfter)
	}
	changing := e.changing()
	e.bind.delays.Store(changing)
	if changing {
		select {
		case e.hurry <- struct{}{}:
		default:
		}
	}
	return nil
}

// changing tells whether some key is.
func (e *Engine) changing() bool {
	for _, p := range e.peers {
		if !p.former.IsZero() {
			return true
		}
	}
	return e.own.next != tunnel.PrivateKey{}
}

// changeKeys does what is due, and tells whether something is left to do.
func (e *Engine) changeKeys(now time.Time) bool {
	left := e.changeKeysOnce(now)
	e.bind.release()
	return left
}

func (e *Engine) changeKeysOnce(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer func() { e.bind.delays.Store(e.changing()) }()
	if e.own.next != (tunnel.PrivateKey{}) && !now.Before(e.own.at) {
		if err := e.setKey(e.own.next); err != nil {
			e.log.Warn("tunnel key not changed, trying on", "err", err)
		}
		for _, p := range e.peers {
			if !p.former.IsZero() { // two that change at once may wait for each other
				p.asked = now.Add(-askEvery)
			}
		}
		e.bind.yield(e.own.public, e.peers)
	}
	states, err := e.readDevice()
	if err != nil {
		return e.changing()
	}
	for key, p := range e.peers {
		if p.former.IsZero() {
			continue
		}
		if states[key].RxBytes > 0 || now.Sub(p.since) >= moveAfter {
			e.move(key, p)
		} else if now.Sub(p.asked) >= askEvery && (!p.asked.IsZero() || now.Sub(p.since) >= askAfter) {
			p.asked = now
			if d := e.device.LookupPeer(device.NoisePublicKey(key)); d != nil {
				d.ExpireCurrentKeypairs()           // else it waits for the answer to the last
				_ = d.SendHandshakeInitiation(true) // the device logs
			}
		}
	}
	return e.changing()
}

// move gives the prefixes of a peer to its new key, and ends the former one.
func (e *Engine) move(key mesh.Key, p *peer) {
	var ops strings.Builder
	fmt.Fprintf(&ops, "public_key=%s\nupdate_only=true\n", hex.EncodeToString(key[:]))
	for _, a := range p.want.AllowedIPs {
		fmt.Fprintf(&ops, "allowed_ip=%s\n", a)
	}
	fmt.Fprintf(&ops, "public_key=%s\nupdate_only=true\nremove=true\n", hex.EncodeToString(p.former[:]))
	if err := e.device.IpcSet(ops.String()); err != nil {
		return // only a closed device refuses
	}
	p.former = mesh.Key{}
}
