package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"meshd/mesh"
)

const (
	lower   = "abcdefghijklmnopqrstuvwxyz"
	letters = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
)

func isControl(r rune) bool { return unicode.IsControl(r) }

func parseLabel(s string) (string, error) {
	if mesh.CheckLabel("x", s) != nil {
		return "", fmt.Errorf("is not the value of a label")
	}
	return s, nil
}

func parseName(s string) (string, error) {
	if mesh.CheckName(s) != nil {
		return "", fmt.Errorf("is not a node's name")
	}
	return s, nil
}

// isLabel tells whether s is a DNS label over the given characters.
func isLabel(s, chars string) bool {
	return s != "" && len(s) <= maxName && only(s, chars) && s[0] != '-' && s[len(s)-1] != '-'
}

func only(s, chars string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(chars, r) })
}

// ParseSeed reads "host:port" and gives it in one form: names in lower case,
// IPv6 in brackets, the default gossip port if there was none.
func ParseSeed(s string) (string, error) {
	host, port, err := splitPort(s)
	if err != nil {
		return "", err
	}
	if port == 0 {
		port = defaultGossipPort
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap()
		return netip.AddrPortFrom(addr, port).String(), reachable(addr)
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	const maxHost = 253 // RFC 1035, less the length bytes
	labels := strings.Split(host, ".")
	if len(host) > maxHost || slices.ContainsFunc(labels, func(l string) bool { return !isLabel(l, lower+digits+"-_") }) {
		return "", fmt.Errorf("has no valid host")
	}
	if only(labels[len(labels)-1], digits) { // no such top-level name can exist: a mistyped IPv4
		return "", fmt.Errorf("has neither a name nor an IP")
	}
	return fmt.Sprintf("%s:%d", host, port), nil
}

// splitPort cuts an optional port (else 0) and the brackets of an IPv6 address.
func splitPort(s string) (host string, port uint16, err error) {
	rest := ""
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if host, rest, ok = strings.Cut(inner, "]"); !ok {
			return "", 0, fmt.Errorf(`lacks a "]"`)
		}
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is6() {
			return "", 0, fmt.Errorf("has no IPv6 address in its brackets")
		}
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, rest = s[:i], s[i:]
		if strings.Count(rest, ":") > 1 {
			return "", 0, fmt.Errorf("has several colons, but no brackets")
		}
	} else {
		host = s
	}
	if rest == "" {
		return host, 0, nil
	}
	if rest[0] != ':' {
		return "", 0, fmt.Errorf(`has more after the "]" than a port`)
	}
	port, err = parsePort(rest[1:])
	return host, port, err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("has no port from 1 to 65535")
	}
	return uint16(n), nil
}

// reachable refuses the addresses that cannot lead to one host.
func reachable(a netip.Addr) error {
	switch {
	case a.Zone() != "":
		return fmt.Errorf("has a zone, which only means something on this host")
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("is not the address of one host")
	}
	return nil
}

func parseListen(s string) (netip.AddrPort, error) {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		n, err := parsePort(port)
		return netip.AddrPortFrom(netip.Addr{}, n), err
	}
	host, port, err := splitPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("has no IP address")
	case port == 0:
		return netip.AddrPort{}, fmt.Errorf("has no port")
	case addr.Zone() != "":
		return netip.AddrPort{}, fmt.Errorf("has a zone")
	case addr.IsMulticast():
		return netip.AddrPort{}, fmt.Errorf("is a multicast address")
	}
	return netip.AddrPortFrom(addr.Unmap(), port), nil
}

// parseTunnel takes no address: the engine listens on all of them.
func parseTunnel(s string) (netip.AddrPort, error) {
	a, err := parseListen(s)
	if err == nil && !all(a.Addr()) {
		err = fmt.Errorf("names an address, but the tunnel engine listens on every one of them")
	}
	return a, err
}

// orOff takes an empty string, too.
func orOff[T any](parse func(string) (T, error)) func(string) (T, error) {
	return func(s string) (off T, err error) {
		if s == "" {
			return off, nil
		}
		return parse(s)
	}
}

