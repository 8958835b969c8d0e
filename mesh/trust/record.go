package trust

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
)

// Admission is a member's testimony: "I saw this certificate at this time".
// Without it an expired, leaked token would admit for ever, since its holder
// dates what it signs.
type Admission struct {
	Object
	Certificate Hash // that was seen
	Admitter    Hash // certificate of the witness
	Seen        time.Time
	env         envelope
}

type admissionBody struct {
	Certificate Hash      `cbor:"1,keyasint"`
	Admitter    Hash      `cbor:"2,keyasint"`
	Seen        time.Time `cbor:"3,keyasint"`
}

// Sign makes the admission's bytes with the witness's identity key.
func (a *Admission) Sign(identity ed25519.PrivateKey) []byte {
	return sign(identity, KindAdmission, admissionBody{a.Certificate, a.Admitter, a.Seen.Truncate(time.Second)})
}

// ParseAdmission reads an admission; [Admission.Verify] decides on it.
func ParseAdmission(raw []byte) (*Admission, error) {
	if len(raw) > MaxBroadcast {
		return nil, fmt.Errorf("admission: %w: %d bytes, at most %d", ErrMalformed, len(raw), MaxBroadcast)
	}
	var b admissionBody
	e, err := parse(raw, KindAdmission, &b)
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	if err := checkTime(b.Seen); err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	return &Admission{e.Object, b.Certificate, b.Admitter, b.Seen, e}, nil
}

// Verify checks that the witness signed it, while its own certificate was valid
// and the credential of the seen certificate open, and that it is another node:
// a member that vouched for itself could make certificates without end. That the
// witness is itself admitted is for the caller to see.
func (a *Admission) Verify(seen, witness *Certificate) error {
	if seen.Hash != a.Certificate || witness.Hash != a.Admitter {
		return fmt.Errorf("admission: %w: it speaks of other certificates", ErrForbidden)
	}
	if seen.Identity.Equal(witness.Identity) {
		return fmt.Errorf("admission: %w: a node vouches for itself", ErrForbidden)
	}
	if err := a.env.verify(witness.Identity); err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	if !witness.ValidAt(a.Seen) {
		return fmt.Errorf("admission: %w: the witness's certificate was not valid then", ErrForbidden)
	}
	if c := seen.Credential; c == nil || a.Seen.Before(c.NotBefore) || a.Seen.After(c.NotAfter) {
		return fmt.Errorf("admission: %w: outside the token's time", ErrForbidden)
	}
	return nil
}

// Record is what a member says of itself.
type Record struct {
	Object
	Version      mesh.Version
	Certificate  Hash
	Nonce        uint64 // random per start of the daemon
	Key          mesh.Key
	Endpoints    []netip.AddrPort
	Leases       []mesh.Lease
	Labels       map[string]string
	Capabilities []string
	Suites       []string
	Left         bool          // the member has left; its leases are released
	Uptime       time.Duration // of the daemon, when it signed this; in seconds
	Keys         Generations   // of the gossip key
	Possession   []byte        // of the private half of Key, see [CheckPossession]; empty: not shown
	proved       bool          // Possession was checked
	env          envelope
}

// Generations of the gossip key that a member works with.
type Generations struct {
	Newest uint64 // that it has and opens messages with
	Sends  uint64 // that it seals messages with
}

type recordBody struct {
	Epoch        uint64            `cbor:"1,keyasint"`
	Seq          uint64            `cbor:"2,keyasint"`
	Certificate  Hash              `cbor:"3,keyasint"`
	Nonce        uint64            `cbor:"4,keyasint"`
	Key          mesh.Key          `cbor:"5,keyasint"`
	Endpoints    []netip.AddrPort  `cbor:"6,keyasint,omitempty"`
	Leases       []leaseBody       `cbor:"7,keyasint,omitempty"`
	Labels       map[string]string `cbor:"8,keyasint,omitempty"`
	Capabilities []string          `cbor:"9,keyasint,omitempty"`
	Suites       []string          `cbor:"10,keyasint,omitempty"`
	Left         bool              `cbor:"11,keyasint,omitempty"`
	Uptime       uint64            `cbor:"12,keyasint,omitempty"` // seconds
	NewestKey    uint64            `cbor:"13,keyasint,omitempty"`
	SendsKey     uint64            `cbor:"14,keyasint,omitempty"`
	Possession   []byte            `cbor:"15,keyasint,omitempty"`
}

