package config

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"

	"meshd/mesh"
)

const (
	maxName     = 63        // a DNS label (RFC 1035, 2.3.4)
	maxSeeds    = 64        // some that answer are enough, gossip tells the rest
	maxIfName   = 15        // IFNAMSIZ - 1
	maxSocket   = 107       // sizeof(sockaddr_un.sun_path) - 1
	minMTU      = 1280      // no link may carry less than that for IPv6 (RFC 8200, 5)
	maxMTU      = 9000      // jumbo frames; nothing wider was tried
	minLeaseTTL = time.Hour // owners renew hourly; less would expire leases that are in use
)

const (
	labelForm  = "at most 64 printable ASCII characters, no space"
	tunnelForm = `":port"`
	listenForm = `":port" or "IP:port", IPv6 in brackets`
	seedForm   = `"host:port", the host a name or an IP, IPv6 in brackets`
)

// value is how the value of one key is read, handed on and written.
type value struct {
	form string                                    // what is expected
	read func(p *parser, key string, n *yaml.Node) // into the parser's Config, or fails
	take func(to, from *Config)
	show func(c *Config) string // as a file would write it, in one line
}

// scalar makes the value of a key that has one. The texts of parse's errors
// say what a string is or has; form says what is expected. A value of YAML's
// type string is always taken, others as listed.
func scalar[T any](at func(*Config) *T, parse func(string) (T, error), show func(T) string, form string, tags ...string) value {
	return value{
		form: form,
		read: func(p *parser, key string, n *yaml.Node) {
			if v, ok := readScalar(p, key, n, parse, form, tags...); ok {
				*at(p.config) = v
			}
		},
		take: func(to, from *Config) { *at(to) = *at(from) },
		show: func(c *Config) string { return show(*at(c)) },
	}
}

func readScalar[T any](p *parser, key string, n *yaml.Node, parse func(string) (T, error), form string, tags ...string) (v T, ok bool) {
	switch {
	case isNull(n):
		p.fail(n.Line, key, "has no value; expected %s, or leave the key out", form)
		return v, false
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str" && !slices.Contains(tags, n.Tag):
		p.fail(n.Line, key, "is %s; expected %s", typeName(n), form)
		return v, false
	case strings.ContainsFunc(n.Value, isControl):
		p.fail(n.Line, key, "has a control character; expected %s", form)
		return v, false
	}
	v, err := parse(n.Value)
	if err != nil {
		p.fail(n.Line, key, "%s %v; expected %s", quote(n.Value), err, form)
		return v, false
	}
	return v, true
}

// quote shows a value, but not a whole novel.
func quote(s string) string {
	const most = 128
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strconv.Quote(s)
}

// choice makes the value of a key with a few names to choose from.
func choice[T ~string](at func(*Config) *T, choices ...T) value {
	parse := func(s string) (T, error) {
		if !slices.Contains(choices, T(s)) {
			return "", fmt.Errorf("is not a choice")
		}
		return T(s), nil
	}
	return scalar(at, parse, word, oneOf(choices...))
}

