package status

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
)

// WriteTable prints the document for people, with ages relative to now. Wide
// adds columns and shows every address.
func (d *Document) WriteTable(out io.Writer, now time.Time, wide bool) error {
	t := newTable(out)
	t.row("Mesh", d.meshLine(), "Node", d.nodeLine(now))
	t.row("State", clean(string(d.State)), "Engine", d.engineLine())
	if err := t.flush(); err != nil {
		return err
	}
	if len(d.Attachments) > 0 || len(d.Node.Leases) > 1 || wide && len(d.Node.Leases) > 0 {
		if err := d.writeNetworks(out, now, wide); err != nil {
			return err
		}
	}
	if wide {
		if err := d.writeSelf(out); err != nil {
			return err
		}
	}
	if len(d.Peers) > 0 {
		if err := d.writePeers(out, now, wide); err != nil {
			return err
		}
	}
	if len(d.Health) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	t = newTable(out)
	t.row("HEALTH", "CODE", "MESSAGE")
	for _, f := range d.Health {
		t.row(clean(f.Level), clean(f.Code), clean(f.Message))
	}
	return t.flush()
}

func (d *Document) meshLine() string {
	counts := map[PeerState]int{}
	for _, p := range d.Peers {
		counts[p.State]++
	}
	if d.State == mesh.Ready {
		counts[PeerUp]++ // this node itself
	}
	if d.State == mesh.Unreachable {
		return text(d.Mesh.Name)
	}
	nodes := len(d.Peers) + 1 - counts[PeerLeft]
	words := []string{plural(nodes, "node"), fmt.Sprintf("%d up", counts[PeerUp])}
	for _, s := range []PeerState{PeerIdle, PeerDown, PeerLeft} {
		if counts[s] > 0 {
			words = append(words, fmt.Sprintf("%d %s", counts[s], s))
		}
	}
	return fmt.Sprintf("%s (%s)", text(d.Mesh.Name), strings.Join(words, ", "))
}

// nodeLine has the lease that a node takes first; writeNetworks has all.
func (d *Document) nodeLine(now time.Time) string {
	if len(d.Node.Leases) == 0 {
		return text(d.Node.Name) + "  no lease"
	}
	l := d.Node.Leases[0]
	words := []string{text(d.Node.Name)}
	if len(l.Addresses) > 0 {
		words = append(words, l.Addresses[0].String())
	}
	return strings.Join(append(words, " lease "+leaseLine(l, now)), "  ")
}

func leaseLine(l Lease, now time.Time) string {
	prefixes := join(l.Prefixes, false)
	if l.Since == nil {
		return fmt.Sprintf("%s %s", prefixes, clean(l.State))
	}
	return fmt.Sprintf("%s %s, %s", prefixes, clean(l.State), age(now, *l.Since))
}

func (d *Document) engineLine() string {
	if d.Engine.Name == "" {
		return "-"
	}
	line := clean(d.Engine.Name)
	var suites []string
	for _, p := range d.Peers {
		if p.Suite != "" && p.State != PeerLeft {
			suites = append(suites, clean(p.Suite))
		}
	}
	slices.Sort(suites)
	if suites = slices.Compact(suites); len(suites) > 0 {
		line += fmt.Sprintf(" (%s)", strings.Join(suites, ", "))
	}
	return fmt.Sprintf("%s  MTU %d", line, d.Engine.MTU)
}

// writeNetworks prints what this host has in each network that it uses.
func (d *Document) writeNetworks(out io.Writer, now time.Time, wide bool) error {
	leases := map[string]Lease{}
	for _, l := range d.Node.Leases {
		leases[l.Network] = l
	}
	containers := d.containers()
	names := map[string]bool{}
	for n := range leases {
		names[n] = true
	}
	for n := range containers {
		names[n] = true
	}
	fmt.Fprintln(out)
	t := newTable(out)
	t.row("NETWORK", "ADDRESS", "SUBNET", "STATE", "SINCE", "CONTAINERS")
	for _, n := range slices.Sorted(maps.Keys(names)) {
		l := leases[n]
		t.row(clean(n), join(l.Addresses, wide), join(l.Prefixes, wide), text(l.State), ago(now, l.Since), cmp.Or(containers[n], "0"))
	}
	return t.flush()
}

// containers says by network how many there are: "3", "2 (1 stale)".
func (d *Document) containers() map[string]string {
	sums, odd := map[string]int{}, map[string][]string{}
	for _, c := range d.Attachments {
		sums[c.Network] += c.Count
		if c.State != attach.Live {
			odd[c.Network] = append(odd[c.Network], fmt.Sprintf("%d %s", c.Count, clean(string(c.State))))
		}
	}
	words := map[string]string{}
	for network, n := range sums {
		words[network] = strconv.Itoa(n)
		if len(odd[network]) > 0 {
			words[network] += " (" + strings.Join(odd[network], ", ") + ")"
		}
	}
	return words
}

// writeSelf prints what the two header lines leave out.
func (d *Document) writeSelf(out io.Writer) error {
	fmt.Fprintln(out)
	t := newTable(out)
	t.row("Mesh ID", d.Mesh.ID.String())
	t.row("Node ID", d.Node.ID.String())
	t.row("Epoch", strconv.FormatUint(d.Node.Epoch, 10))
	t.row("Control", optional(d.Node.Control, netip.Addr.String))
	t.row("Certificate", "ends "+optional(d.Node.CertificateEnds, dateText))
	t.row("Gossip key", optional(d.Node.GossipKey, Generations.text))
	return t.flush()
}

