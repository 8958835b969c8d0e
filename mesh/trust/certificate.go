package trust

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
)

// Serial identifies a credential or a certificate; it is random.
type Serial [16]byte

// String gives 32 hexadecimal digits.
func (s Serial) String() string { return fmt.Sprintf("%x", s[:]) }

// Rights limit what a member may lease. Both empty: any subnet of the mesh.
type Rights struct {
	Ranges []netip.Prefix // it may lease only from these
	Pins   []netip.Prefix // it may lease exactly these, and nothing else
}

// Permit tells whether the rights allow a lease of these prefixes. With pins, one
// of them must be pinned. Else a family of which the rights say nothing is
// allowed, since the charter ties the subnets of one slot together.
func (r Rights) Permit(prefixes []netip.Prefix) bool {
	if len(r.Pins) > 0 && !r.Pinned(prefixes) {
		return false
	}
	for _, p := range prefixes {
		sameFamily := func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }
		if slices.ContainsFunc(r.Pins, sameFamily) && !slices.Contains(r.Pins, p) {
			return false
		}
		if slices.ContainsFunc(r.Ranges, sameFamily) &&
			!slices.ContainsFunc(r.Ranges, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }) {
			return false
		}
	}
	return true
}

// Pinned tells whether one of the prefixes is pinned. If they are one slot of a
// network, and permitted, then it is the pinned slot.
func (r Rights) Pinned(prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return slices.Contains(r.Pins, p) })
}

// within tells whether r allows nothing that outer forbids. Pins must be the
// same: a pin beats every lease that is not pinned, so a token that names none
// must not let its holder choose one.
func (r Rights) within(outer Rights) bool {
	return slices.Equal(r.Pins, outer.Pins) &&
		(len(outer.Ranges) == 0 || slices.Equal(r.Ranges, outer.Ranges))
}

func (r Rights) check() error {
	if len(r.Ranges) > 4 || len(r.Pins) > 4 {
		return fmt.Errorf("%w: more than 4 ranges or pins", ErrMalformed)
	}
	for _, p := range slices.Concat(r.Ranges, r.Pins) {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return fmt.Errorf("%w: %s is not a prefix without host bits", ErrMalformed, p)
		}
	}
	return nil
}

// Credential is a narrow right to make certificates, signed by the CA. Its
// private key travels in a token.
type Credential struct {
	Object
	Serial      Serial
	Key         ed25519.PublicKey
	Rights      Rights
	NamePattern string // of node names, as path.Match knows them; empty: any
	Uses        uint64 // how many nodes may join with it; 0: any number
	NotBefore   time.Time
	NotAfter    time.Time
	MaxCertLife time.Duration // of the certificates that it signs
}

type credentialBody struct {
	Serial      Serial            `cbor:"1,keyasint"`
	Key         ed25519.PublicKey `cbor:"2,keyasint"`
	Ranges      []netip.Prefix    `cbor:"3,keyasint,omitempty"`
	Pins        []netip.Prefix    `cbor:"4,keyasint,omitempty"`
	NamePattern string            `cbor:"5,keyasint,omitempty"`
	Uses        uint64            `cbor:"6,keyasint,omitempty"`
	NotBefore   time.Time         `cbor:"7,keyasint"`
	NotAfter    time.Time         `cbor:"8,keyasint"`
	MaxCertLife uint64            `cbor:"9,keyasint"` // seconds
}

// Sign makes the credential's bytes.
func (c *Credential) Sign(ca ed25519.PrivateKey) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	return sign(ca, KindCredential, credentialBody{
		c.Serial, c.Key, c.Rights.Ranges, c.Rights.Pins, c.NamePattern, c.Uses,
		c.NotBefore.Truncate(time.Second), c.NotAfter.Truncate(time.Second), uint64(c.MaxCertLife / time.Second),
	}), nil
}

// ParseCredential verifies a credential that the CA signed.
func ParseCredential(raw []byte, ca ed25519.PublicKey) (*Credential, error) {
	var b credentialBody
	e, err := parse(raw, KindCredential, &b)
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	if err := e.verify(ca); err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	if b.MaxCertLife > uint64(maxLife/time.Second) {
		return nil, fmt.Errorf("credential: %w: certificates of more than 100 years", ErrMalformed)
	}
	c := &Credential{
		e.Object, b.Serial, b.Key, Rights{b.Ranges, b.Pins}, b.NamePattern, b.Uses,
		b.NotBefore, b.NotAfter, time.Duration(b.MaxCertLife) * time.Second,
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	return c, nil
}

// maxLife keeps durations far from overflow.
const maxLife = 100 * 365 * 24 * time.Hour

func (c *Credential) check() error {
	if len(c.Key) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: key of %d bytes", ErrMalformed, len(c.Key))
	}
	if err := checkTime(c.NotBefore, c.NotAfter); err != nil {
		return err
	}
	if !c.NotBefore.Before(c.NotAfter) {
		return fmt.Errorf("%w: it ends before it begins", ErrMalformed)
	}
	if c.MaxCertLife <= 0 || c.MaxCertLife > maxLife {
		return fmt.Errorf("%w: certificates of %s", ErrMalformed, c.MaxCertLife)
	}
	if err := checkPattern(c.NamePattern); err != nil {
		return err
	}
	return c.Rights.check()
}

// Certificate makes an identity a member. One that the CA signed counts at once;
// one that a token's credential signed counts only with an [Admission].
type Certificate struct {
	Object
	Serial       Serial
	Identity     ed25519.PublicKey
	Name         string
	SealKey      mesh.Key // X25519, for messages sealed to this node
	Rights       Rights
	Capabilities []string
	NotBefore    time.Time
	NotAfter     time.Time
	Admitted     time.Time   // seniority: a lease counts no earlier than this; copied on renewal
	Credential   *Credential // that signed it; nil: the CA did
}

