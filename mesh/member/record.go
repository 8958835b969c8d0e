package member

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// saying is what this node tells of itself.
type saying struct {
	offered   []netip.AddrPort // where the tunnel is
	endpoints []netip.AddrPort // those of them that the others accept

	seq        uint64
	says       *trust.Record // what there is to be told
	published  *trust.Record // what the others were told last; nil: nothing by this run
	again      bool          // it is to be told again, whatever it says
	renewed    time.Time     // when it was told last
	renewAt    time.Time
	quietUntil time.Time // it is too early to speak, unless others were heard
}

// SetEndpoints says where peers can reach this node's tunnel, best first. Those
// that the others would refuse are left out.
func (m *Member) SetEndpoints(endpoints []netip.AddrPort) {
	m.own.offered = slices.Clone(endpoints)
	if usable := m.usable(endpoints); !slices.Equal(m.own.endpoints, usable) {
		m.own.endpoints, m.todo.dirty = usable, true
	}
}

// usable leaves out what the others would refuse.
func (m *Member) usable(endpoints []netip.AddrPort) []netip.AddrPort {
	ranges := m.reg.Charter().Ranges()
	endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(e netip.AddrPort) bool {
		inside := func(r netip.Prefix) bool { return r.Contains(e.Addr()) }
		return trust.CheckEndpoint(e) != nil || slices.ContainsFunc(ranges, inside)
	})
	return endpoints[:min(len(endpoints), trust.MaxEndpoints)]
}

// largest are the prefixes that take most room in a record.
var largest = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}

// tryRecord makes sure, before anything is published, that the largest record can
// be which this node may have to publish with these labels, and leases in these
// networks besides home.
func (m *Member) tryRecord(now time.Time, labels map[string]string, networks []string) error {
	rec := m.newRecord()
	epoch := max(m.state.Epoch, 1<<31) // a clone, or tombstones, may raise it
	rec.Version, rec.Labels, rec.Left = mesh.Version{Epoch: epoch, Seq: 1 << 62}, labels, false
	rec.Uptime, rec.Keys = 10*365*24*time.Hour, trust.Generations{Newest: trust.MaxGeneration, Sends: trust.MaxGeneration}
	rec.Possession = make([]byte, trust.PossessionSize)
	six := netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1}), 1)
	rec.Endpoints = slices.Repeat([]netip.AddrPort{six}, trust.MaxEndpoints)
	for _, name := range append([]string{home}, networks...) {
		rec.Leases = append(rec.Leases, mesh.Lease{Network: name, Prefixes: largest, State: mesh.Held, Since: now, ClaimEpoch: epoch})
	}
	_, err := rec.Sign(m.cfg.Identity)
	return err
}

// publish signs and spreads a new record if what we say of ourselves changed, or
// if it is time to renew it.
func (m *Member) publish(now time.Time) {
	rec := m.newRecord()
	rec.Leases = m.leases()
	rec.Uptime = m.uptime(now)
	if !m.own.again && m.own.published != nil && sameSaying(&rec, m.own.published) && now.Before(m.own.renewAt) {
		return
	}
	if m.own.says = &rec; m.quiet(now) {
		m.wakeAt(m.own.quietUntil)
		if m.own.renewAt.Before(m.own.quietUntil) {
			m.own.renewAt = m.own.quietUntil // or it would stay due until then
		}
		return
	}
	signed, err := rec.Signed(m.cfg.Identity)
	if err != nil {
		// Only labels, endpoints and networks come from outside; New and the setters check them.
		panic(fmt.Sprintf("own record: %v", err))
	}
	m.own.seq++
	m.own.published, m.own.again = &rec, false
	m.noteSpoken(now)
	m.own.renewed, m.own.renewAt, m.away.asleep = now, now.Add(m.renewEvery()), 0
	m.state.Renewed = now.Round(0).UTC().Truncate(time.Second)
	_ = m.reg.AddOwn(signed)
	m.todo.outBound = append(m.todo.outBound, signed.Raw)
}

// newRecord is the next record, without leases.
func (m *Member) newRecord() trust.Record {
	return trust.Record{
		Version: mesh.Version{Epoch: m.state.Epoch, Seq: m.own.seq + 1}, Certificate: m.cert.Hash,
		Nonce: m.cfg.Nonce, Key: m.cfg.TunnelKey, Possession: m.cfg.Possession, Endpoints: m.told(),
		Labels: m.cfg.Labels, Suites: m.cfg.Suites, Left: m.state.Left,
		Keys: trust.Generations{Newest: m.cfg.Keyring.Newest(), Sends: m.cfg.Keyring.Send},
	}
}

// sameSaying compares what two records say, versions aside.
func sameSaying(a, b *trust.Record) bool {
	return a.Left == b.Left && a.Key == b.Key && a.Certificate == b.Certificate && a.Keys == b.Keys && slices.Equal(a.Endpoints, b.Endpoints) && maps.Equal(a.Labels, b.Labels) &&
		slices.EqualFunc(a.Leases, b.Leases, mesh.Lease.Equal)
}
