package wggo

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

// peer is what the engine remembers of a peer beyond what the device knows.
type peer struct {
	want    tunnel.Peer
	learned netip.AddrPort // an endpoint that is not in the list, but once was good
	silent  silence
	owed    renewal

	// former is the key whose device peer still has the prefixes; zero: none has.
	former mesh.Key
	since  time.Time // when the key changed
	asked  time.Time // when it was asked for a session with the new one
}

// carrier is the key of the device peer that has the prefixes.
func (p *peer) carrier(key mesh.Key) mesh.Key {
	if p.former.IsZero() {
		return key
	}
	return p.former
}

// silence is a time in which we tried to reach a peer and heard nothing.
type silence struct {
	since time.Time // zero: none
	rx    uint64    // bytes received until then
}

// renewal is a session that is to be made anew.
type renewal struct {
	until time.Time // zero: none is
	last  time.Time // handshake of the session before
}

// renewFor is how long a session is asked for: the device makes none within
// RekeyTimeout of the handshake before, and repeats by itself one that has begun.
const renewFor = 3 * device.RekeyTimeout

// byKey checks the peers one by one; a bad one must not keep out the others.
// Endpoints inside the mesh are left out.
func byKey(peers []tunnel.Peer, inside prefixes) (map[mesh.Key]tunnel.Peer, error) {
	out := make(map[mesh.Key]tunnel.Peer, len(peers))
	var bad []error
	for _, p := range peers {
		_, twice := out[p.PublicKey]
		switch {
		case p.PublicKey.IsZero():
			bad = append(bad, fmt.Errorf("peer %s has no key", p.ID.Short()))
		case twice:
			bad = append(bad, fmt.Errorf("peer %s has the key of another peer", p.ID.Short()))
		case p.Suite != "" && p.Suite != tunnel.ChaCha20Poly1305:
			bad = append(bad, fmt.Errorf("peer %s has the unknown suite %q", p.ID.Short(), p.Suite))
		default:
			out[p.PublicKey] = normal(p, inside)
		}
	}
	return out, errors.Join(bad...)
}

// normal brings prefixes and endpoints into the form in which the device gives
// them back.
func normal(p tunnel.Peer, inside prefixes) tunnel.Peer {
	p.Endpoints = slices.Clone(p.Endpoints)
	for i, ep := range p.Endpoints {
		p.Endpoints[i] = plain(ep)
	}
	p.Endpoints = slices.DeleteFunc(p.Endpoints, func(ep netip.AddrPort) bool { return inside.contains(ep.Addr()) })
	p.AllowedIPs = slices.Clone(p.AllowedIPs)
	for i, a := range p.AllowedIPs {
		p.AllowedIPs[i] = a.Masked()
	}
	return p
}

// diff gives the peers as they will be, and the operations that lead there in
// wireguard-go's configuration protocol; none if nothing changes. Additions
// come first: adding a prefix to a peer takes it from the one that had it, so it
// is never without an owner.
func diff(have map[mesh.Key]*peer, want map[mesh.Key]tunnel.Peer, now map[mesh.Key]tunnel.PeerStats) (map[mesh.Key]*peer, string) {
	next := make(map[mesh.Key]*peer, len(want))
	var add, remove strings.Builder
	changed := map[mesh.NodeID]mesh.Key{} // keys of peers that have another one now, or are gone
	stay := map[mesh.Key]bool{}           // peers of the device
	for key, p := range have {
		if _, stays := want[key]; !stays {
			changed[p.want.ID] = key
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(want), compareKeys) {
		w := want[key]
		old, known := have[key]
		p := &peer{want: w}
		if known {
			p.former, p.since, p.asked = old.former, old.since, old.asked
		} else if before, ok := changed[w.ID]; ok {
			old = have[before]
			p.former, p.since = old.carrier(before), time.Now()
			endpoint := ""
			if at := now[p.former].Endpoint; at.IsValid() {
				endpoint = "endpoint=" + at.String() + "\n"
			}
			fmt.Fprintf(&add, "public_key=%s\n%s", hex.EncodeToString(key[:]), endpoint)
			known = true
		} else {
			old = &peer{}
		}
		p.learned, p.silent, p.owed = old.learned, old.silent, old.owed
		next[key] = p
		carrier := p.carrier(key)
		stay[key], stay[carrier] = true, true

		adds, removes := minus(w.AllowedIPs, old.want.AllowedIPs), minus(old.want.AllowedIPs, w.AllowedIPs)
		endpoint := ""
		if !slices.Equal(old.want.Endpoints, w.Endpoints) {
			p.silent = silence{}
			if current := now[carrier].Endpoint; !slices.Contains(w.Endpoints, current) && len(w.Endpoints) > 0 {
				endpoint = "endpoint=" + w.Endpoints[0].String() + "\n"
			}
		}
		if !known || endpoint != "" || len(adds) > 0 {
			if endpoint != "" && carrier != key {
				fmt.Fprintf(&add, "public_key=%s\n%s", hex.EncodeToString(key[:]), endpoint)
			}
			fmt.Fprintf(&add, "public_key=%s\n%s", hex.EncodeToString(carrier[:]), endpoint)
			for _, a := range adds {
				fmt.Fprintf(&add, "allowed_ip=%s\n", a)
			}
		}
		if len(removes) > 0 {
			fmt.Fprintf(&remove, "public_key=%s\nupdate_only=true\n", hex.EncodeToString(carrier[:]))
			for _, r := range removes {
				fmt.Fprintf(&remove, "allowed_ip=-%s\n", r)
			}
		}
	}
	gone := map[mesh.Key]bool{}
	for key, p := range have {
		gone[key], gone[p.carrier(key)] = true, true
	}
	for _, key := range slices.SortedFunc(maps.Keys(gone), compareKeys) {
		if !stay[key] {
			fmt.Fprintf(&remove, "public_key=%s\nupdate_only=true\nremove=true\n", hex.EncodeToString(key[:]))
		}
	}
	return next, add.String() + remove.String()
}

func compareKeys(a, b mesh.Key) int { return slices.Compare(a[:], b[:]) }

// minus lists the prefixes of a that are not in b.
func minus(a, b []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(a), func(p netip.Prefix) bool { return slices.Contains(b, p) })
}