// CapRotate lets a member rotate the gossip key.
const CapRotate = "rotate"

type certificateBody struct {
	Serial       Serial            `cbor:"1,keyasint"`
	Identity     ed25519.PublicKey `cbor:"2,keyasint"`
	Name         string            `cbor:"3,keyasint"`
	SealKey      mesh.Key          `cbor:"4,keyasint"`
	Ranges       []netip.Prefix    `cbor:"5,keyasint,omitempty"`
	Pins         []netip.Prefix    `cbor:"6,keyasint,omitempty"`
	Capabilities []string          `cbor:"7,keyasint,omitempty"`
	NotBefore    time.Time         `cbor:"8,keyasint"`
	NotAfter     time.Time         `cbor:"9,keyasint"`
	Admitted     time.Time         `cbor:"10,keyasint"`
	Credential   []byte            `cbor:"11,keyasint,omitempty"` // signed, as sent
}

// ID is the node's identity.
func (c *Certificate) ID() mesh.NodeID { return IdentityOf(c.Identity) }

// ValidAt tells whether the certificate's window covers the moment.
func (c *Certificate) ValidAt(now time.Time) bool {
	return !now.Before(c.NotBefore) && now.Before(c.NotAfter)
}

// Sign makes the certificate's bytes. The key is the CA's, or, if Credential is
// set, the credential's.
func (c *Certificate) Sign(key ed25519.PrivateKey) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	b := certificateBody{
		Serial: c.Serial, Identity: c.Identity, Name: c.Name, SealKey: c.SealKey,
		Ranges: c.Rights.Ranges, Pins: c.Rights.Pins, Capabilities: c.Capabilities,
		NotBefore: c.NotBefore.Truncate(time.Second), NotAfter: c.NotAfter.Truncate(time.Second),
		Admitted: c.Admitted.Truncate(time.Second),
	}
	if c.Credential != nil {
		b.Credential = c.Credential.Raw
	}
	return sign(key, KindCertificate, b), nil
}

// ParseCertificate verifies a certificate of the mesh whose CA key is given. It
// says nothing about the time of day, see [Certificate.ValidAt], nor about
// admission.
func ParseCertificate(raw []byte, ca ed25519.PublicKey) (*Certificate, error) {
	var b certificateBody
	e, err := parse(raw, KindCertificate, &b)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	c := &Certificate{
		Object: e.Object, Serial: b.Serial, Identity: b.Identity, Name: b.Name, SealKey: b.SealKey,
		Rights: Rights{b.Ranges, b.Pins}, Capabilities: b.Capabilities,
		NotBefore: b.NotBefore, NotAfter: b.NotAfter, Admitted: b.Admitted,
	}
	signer := ca
	if len(b.Credential) > 0 {
		if c.Credential, err = ParseCredential(b.Credential, ca); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		signer = c.Credential.Key
	}
	if err := e.verify(signer); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return c, nil
}

// check verifies the bounds of every field, and that a credential permits them.
func (c *Certificate) check() error {
	if len(c.Identity) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: identity of %d bytes", ErrMalformed, len(c.Identity))
	}
	if err := CheckName(c.Name); err != nil {
		return err
	}
	if err := c.Rights.check(); err != nil {
		return err
	}
	if err := checkWords(c.Capabilities); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if err := checkTime(c.NotBefore, c.NotAfter, c.Admitted); err != nil {
		return err
	}
	life := c.NotAfter.Sub(c.NotBefore)
	if life <= 0 || life > maxLife {
		return fmt.Errorf("%w: valid for %s", ErrMalformed, life)
	}
	cred := c.Credential
	if cred == nil {
		return nil
	}
	switch {
	case life > cred.MaxCertLife:
		return fmt.Errorf("%w: valid for %s, its token allows %s", ErrForbidden, life, cred.MaxCertLife)
	case c.NotBefore.Before(cred.NotBefore) || c.NotBefore.After(cred.NotAfter):
		return fmt.Errorf("%w: begins outside its token's time", ErrForbidden)
	case c.Admitted.Before(cred.NotBefore):
		return fmt.Errorf("%w: seniority from before its token", ErrForbidden)
	case !matches(cred.NamePattern, c.Name):
		return fmt.Errorf("%w: name %s, its token allows %s", ErrForbidden, c.Name, cred.NamePattern)
	case !c.Rights.within(cred.Rights):
		return fmt.Errorf("%w: subnets beyond its token's", ErrForbidden)
	case len(c.Capabilities) > 0:
		return fmt.Errorf("%w: capabilities come from the CA alone", ErrForbidden)
	}
	return nil
}

// checkWords bounds a list of short printable words.
func checkWords(words []string) error {
	if len(words) > 16 {
		return fmt.Errorf("%w: %d words, at most 16", ErrMalformed, len(words))
	}
	for _, w := range words {
		if err := checkText(w, 32); err != nil || w == "" {
			return fmt.Errorf("%w: word %.40q: 1 to 32 printable ASCII characters", ErrMalformed, w)
		}
	}
	return nil
}

// checkText accepts a word of bounded length.
func checkText(s string, most int) error {
	if len(s) > most || !mesh.IsWord(s) {
		return fmt.Errorf("%w: text %.40q: at most %d printable ASCII characters, no space", ErrMalformed, s, most)
	}
	return nil
}
