package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"meshd/mesh"
)

// ErrToken says that a token cannot be used; the text says why.
var ErrToken = errors.New("token")

// Token is an invitation: all that a new node needs to become a member without
// asking anybody. Who holds it may join until it expires, so it is a secret.
//
//	meshd1.BASE64URL( CBOR map ‖ first 4 bytes of its SHA-256 )
type Token struct {
	Charter    *Charter
	Credential *Credential
	Key        ed25519.PrivateKey // of the credential
	GossipKey  []byte             // 32 bytes, AES-256
	Seeds      []string           // host:port of members' gossip
}

type tokenBody struct {
	Charter    []byte   `cbor:"1,keyasint"`
	Credential []byte   `cbor:"2,keyasint"`
	Seed       []byte   `cbor:"3,keyasint"` // of the credential's Ed25519 key
	GossipKey  []byte   `cbor:"4,keyasint"`
	Seeds      []string `cbor:"5,keyasint,omitempty"`
}

const (
	tokenPrefix  = "meshd1."
	tokenSum     = 4
	maxTokenText = 16 << 10
	maxSeeds     = 16
)

// ofVersion are tokens of any version.
var ofVersion = regexp.MustCompile(`^meshd[0-9]{1,3}\.`)

// GossipKeySize is the length of a gossip key in bytes (AES-256).
const GossipKeySize = 32

// String writes the token in its text form.
func (t *Token) String() string {
	raw := encode(tokenBody{t.Charter.Raw, t.Credential.Raw, t.Key.Seed(), t.GossipKey, t.Seeds})
	sum := sha256.Sum256(raw)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(raw, sum[:tokenSum]...))
}

// ParseToken verifies a token's text: every signature, and that its parts belong
// together. Whether it has expired is for [Token.CheckTime] to say. Errors are
// [ErrToken].
func ParseToken(text string) (*Token, error) {
	t, err := parseToken(strings.TrimSpace(text))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return t, nil
}

func parseToken(text string) (*Token, error) {
	encoded, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		if ofVersion.MatchString(text) {
			return nil, errors.New("it was made by another version of meshd: run that one here, or ask for a token of this one")
		}
		return nil, fmt.Errorf("it does not begin with %q, so it is not a meshd token", tokenPrefix)
	}
	if len(text) > maxTokenText {
		return nil, fmt.Errorf("it is longer than %d characters", maxTokenText)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) <= tokenSum {
		return nil, errors.New("it is damaged: copy it again, whole and on one line")
	}
	raw, check := raw[:len(raw)-tokenSum], raw[len(raw)-tokenSum:]
	if sum := sha256.Sum256(raw); !bytes.Equal(sum[:tokenSum], check) {
		return nil, errors.New("it is truncated or damaged: copy it again, whole and on one line")
	}
	var b tokenBody
	if err := decode(raw, &b); err != nil {
		return nil, err
	}
	t := &Token{GossipKey: b.GossipKey, Seeds: b.Seeds}
	if t.Charter, err = ParseCharter(b.Charter, mesh.ID{}); err != nil {
		return nil, err
	}
	if t.Credential, err = ParseCredential(b.Credential, t.Charter.CA); err != nil {
		return nil, err
	}
	if len(b.Seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%w: key of %d bytes", ErrMalformed, len(b.Seed))
	}
	t.Key = ed25519.NewKeyFromSeed(b.Seed)
	if !t.Credential.Key.Equal(t.Key.Public()) {
		return nil, fmt.Errorf("%w: its key is not its credential's", ErrMalformed)
	}
	if len(t.GossipKey) != GossipKeySize {
		return nil, fmt.Errorf("%w: gossip key of %d bytes", ErrMalformed, len(t.GossipKey))
	}
	if len(t.Seeds) > maxSeeds {
		return nil, fmt.Errorf("%w: %d seeds, at most %d", ErrMalformed, len(t.Seeds), maxSeeds)
	}
	for _, s := range t.Seeds {
		if err := checkText(s, 260); err != nil || s == "" {
			return nil, fmt.Errorf("%w: seed %.40q", ErrMalformed, s)
		}
	}
	return t, nil
}

// clockSkew is how far two hosts without NTP may disagree about the time.
const clockSkew = 10 * time.Minute

// CheckTime tells whether the token may be used now. A clock a little behind the
// token's maker is no obstacle.
func (t *Token) CheckTime(now time.Time) error {
	switch c := t.Credential; {
	case now.After(c.NotAfter):
		return fmt.Errorf("%w: it expired at %s (now %s): ask for a new one, `meshctl token create`", ErrToken, c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.Add(clockSkew).Before(c.NotBefore):
		return fmt.Errorf("%w: it is valid from %s, and this host's clock says %s: set the clock", ErrToken, c.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// Certify signs a certificate for a new node with the token's credential. It
// begins a little before now, or members whose clock is behind this host's would
// not see the node; seniority begins now.
func (t *Token) Certify(identity ed25519.PublicKey, seal mesh.Key, name string, now time.Time) (*Certificate, error) {
	if err := t.CheckTime(now); err != nil {
		return nil, err
	}
	if !matches(t.Credential.NamePattern, name) {
		return nil, fmt.Errorf("%w: it is for nodes named %q, and this one is %q: use --node", ErrToken, t.Credential.NamePattern, name)
	}
	life := t.Credential.MaxCertLife
	begin := t.notBeforeToken(now.Add(-min(clockSkew, life/2)))
	c := Certificate{
		Serial: NewSerial(), Identity: identity, Name: name, SealKey: seal, Rights: t.Credential.Rights,
		NotBefore: begin, NotAfter: begin.Add(life), Admitted: t.notBeforeToken(now), Credential: t.Credential,
	}
	raw, err := c.Sign(t.Key)
	if err != nil {
		return nil, err
	}
	return ParseCertificate(raw, t.Charter.CA)
}

// notBeforeToken gives the time in whole seconds, or when the token begins if
// that is later.
func (t *Token) notBeforeToken(at time.Time) time.Time {
	at = at.Truncate(time.Second)
	if begin := t.Credential.NotBefore; at.Before(begin) {
		return begin
	}
	return at
}

// NewSerial draws a random serial.
func NewSerial() (s Serial) {
	rand.Read(s[:]) // never fails since Go 1.24
	return s
}