// plain makes one form of an address: IPv4 as IPv4.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// readDevice asks the device for its peers.
func (e *Engine) readDevice() (map[mesh.Key]tunnel.PeerStats, error) {
	text, err := e.device.IpcGet()
	if err != nil {
		return nil, err
	}
	return parseDevice(text), nil
}

// parseDevice reads the device's answer. What it does not know, it skips.
func parseDevice(text string) map[mesh.Key]tunnel.PeerStats {
	out := map[mesh.Key]tunnel.PeerStats{}
	var key mesh.Key
	var s tunnel.PeerStats
	var sec, nsec int64
	flush := func() {
		if key.IsZero() {
			return
		}
		if sec != 0 || nsec != 0 {
			s.LastHandshake = time.Unix(sec, nsec)
		}
		out[key] = s
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		switch name {
		case "public_key":
			flush()
			key, s, sec, nsec = mesh.Key{}, tunnel.PeerStats{}, 0, 0
			if raw, err := hex.DecodeString(value); err == nil && len(raw) == len(key) {
				key = mesh.Key(raw)
			}
		case "endpoint":
			if ep, err := netip.ParseAddrPort(value); err == nil {
				s.Endpoint = plain(ep)
			}
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, _ = strconv.ParseInt(value, 10, 64)
		case "rx_bytes":
			s.RxBytes, _ = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			s.TxBytes, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	flush()
	return out
}

// tryNextEndpoints moves silent peers on to their next endpoint: those to whom
// we have been initiating handshakes for longer than our patience, without one
// authenticated byte in return. A peer with a living session is not touched.
func (e *Engine) tryNextEndpoints(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bind.tries.forget(now.Add(-2*device.RekeyTimeout)) == 0 {
		for _, p := range e.peers {
			p.silent = silence{}
		}
		return
	}
	states, err := e.readDevice()
	if err != nil {
		return
	}
	for key, p := range e.peers {
		if !p.former.IsZero() {
			continue // it has two for the moment, and one of them answers
		}
		s := states[key]
		endpoint, move := p.nextEndpoint(s, e.bind.tries.last(s.Endpoint), now, e.patience)
		if !move {
			continue
		}
		op := fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", hex.EncodeToString(key[:]), endpoint)
		if e.device.IpcSet(op) != nil {
			continue // only a closed device refuses
		}
		if d := e.device.LookupPeer(device.NoisePublicKey(key)); d != nil {
			_ = d.SendHandshakeInitiation(true) // the device itself retries, and logs
		}
	}
}

// renewSessions asks for the sessions that are to be made anew, again and again
// until they are: the device leaves out, and forgets, what is asked too soon.
func (e *Engine) renewSessions(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	owed := false
	for _, p := range e.peers {
		if p.owed.until.Before(now) {
			p.owed = renewal{}
		}
		owed = owed || p.owed != renewal{}
	}
	if !owed {
		return
	}
	states, err := e.readDevice()
	if err != nil {
		return
	}
	for key, p := range e.peers {
		if p.owed == (renewal{}) {
			continue
		}
		carrier := p.carrier(key)
		if !states[carrier].LastHandshake.Equal(p.owed.last) {
			p.owed = renewal{}
		} else if d := e.device.LookupPeer(device.NoisePublicKey(carrier)); d != nil {
			_ = d.SendHandshakeInitiation(true) // the device itself retries, and logs
		}
	}
}

// nextEndpoint decides whether to go on to another endpoint. lastTry is when a
// handshake was last initiated at the current one, zero if not of late.
func (p *peer) nextEndpoint(s tunnel.PeerStats, lastTry, now time.Time, patience time.Duration) (netip.AddrPort, bool) {
	if lastTry.IsZero() {
		p.silent = silence{}
		return netip.AddrPort{}, false
	}
	if p.silent.since.IsZero() || p.silent.rx != s.RxBytes {
		p.silent = silence{since: now, rx: s.RxBytes}
		return netip.AddrPort{}, false
	}
	if now.Sub(p.silent.since) < patience {
		return netip.AddrPort{}, false
	}
	candidates := slices.Clone(p.want.Endpoints)
	if !slices.Contains(candidates, s.Endpoint) {
		p.learned = s.Endpoint
	}
	if p.learned.IsValid() && !slices.Contains(candidates, p.learned) {
		candidates = append(candidates, p.learned)
	}
	next := candidates[(slices.Index(candidates, s.Endpoint)+1)%len(candidates)]
	p.silent = silence{since: now, rx: s.RxBytes}
	return next, next != s.Endpoint
}
