package config

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

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