func parseBool(s string) (bool, error) {
	if s != "true" && s != "false" {
		return false, fmt.Errorf("is neither")
	}
	return s == "true", nil
}

// parseAdvertise leaves the port 0 if there is none: see crossCheck.
func parseAdvertise(s string) (netip.AddrPort, error) {
	addr, err := netip.ParseAddr(s) // IPv6 without brackets is clear here: a port needs them
	var port uint16
	if err != nil {
		var host string
		if host, port, err = splitPort(s); err != nil {
			return netip.AddrPort{}, err
		}
		if addr, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, fmt.Errorf("has no IP address")
		}
	}
	return netip.AddrPortFrom(addr.Unmap(), port), reachable(addr.Unmap())
}

func parsePath(s string) (string, error) {
	switch {
	case !path.IsAbs(s):
		return "", fmt.Errorf("is not absolute")
	case path.Clean(s) == "/":
		return "", fmt.Errorf("is the root directory")
	}
	return path.Clean(s), nil
}

func parseSocket(s string) (string, error) {
	s, err := parsePath(s)
	if err == nil && len(s) > maxSocket {
		err = fmt.Errorf("has %d bytes", len(s))
	}
	return s, err
}

func parseInterface(s string) (string, error) {
	// "all" and "default" are directories of their own below /proc/sys/net.
	if s == "" || len(s) > maxIfName || !only(s, letters+digits+"._-") || slices.Contains([]string{".", "..", "lo", "all", "default"}, s) {
		return "", fmt.Errorf("is not an interface's name")
	}
	return s, nil
}

func parseMTU(s string) (int, error) {
	if s == "auto" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("is not a number of bytes")
	case n < minMTU:
		return 0, fmt.Errorf("is too small")
	case n > maxMTU:
		return 0, fmt.Errorf("is too large")
	}
	return n, nil
}

func parseTTL(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("is not a duration")
	case d < minLeaseTTL:
		return 0, fmt.Errorf("is too short")
	}
	return d, nil
}

func parseLevel(s string) (slog.Level, error) {
	for level, name := range levelNames {
		if s == name {
			return level, nil
		}
	}
	return 0, fmt.Errorf("is not a level")
}

var levelNames = map[slog.Level]string{
	slog.LevelDebug: "debug", slog.LevelInfo: "info", slog.LevelWarn: "warn", slog.LevelError: "error",
}

// crossCheck looks at keys together, and completes one from another.
func (p *parser) crossCheck() {
	c := p.config
	for i, a := range c.Advertise {
		if a.Port() == 0 {
			c.Advertise[i] = netip.AddrPortFrom(a.Addr(), c.Listen.Tunnel.Port())
		}
	}
	// The daemon makes a file of its own at each.
	paths := []struct{ key, path string }{
		{"control", c.Control}, {"subnet_env", c.SubnetEnv}, {"docker.socket", c.Docker.Socket},
	}
	for i, a := range paths {
		for _, b := range paths[:i] {
			if a.path == "" || a.path != b.path {
				continue
			}
			blamed, innocent := a.key, b.key
			if p.lines[blamed] == 0 {
				blamed, innocent = innocent, blamed
			}
			p.fail(p.lines[blamed], blamed, "%s is also the path of %s; expected a path of its own", quote(a.path), innocent)
		}
	}
	// Gossip uses both UDP, as the tunnel, and TCP, as HTTP.
	for _, other := range []struct {
		key  string
		addr netip.AddrPort
	}{{"listen.tunnel", c.Listen.Tunnel}, {"http", c.HTTP}} {
		if !clash(c.Listen.Gossip, other.addr) {
			continue
		}
		// Blame a key that the file has: the other one may be a default.
		blamed, a, innocent := "listen.gossip", c.Listen.Gossip, other.key
		if p.lines[blamed] == 0 {
			blamed, a, innocent = other.key, other.addr, blamed
		}
		p.fail(p.lines[blamed], blamed, "%q is also the port of %s; expected a port of its own", Address(a), innocent)
	}
}

// clash tells whether two sockets cannot listen at the same time.
func clash(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && (a.Addr() == b.Addr() || all(a.Addr()) || all(b.Addr()))
}

func all(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }
