// Package config reads the daemon's configuration file.
//
// A [Config] is complete and valid: every key that the file leaves out has its
// default, every address, path and name was checked. What only the running
// host can tell (is the port free, does the directory exist) is not looked at.
//
// Reading is strict, because a key that is silently ignored is found out at
// the worst moment: an unknown key, a wrong type, a second document, an alias
// or a value out of range is an [*Error] with file, line and key. One reading
// reports all of them, joined.
package config

import (
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"
)

// DefaultPath is where the configuration is looked for.
const DefaultPath = "/etc/meshd/config.yaml"

// Default ports. 51820 is every WireGuard's and 7946 Docker Swarm's.
const (
	defaultTunnelPort = 51880 // UDP
	defaultGossipPort = 51881 // UDP and TCP
	DefaultHTTPPort   = 9740  // TCP
)

// defaultDocker is where the spec file that is installed has Docker's engine look.
const defaultDocker = "/run/meshd/docker.sock"

// Config is one daemon's configuration. In every listening address an invalid
// (zero) Addr stands for all addresses of the host; [Address] gives the form
// that package net takes.
type Config struct {
	Node      Node
	Seeds     []string // "host:port", IPv6 in brackets; more than those in the token
	Listen    Listen
	Advertise []netip.AddrPort // where peers reach the tunnel; empty: found on the interfaces
	StateDir  string           // absolute
	Control   string           // control socket; absolute
	HTTP      netip.AddrPort   // metrics and health over HTTP; the zero value: off
	Interface Interface
	Engine    Engine
	Suite     Suite
	Lease     Lease
	// Masquerade: what containers send out of the mesh takes the host's address.
	Masquerade bool
	SubnetEnv  string // where flannel's subnet.env is written; absolute; empty: nowhere
	Docker     Docker
	Log        Log
}

// Node is how this node calls itself.
type Node struct {
	Name   string            // a DNS label in lower case; default: the hostname's first label
	Labels map[string]string // nil: none
}

// Listen is where the daemon receives.
type Listen struct {
	Tunnel netip.AddrPort // UDP
	Gossip netip.AddrPort // UDP and TCP
}

// Interface is the TUN device.
type Interface struct {
	Name    string
	MTU     int // in bytes, 1280 to 9000; 0: derived from the underlay's
	Offload Offload
}

// Lease is the policy for this node's subnet.
type Lease struct {
	TTL        time.Duration // at least an hour
	OnConflict OnConflict
}

// Docker is the door for Docker's engine.
type Docker struct {
	Socket string // absolute; empty: off
}

// Required tells whether the daemon must not run without the socket. At the
// default, which nobody chose, another daemon may listen already, or the folder
// may be another user's: then this host has no door for Docker, and all else.
func (d Docker) Required() bool { return d.Socket != "" && d.Socket != defaultDocker }

// Log is what is logged and how.
type Log struct {
	Level  slog.Level
	Format LogFormat
}

// Offload says whether the TUN device hands over segments larger than the MTU.
type Offload string

// The choices for interface.offload.
const (
	OffloadAuto Offload = "auto" // on where the kernel has it
	OffloadOn   Offload = "on"
	OffloadOff  Offload = "off"
)

// Engine is the implementation of the tunnels.
type Engine string

// The choices for engine.
const (
	EngineAuto        Engine = "auto"
	EngineNative      Engine = "native"
	EngineWireGuardGo Engine = "wireguard-go"
)

// Suite is a choice of ciphers for the tunnels.
type Suite string

// The choices for suite.
const (
	SuiteAuto             Suite = "auto"
	SuiteChaCha20Poly1305 Suite = "chacha20poly1305"
)

// OnConflict says what becomes of a lease that lost a conflict.
type OnConflict string

// The choices for lease.on_conflict.
const (
	OnConflictAuto       OnConflict = "auto" // renumber, but quarantine a subnet that is in use
	OnConflictRenumber   OnConflict = "renumber"
	OnConflictQuarantine OnConflict = "quarantine"
)

// LogFormat is the form of a log line.
type LogFormat string

// The choices for log.format.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// Default gives the configuration of an empty file on this host.
func Default() *Config {
	hostname, _ := os.Hostname() // without one, the name falls back as for an unusable one
	return &Config{
		Node: Node{Name: nameFromHost(hostname)},
		Listen: Listen{
			Tunnel: netip.AddrPortFrom(netip.Addr{}, defaultTunnelPort),
			Gossip: netip.AddrPortFrom(netip.Addr{}, defaultGossipPort),
		},
		StateDir:   "/var/lib/meshd",
		Control:    "/run/meshd/meshd.sock",
		HTTP:       netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), DefaultHTTPPort),
		Interface:  Interface{Name: "mesh0", Offload: OffloadAuto},
		Engine:     EngineAuto,
		Suite:      SuiteAuto,
		Lease:      Lease{TTL: 24 * time.Hour, OnConflict: OnConflictAuto},
		Masquerade: true,
		Docker:     Docker{Socket: defaultDocker},
		Log:        Log{Level: slog.LevelInfo, Format: LogText},
	}
}

// Handler gives the slog handler that writes to w as configured.
func (l Log) Handler(w io.Writer) slog.Handler {
	options := &slog.HandlerOptions{Level: l.Level}
	if l.Format == LogJSON {
		return slog.NewJSONHandler(w, options)
	}
	return slog.NewTextHandler(w, options)
}

// Address writes a listening address as package net takes it: ":51880" for all
// addresses, else "IP:port"; "" for the zero value.
func Address(a netip.AddrPort) string {
	switch {
	case a == netip.AddrPort{}:
		return ""
	case !a.Addr().IsValid():
		return strings.TrimPrefix(netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port()).String(), "0.0.0.0")
	}
	return a.String()
}

// nameFromHost makes a valid node name of a hostname; "node" if nothing of it
// is usable.
func nameFromHost(hostname string) string {
	label, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r == '_' || r == ' ':
			return '-'
		}
		return -1
	}, label)
	clean = strings.Trim(clean[:min(len(clean), maxName)], "-")
	if clean == "" {
		return "node"
	}
	return clean
}
