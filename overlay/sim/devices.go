package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"meshd/mesh/member"
	"meshd/mesh/meshtest"
	"meshd/overlay/probe"
	"meshd/overlay/tunnel/tunneltest"
	"meshd/tun"
	"meshd/tun/tuntest"
)

// disk is the state directory of one life.
type disk struct {
	*meshtest.Store
	l *life
}

func (d disk) SaveState(s member.State) error {
	return d.save(func() error {
		err := d.Store.SaveState(s)
		if err == nil {
			d.l.h.w.truth.save(d.l.h, s)
		}
		return err
	})
}

func (d disk) SaveCharter(c []byte) error {
	return d.save(func() error { return d.Store.SaveCharter(c) })
}

func (d disk) SaveCertificate(c []byte) error {
	return d.save(func() error { return d.Store.SaveCertificate(c) })
}

func (d disk) SaveKeyring(k member.Keyring) error {
	return d.save(func() error { return d.Store.SaveKeyring(k) })
}

func (d disk) SaveTable(t [][]byte) error {
	return d.save(func() error { return d.Store.SaveTable(t) })
}

func (d disk) SavePeers(p []netip.AddrPort) error {
	return d.save(func() error { return d.Store.SavePeers(p) })
}

func (d disk) save(do func() error) error {
	if d.l.dead.Load() {
		return errDead
	}
	return do()
}

// hostNet is the kernel as one life reaches it.
type hostNet struct {
	*tuntest.Kernel
	l *life
}

var errNoLink = errors.New("link mesh0: no such device")

func (n hostNet) Apply(ctx context.Context, want tun.HostState) error {
	h := n.l.h
	if n.l.dead.Load() {
		return errDead
	}
	h.mu.Lock()
	noTUN := h.engine == nil
	h.mu.Unlock()
	if want.Link != "" && noTUN {
		return errNoLink
	}
	err := n.Kernel.Apply(ctx, want)
	if err == nil {
		h.mu.Lock()
		h.guarded = len(want.Routes) > 0
		h.mu.Unlock()
	}
	return err
}

// listen opens a UDP socket of the host.
func (l *life) listen(at netip.AddrPort) (probe.Conn, error) {
	h := l.h
	if !h.kernel.Local(at.Addr()) {
		return nil, fmt.Errorf("listen on %s: cannot assign requested address", at)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if l.dead.Load() || h.sockets[at] != nil {
		return nil, fmt.Errorf("listen on %s: address already in use", at)
	}
	s := &socket{l: l, at: at, in: make(chan datagram, 64), closed: make(chan struct{})}
	h.sockets[at] = s
	return s, nil
}

// socket is a UDP socket of a host.
type socket struct {
	l      *life
	at     netip.AddrPort
	in     chan datagram
	once   sync.Once
	closed chan struct{}
}

type datagram struct {
	from    netip.AddrPort
	payload []byte
}

func (s *socket) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case d := <-s.in:
		return copy(b, d.payload), d.from, nil
	case <-s.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (s *socket) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if s.l.dead.Load() {
		return 0, net.ErrClosed
	}
	s.l.h.route(tunneltest.Inner{Src: s.at, Dst: to, Payload: slices.Clone(b)})
	return len(b), nil
}

func (s *socket) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.l.h.mu.Lock()
		defer s.l.h.mu.Unlock()
		if s.l.h.sockets[s.at] == s {
			delete(s.l.h.sockets, s.at)
		}
	})
	return nil
}