type leaseBody struct {
	Network    string          `cbor:"1,keyasint"`
	Prefixes   []netip.Prefix  `cbor:"2,keyasint"`
	State      mesh.LeaseState `cbor:"3,keyasint"`
	Since      time.Time       `cbor:"4,keyasint"`
	ClaimEpoch uint64          `cbor:"5,keyasint"`
}

// Bounds of a record's lists.
const (
	MaxEndpoints = 4
	maxLeases    = 8
	MaxEpoch     = 1 << 62 // so that a higher one is always left
)

// Sign makes the record's bytes with the member's identity key. It fails if the
// record breaks a bound, so that no node publishes what the others refuse.
func (r *Record) Sign(identity ed25519.PrivateKey) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	b := recordBody{
		Epoch: r.Version.Epoch, Seq: r.Version.Seq, Certificate: r.Certificate, Nonce: r.Nonce, Key: r.Key,
		Endpoints: r.Endpoints, Labels: r.Labels, Capabilities: r.Capabilities, Suites: r.Suites, Left: r.Left,
		Uptime: uint64(r.Uptime / time.Second), NewestKey: r.Keys.Newest, SendsKey: r.Keys.Sends, Possession: r.Possession,
	}
	for _, l := range r.Leases {
		l.Since = l.Since.Truncate(time.Second)
		b.Leases = append(b.Leases, leaseBody(l))
	}
	raw := sign(identity, KindRecord, b)
	if len(raw) > maxRecord {
		return nil, fmt.Errorf("record: %w: %d bytes, at most %d (fewer labels would help)", ErrMalformed, len(raw), maxRecord)
	}
	return raw, nil
}

// Signed signs the record, and gives what others read of it. Its signature, of this
// moment, is not checked again.
func (r *Record) Signed(identity ed25519.PrivateKey) (*Record, error) {
	raw, err := r.Sign(identity)
	if err != nil {
		return nil, err
	}
	signed, err := ParseRecord(raw)
	if err != nil {
		return nil, err
	}
	signed.env.by = identity.Public().(ed25519.PublicKey)
	return signed, nil
}

// ParseRecord reads a record; [Record.Verify] decides on it.
func ParseRecord(raw []byte) (*Record, error) {
	if len(raw) > maxRecord {
		return nil, fmt.Errorf("record: %w: %d bytes, at most %d", ErrMalformed, len(raw), maxRecord)
	}
	var b recordBody
	e, err := parse(raw, KindRecord, &b)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	r := &Record{
		Object: e.Object, Version: mesh.Version{Epoch: b.Epoch, Seq: b.Seq}, Certificate: b.Certificate,
		Nonce: b.Nonce, Key: b.Key, Endpoints: b.Endpoints, Labels: b.Labels,
		Capabilities: b.Capabilities, Suites: b.Suites, Left: b.Left,
		Uptime: time.Duration(min(b.Uptime, uint64(maxLife/time.Second))) * time.Second, Keys: Generations{b.NewestKey, b.SendsKey}, Possession: b.Possession, env: e,
	}
	for _, l := range b.Leases {
		r.Leases = append(r.Leases, mesh.Lease(l))
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return r, nil
}

// Verify checks that the holder of the certificate signed the record, that the
// certificate permits its leases, and that no endpoint lies in one of the mesh's
// ranges (tunnel packets would loop into the tunnel).
func (r *Record) Verify(cert *Certificate, ranges []netip.Prefix) error {
	if cert.Hash != r.Certificate {
		return fmt.Errorf("record: %w: another certificate's", ErrForbidden)
	}
	if err := r.env.verify(cert.Identity); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if len(r.Possession) > 0 && !r.proved {
		if !CheckPossession(cert.ID(), r.Key, r.Possession) {
			return fmt.Errorf("record: %w: the tunnel key is not its member's", ErrForbidden)
		}
		r.proved = true
	}
	for _, l := range r.Leases {
		if !cert.Rights.Permit(l.Prefixes) {
			return fmt.Errorf("record: %w: lease of %s beyond its certificate", ErrForbidden, l.Prefixes)
		}
	}
	return r.CheckOutside(ranges)
}

// Follows says that an earlier record is of the same member, and was verified: the
// same proof of the same tunnel key need not be checked again.
func (r *Record) Follows(earlier *Record) {
	r.proved = r.proved || earlier.proved && r.Key == earlier.Key && bytes.Equal(r.Possession, earlier.Possession)
}

// CheckOutside verifies that no endpoint lies in one of the mesh's ranges.
func (r *Record) CheckOutside(ranges []netip.Prefix) error {
	for _, e := range r.Endpoints {
		if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(e.Addr()) }) {
			return fmt.Errorf("record: %w: endpoint %s lies in the mesh's own range", ErrForbidden, e)
		}
	}
	return nil
}

