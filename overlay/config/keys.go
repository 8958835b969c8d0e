package config

import (
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// effect says when a change of a key in the file takes effect.
type effect int

const (
	onReload effect = iota
	onRestart
	onJoin // the name is in the certificate
)

func (e effect) String() string {
	return [...]string{onReload: "reload", onRestart: "restart", onJoin: "join"}[e]
}

// key is all that there is to say about one key of the file. A key without a
// value is a section: about holds for the keys below it.
type key struct {
	path   string
	about  string // what it means, in sentences
	effect effect
	value

	// For a default that only the host can tell:
	absent string // what it is, in words
	sample string // stands in the template in its place
}

// keys is the whole configuration file, in the order in which it is written.
// The parser, the template, the reference and the list of changes are made of it.
var keys = []key{
	{path: "node", about: "This node, as the other members see it."},
	{path: "node.name", effect: onJoin, absent: "the first part of the hostname", sample: "alpha",
		about: "How this node is called in the mesh; without it, the first part of the hostname. It is part of the certificate.",
		value: scalar(func(c *Config) *string { return &c.Node.Name }, parseName, strconv.Quote,
			`1 to 63 of a-z, 0-9 and "-", which neither begins nor ends it`)},
	{path: "node.labels", effect: onReload,
		about: "Words by which people sort nodes, such as {site: fra}.",
		value: labels()},
	{path: "seeds", effect: onReload,
		about: "Members to ask first, besides those in the token; port 51881 if left out.",
		value: list(func(c *Config) *[]string { return &c.Seeds }, ParseSeed,
			func(_ *Config, s string) string { return s }, maxSeeds, seedForm)},
	{path: "listen", about: "Where the daemon receives. Open both ports in the firewall."},
	{path: "listen.tunnel", effect: onRestart,
		about: "UDP: encrypted traffic, on all addresses.",
		value: scalar(func(c *Config) *netip.AddrPort { return &c.Listen.Tunnel }, parseTunnel, address, tunnelForm)},
	{path: "listen.gossip", effect: onRestart,
		about: "UDP and TCP: who is there, who owns what. Without an IP, on all addresses.",
		value: scalar(func(c *Config) *netip.AddrPort { return &c.Listen.Gossip }, parseListen, address, listenForm)},
	{path: "advertise", effect: onReload,
		about: "Addresses at which peers reach the tunnel: needed behind a port forwarding. Empty: those of the interfaces.",
		value: advertise()},
	{path: "state_dir", effect: onRestart,
		about: "Identity, certificate, lease and known peers; only the daemon's user reads it.",
		value: scalar(func(c *Config) *string { return &c.StateDir }, parsePath, strconv.Quote, "an absolute path")},
	{path: "control", effect: onRestart,
		about: "Socket for meshctl (mode 0660).",
		value: scalar(func(c *Config) *string { return &c.Control }, parseSocket, strconv.Quote, "an absolute path of at most 107 bytes")},
	{path: "http", effect: onReload,
		about: `Metrics and health over HTTP: /metrics, /healthz and /readyz. "" is off.`,
		value: scalar(func(c *Config) *netip.AddrPort { return &c.HTTP }, orOff(parseListen), address, listenForm+`, or "" for off`)},
	{path: "interface", about: "The TUN device."},
	{path: "interface.name", effect: onRestart,
		about: "Its name, as ip link shows it.",
		value: scalar(func(c *Config) *string { return &c.Interface.Name }, parseInterface, strconv.Quote,
			`1 to 15 letters, digits, ".", "_" and "-", not "lo", "all" or "default"`)},
	{path: "interface.mtu", effect: onReload,
		about: "Its MTU in bytes. auto: from the underlay's.",
		value: scalar(func(c *Config) *int { return &c.Interface.MTU }, parseMTU, mtu, "auto or 1280 to 9000 (IPv6 needs 1280)", "!!int")},
	{path: "interface.offload", effect: onRestart,
		about: "Segmentation and checksum offloads. auto: if the kernel has them.",
		value: choice(func(c *Config) *Offload { return &c.Interface.Offload }, OffloadAuto, OffloadOn, OffloadOff)},
	{path: "engine", effect: onRestart,
		about: "What carries the tunnels: native, or wireguard-go, the reference implementation of WireGuard in Go. auto: native, or with interface.offload off, without which native cannot be, wireguard-go.",
		value: choice(func(c *Config) *Engine { return &c.Engine }, EngineAuto, EngineNative, EngineWireGuardGo)},
	{path: "suite", effect: onRestart,
		about: "Ciphers of the tunnels. auto: AES-256-GCM with each peer if its processor and ours have instructions for it, else ChaCha20-Poly1305. chacha20poly1305: only that, which is WireGuard byte for byte. The engine wireguard-go has no other.",
		value: choice(func(c *Config) *Suite { return &c.Suite }, SuiteAuto, SuiteChaCha20Poly1305)},
	{path: "lease", about: "The subnet of this node."},
	{path: "lease.ttl", effect: onRestart,
		about: "A member that was not heard of for so long may lose its subnet, and one that was off for longer claims its subnet afresh. Each renews its lease 24 times in that time. The same on all nodes.",
		value: scalar(func(c *Config) *time.Duration { return &c.Lease.TTL }, parseTTL, duration, "a duration of at least 1h, such as 24h")},
	{path: "lease.on_conflict", effect: onReload,
		about: "After a lost conflict over the subnet: renumber (take another one), quarantine (keep it for local traffic and wait) or auto (quarantine while containers have addresses of it, else renumber).",
		value: choice(func(c *Config) *OnConflict { return &c.Lease.OnConflict }, OnConflictAuto, OnConflictRenumber, OnConflictQuarantine)},
	{path: "masquerade", effect: onRestart,
		about: "What containers send out of the mesh takes this host's address, so that answers find back. false: it keeps theirs, and whoever is asked needs a route. Within the mesh every packet keeps its address.",
		value: scalar(func(c *Config) *bool { return &c.Masquerade }, parseBool, strconv.FormatBool, "true or false", "!!bool")},
	{path: "subnet_env", effect: onRestart,
		about: `A file that tells programs made for flannel, such as dockerd --bip, its CNI plugin or scripts, of this node's subnet in the network default; flannel's own is /run/flannel/subnet.env. Those give out its addresses then, so meshd itself attaches no container to default on this host. There is a file only while the subnet is held. "" is off.`,
		value: scalar(func(c *Config) *string { return &c.SubnetEnv }, orOff(parsePath), strconv.Quote, `an absolute path, or "" for off`)},
	{path: "docker", about: "The network driver and the IPAM driver for Docker's engine."},
	{path: "docker.socket", effect: onRestart,
		about: `Where the engine asks, as its spec file says: /usr/lib/docker/plugins/meshd.spec. If the default cannot be had, the daemon warns and goes on without; at any other path it has to. "" is off.`,
		value: scalar(func(c *Config) *string { return &c.Docker.Socket }, orOff(parseSocket), strconv.Quote, `an absolute path of at most 107 bytes, or "" for off`)},
	{path: "log", about: "What is written to standard error."},
	{path: "log.level", effect: onReload,
		about: "The least level that is logged.",
		value: scalar(func(c *Config) *slog.Level { return &c.Log.Level }, parseLevel, level, "debug, info, warn or error")},
	{path: "log.format", effect: onReload,
		about: "key=value lines, or one JSON object a line.",
		value: choice(func(c *Config) *LogFormat { return &c.Log.Format }, LogText, LogJSON)},
}

func advertise() value {
	v := list(func(c *Config) *[]netip.AddrPort { return &c.Advertise }, parseAdvertise, advertised, maxSeeds,
		"IP or IP:port at which peers reach this host")
	v.take = takeAdvertise
	return v
}

// split gives the section of a key ("" for none) and its name there.
func (k key) split() (section, name string) {
	if section, name, ok := strings.Cut(k.path, "."); ok {
		return section, name
	}
	return "", k.path
}

func (k key) isSection() bool { return k.read == nil }

// find gives the key that stands below a section under a name.
func find(section, name string) (key, bool) {
	for _, k := range keys {
		if s, n := k.split(); s == section && n == name {
			return k, true
		}
	}
	return key{}, false
}

// names lists what may stand below a section.
func names(section string) string {
	var all []string
	for _, k := range keys {
		if s, n := k.split(); s == section {
			all = append(all, n)
		}
	}
	return strings.Join(all, ", ")
}