func (d *Document) writePeers(out io.Writer, now time.Time, wide bool) error {
	fmt.Fprintln(out)
	t := newTable(out)
	head := []string{"NODE", "ADDRESS", "SUBNET", "PATH", "RTT", "LOSS", "RX", "TX", "SEEN"}
	if wide {
		head = append(head, "STATE", "HANDSHAKE", "SUITE", "CONTROL", "CERTIFICATE", "KEY", "ID")
	}
	t.row(head...)
	for _, p := range d.Peers {
		var prefixes []netip.Prefix
		var addresses []netip.Addr
		for _, l := range p.Leases {
			if l.State == mesh.Released.String() {
				continue // nothing of the peer's is there any more
			}
			prefixes = append(prefixes, l.Prefixes...)
			addresses = append(addresses, l.Addresses...)
		}
		row := []string{
			text(p.Name), join(addresses, wide), join(prefixes, wide), p.pathColumn(),
			optional(p.RTTms, rtt), optional(p.Loss, percent),
			optional(p.RxBytes, bytesText), optional(p.TxBytes, bytesText), ago(now, later(p.LastHandshake, p.LastSeen)),
		}
		if wide {
			row = append(row, clean(string(p.State)), ago(now, p.LastHandshake), text(p.Suite),
				optional(p.Control, netip.Addr.String), optional(p.CertificateEnds, dateText), optional(p.GossipKey, Generations.text), p.ID.String())
		}
		t.row(row...)
	}
	return t.flush()
}

// pathColumn says first what is wrong, if something is.
func (p *Peer) pathColumn() string {
	path := text(p.Path)
	switch {
	case p.State == PeerLeft:
		path = string(p.State)
	case p.Expired != mesh.NotExpired:
		path = clean(string(p.Expired))
	case p.State == PeerDown:
		path = string(p.State)
	}
	if p.Endpoint == nil || p.State == PeerLeft {
		return path
	}
	path += " " + p.Endpoint.String()
	if p.PathMTU != nil {
		path += fmt.Sprintf(" mtu %d", *p.PathMTU)
	}
	return path
}

// table aligns columns two spaces apart.
type table struct{ w *tabwriter.Writer }

func newTable(out io.Writer) table { return table{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)} }

func (t table) row(cells ...string) { fmt.Fprintln(t.w, strings.Join(cells, "\t")) }

func (t table) flush() error { return t.w.Flush() }

// text gives a dash for what is empty.
func text(s string) string { return cmp.Or(clean(s), "-") }

func optional[T any](v *T, show func(T) string) string {
	if v == nil {
		return "-"
	}
	return show(*v)
}

// join lists all items, or only the first.
func join[T fmt.Stringer](items []T, all bool) string {
	if len(items) == 0 {
		return "-"
	}
	if !all {
		return items[0].String()
	}
	words := make([]string, len(items))
	for i, item := range items {
		words[i] = item.String()
	}
	return strings.Join(words, ",")
}

func dateText(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// text is one number in most of a mesh's life.
func (g Generations) text() string {
	if g.Newest == g.Sends {
		return strconv.FormatUint(g.Sends, 10)
	}
	return fmt.Sprintf("%d, has %d", g.Sends, g.Newest)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func rtt(ms float64) string {
	switch {
	case ms < 10:
		return fmt.Sprintf("%.2fms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.1fms", ms)
	}
	return fmt.Sprintf("%.1fs", ms/1000)
}

func percent(ratio float64) string {
	if p := ratio * 100; p > 0 && p < 1 {
		return fmt.Sprintf("%.1f%%", p)
	}
	return fmt.Sprintf("%.0f%%", ratio*100)
}

// bytesText gives three significant digits at most: 9B, 1.2GiB, 340MiB.
func bytesText(n uint64) string {
	v, unit := float64(n), 0
	units := [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	for v >= 1023.5 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	if unit == 0 || v >= 9.95 {
		return fmt.Sprintf("%.0f%s", v, units[unit])
	}
	return fmt.Sprintf("%.1f%s", v, units[unit])
}

// age gives the two largest units: 48s, 3m20s, 5h1m, 3d4h.
func age(now, then time.Time) string {
	d := max(now.Sub(then), 0).Round(time.Second) // a clock that was set back
	s := int64(d / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return two(s/60, "m", s%60, "s")
	case s < 86400:
		return two(s/3600, "h", s%3600/60, "m")
	}
	return two(s/86400, "d", s%86400/3600, "h")
}

func two(a int64, unitA string, b int64, unitB string) string {
	if b == 0 {
		return fmt.Sprintf("%d%s", a, unitA)
	}
	return fmt.Sprintf("%d%s%d%s", a, unitA, b, unitB)
}

func ago(now time.Time, then *time.Time) string {
	return optional(then, func(t time.Time) string { return age(now, t) + " ago" })
}

func later(a, b *time.Time) *time.Time {
	if a == nil || b != nil && b.After(*a) {
		return b
	}
	return a
}

// clean escapes what could fool a terminal. Names are checked where they enter;
// this is the second fence.
func clean(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return s
	}
	quoted := strconv.QuoteToASCII(s)
	return quoted[1 : len(quoted)-1]
}