// check verifies the bounds of every field.
func (r *Record) check() error {
	switch {
	case r.Version.Epoch == 0 || r.Version.Epoch > MaxEpoch:
		return fmt.Errorf("%w: epoch %d, 1 to %d", ErrMalformed, r.Version.Epoch, uint64(MaxEpoch))
	case r.Uptime < 0 || r.Uptime > maxLife:
		return fmt.Errorf("%w: up for %s", ErrMalformed, r.Uptime)
	case r.Keys.Sends > r.Keys.Newest || r.Keys.Newest > MaxGeneration:
		return fmt.Errorf("%w: sends with gossip key %d, and %d is its newest", ErrMalformed, r.Keys.Sends, r.Keys.Newest)
	case r.Key.IsZero():
		return fmt.Errorf("%w: no tunnel key", ErrMalformed)
	case len(r.Possession) != 0 && len(r.Possession) != PossessionSize:
		return fmt.Errorf("%w: proof of the tunnel key of %d bytes, not %d", ErrMalformed, len(r.Possession), PossessionSize)
	case len(r.Endpoints) > MaxEndpoints:
		return fmt.Errorf("%w: %d endpoints, at most %d", ErrMalformed, len(r.Endpoints), MaxEndpoints)
	case len(r.Leases) > maxLeases:
		return fmt.Errorf("%w: %d leases, at most %d", ErrMalformed, len(r.Leases), maxLeases)
	}
	for _, e := range r.Endpoints {
		if err := CheckEndpoint(e); err != nil {
			return err
		}
	}
	networks := map[string]bool{}
	for _, l := range r.Leases {
		if err := checkLease(l); err != nil {
			return err
		}
		if networks[l.Network] {
			return fmt.Errorf("%w: two leases in network %s", ErrMalformed, l.Network)
		}
		networks[l.Network] = true
		if l.ClaimEpoch > r.Version.Epoch {
			return fmt.Errorf("%w: lease claimed in epoch %d of %d", ErrMalformed, l.ClaimEpoch, r.Version.Epoch)
		}
		if r.Left && l.State != mesh.Released {
			return fmt.Errorf("%w: left, and yet a lease is %s", ErrMalformed, l.State)
		}
	}
	if err := mesh.CheckLabels(r.Labels); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := checkWords(r.Capabilities); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if err := checkWords(r.Suites); err != nil {
		return fmt.Errorf("suites: %w", err)
	}
	return nil
}

// CheckEndpoint verifies that an address may stand in a record as an endpoint.
func CheckEndpoint(e netip.AddrPort) error {
	a := e.Addr()
	if !e.IsValid() || e.Port() == 0 || a.Is4In6() || a.Zone() != "" || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() {
		return fmt.Errorf("%w: endpoint %s", ErrMalformed, e)
	}
	return nil
}

func checkLease(l mesh.Lease) error {
	if err := CheckName(l.Network); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	if l.State < mesh.Pending || l.State > mesh.Released {
		return fmt.Errorf("%w: lease state %d", ErrMalformed, l.State)
	}
	if err := checkTime(l.Since); err != nil {
		return err
	}
	if len(l.Prefixes) == 0 || len(l.Prefixes) > 2 {
		return fmt.Errorf("%w: lease of %d prefixes, 1 or 2", ErrMalformed, len(l.Prefixes))
	}
	for i, p := range l.Prefixes {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return fmt.Errorf("%w: lease of %s", ErrMalformed, p)
		}
		if i > 0 && p.Addr().Is4() == l.Prefixes[0].Addr().Is4() {
			return fmt.Errorf("%w: lease of two prefixes of one family", ErrMalformed)
		}
	}
	return nil
}