func oneOf[T ~string](choices ...T) string {
	names := make([]string, len(choices))
	for i, c := range choices {
		names[i] = string(c)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// list makes the value of a key with a list of strings.
func list[T any](at func(*Config) *[]T, parse func(string) (T, error), show func(*Config, T) string, most int, form string) value {
	return value{
		form: fmt.Sprintf("a list of at most %d, each %s", most, form),
		read: func(p *parser, key string, n *yaml.Node) {
			switch {
			case isNull(n): // a list whose lines are all commented out
				return
			case n.Kind != yaml.SequenceNode:
				p.fail(n.Line, key, "is %s; expected a list, each entry %s", typeName(n), form)
				return
			case len(n.Content) > most:
				p.fail(n.Line, key, "has %d entries; expected at most %d", len(n.Content), most)
				return
			}
			var all []T
			for i, entry := range n.Content {
				key := fmt.Sprintf("%s[%d]", key, i)
				if !p.plain(key, entry) {
					continue
				}
				if v, ok := readScalar(p, key, entry, parse, form); ok {
					all = append(all, v)
				}
			}
			*at(p.config) = all
		},
		take: func(to, from *Config) { *at(to) = *at(from) },
		show: func(c *Config) string {
			var entries []string
			for _, v := range *at(c) {
				entries = append(entries, strconv.Quote(show(c, v)))
			}
			return "[" + strings.Join(entries, ", ") + "]"
		},
	}
}

func labels() value {
	at := func(c *Config) *map[string]string { return &c.Node.Labels }
	return value{
		form: fmt.Sprintf("a mapping of at most %d labels, such as {site: fra}; a name has 1 to %d, a value at most %d printable ASCII characters, no space; %d bytes in all",
			mesh.MaxLabels, mesh.MaxLabelKey, mesh.MaxLabelValue, mesh.MaxLabelBytes),
		read: readLabels,
		take: func(to, from *Config) { *at(to) = *at(from) },
		show: func(c *Config) string {
			var entries []string
			for _, k := range slices.Sorted(maps.Keys(*at(c))) {
				entries = append(entries, strconv.Quote(k)+": "+strconv.Quote((*at(c))[k]))
			}
			return "{" + strings.Join(entries, ", ") + "}"
		},
	}
}

func readLabels(p *parser, key string, n *yaml.Node) {
	switch {
	case isNull(n):
		return
	case n.Kind != yaml.MappingNode:
		p.fail(n.Line, key, "is %s; expected a mapping of labels, such as {site: fra}", typeName(n))
		return
	case len(n.Content)/2 > mesh.MaxLabels:
		p.fail(n.Line, key, "has %d entries; expected at most %d", len(n.Content)/2, mesh.MaxLabels)
		return
	}
	all := map[string]string{}
	p.mapping(key, n, func(name, key string, k, v *yaml.Node) {
		if mesh.CheckLabel(name, "") != nil {
			p.fail(k.Line, key, "is not the name of a label; expected 1 to %d printable ASCII characters, no space", mesh.MaxLabelKey)
			return
		}
		if !p.plain(key, v) {
			return
		}
		if text, ok := readScalar(p, key, v, parseLabel, labelForm); ok {
			all[name] = text
		}
	})
	if err := mesh.CheckLabels(all); err != nil {
		p.fail(n.Line, key, "has %v", err)
		return
	}
	if len(all) > 0 {
		p.config.Node.Labels = all
	}
}

// advertised writes an address without the port that it has by default.
func advertised(c *Config, a netip.AddrPort) string {
	if a.Port() == 0 || a.Port() == c.Listen.Tunnel.Port() {
		return a.Addr().String()
	}
	return a.String()
}

// takeAdvertise keeps a port that was left out the tunnel's.
func takeAdvertise(to, from *Config) {
	to.Advertise = nil
	for _, a := range from.Advertise {
		if a.Port() == from.Listen.Tunnel.Port() {
			a = netip.AddrPortFrom(a.Addr(), to.Listen.Tunnel.Port())
		}
		to.Advertise = append(to.Advertise, a)
	}
}

func word[T ~string](s T) string { return string(s) }

func address(a netip.AddrPort) string { return strconv.Quote(Address(a)) }

func mtu(n int) string {
	if n == 0 {
		return "auto"
	}
	return strconv.Itoa(n)
}

// duration writes 24h0m0s as 24h.
func duration(d time.Duration) string {
	s := d.String()
	if short, ok := strings.CutSuffix(s, "m0s"); ok {
		s = short + "m"
		if short, ok := strings.CutSuffix(s, "h0m"); ok {
			s = short + "h"
		}
	}
	return s
}

func level(l slog.Level) string { return levelNames[l] }

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
		port = DefaultGossipPort
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

func parseHTTP(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, nil
	}
	return parseListen(s)
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

func parseEngine(s string) (Engine, error) {
	switch e := Engine(s); e {
	case EngineAuto, EngineWireGuardGo:
		return e, nil
	case "native":
		return "", fmt.Errorf("is not in this version, which has only wireguard-go")
	default:
		return "", fmt.Errorf("is not an engine")
	}
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
