package statedir

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// Secret is an X25519 private key. Printing or logging it prints a placeholder.
type Secret [32]byte

// hidden is what is printed instead of a secret.
const hidden = "(hidden)"

// Format implements [fmt.Formatter]: every verb prints a placeholder.
func (Secret) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, hidden) }

// LogValue implements [slog.LogValuer].
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements [encoding.TextMarshaler] with the placeholder, so that
// JSON does not give the key away either.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Public is the key's public half.
func (s Secret) Public() mesh.Key {
	k, err := ecdh.X25519().NewPrivateKey(s[:])
	if err != nil {
		panic(err) // only a wrong length is refused
	}
	return mesh.Key(k.PublicKey().Bytes())
}

// Keys are a node's private keys. Printing or logging them prints the node's ID.
type Keys struct {
	Identity ed25519.PrivateKey // signs; the node's ID is its hash
	Seal     Secret             // opens messages sealed to this node
	Tunnel   Secret             // of the tunnel engine
	// TunnelSeed is what Tunnel was made of; zero: Tunnel is of before there were
	// seeds, and cannot be proved.
	TunnelSeed Secret
}

// NewKeys draws the keys of a new node.
func NewKeys() Keys {
	_, identity, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err) // crypto/rand never fails since Go 1.24
	}
	k := Keys{Identity: identity}
	_, _ = rand.Read(k.Seal[:])
	return k.withTunnel(NewTunnelKey())
}

// NewTunnelKey draws a key of the tunnel engine.
func NewTunnelKey() trust.TunnelKey {
	key, err := trust.DrawTunnelKey(rand.Reader)
	if err != nil {
		panic(err) // crypto/rand never fails since Go 1.24
	}
	return key
}

func (k Keys) withTunnel(key trust.TunnelKey) Keys {
	k.Tunnel, k.TunnelSeed = key.Scalar, key.Seed
	return k
}

// Possession proves that this node has the tunnel key; nil if that cannot be proved.
func (k Keys) Possession() []byte {
	key, err := trust.TunnelKeyOf(k.TunnelSeed)
	if k.TunnelSeed == (Secret{}) || err != nil {
		return nil
	}
	return key.Prove(k.ID())
}

// ID is the node's identity.
func (k Keys) ID() mesh.NodeID {
	return trust.IdentityOf(k.Identity.Public().(ed25519.PublicKey))
}

// Format implements [fmt.Formatter]: every verb prints the ID alone.
func (k Keys) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, k.text()) }

// LogValue implements [slog.LogValuer].
func (k Keys) LogValue() slog.Value { return slog.StringValue(k.text()) }

// MarshalText implements [encoding.TextMarshaler] without the keys.
func (k Keys) MarshalText() ([]byte, error) { return []byte(k.text()), nil }

func (k Keys) text() string {
	if len(k.Identity) != ed25519.PrivateKeySize {
		return "keys of nobody"
	}
	return "keys of " + k.ID().String()
}

// Format implements [fmt.Formatter] without the gossip keys.
func (m Membership) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, m.text()) }

// LogValue implements [slog.LogValuer].
func (m Membership) LogValue() slog.Value { return slog.StringValue(m.text()) }

func (m Membership) text() string {
	return fmt.Sprintf("membership with %d gossip keys and seeds %q", len(m.Keyring.Keys), m.Seeds)
}

// CreateCAKey makes a CA key and writes it to a new file that only its owner can
// read. It never overwrites.
func CreateCAKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("create CA key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("create CA key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create CA key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("create CA key: %w: it may be the key of a mesh: move it away, or name another with --ca", err)
	}
	if err != nil {
		return nil, fmt.Errorf("create CA key: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: pemType, Bytes: der})
	if err := errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path))); err != nil {
		return nil, fmt.Errorf("create CA key: %w", errors.Join(err, os.Remove(path)))
	}
	return key, nil
}

const pemType = "PRIVATE KEY" // PKCS #8, RFC 7468 section 10

// ErrCAKey says that a CA key file cannot be used; the text says why.
var ErrCAKey = errors.New("CA key")

// LoadCAKey reads a CA key. It refuses one that others can read.
func LoadCAKey(path string) (ed25519.PrivateKey, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read CA key: %w: name the file with --ca, or run this on the host that keeps it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w %s has mode %04o, so others may have read it: chmod 600 it, if you trust it still", ErrCAKey, path, mode)
	}
	content, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	block, _ := pem.Decode(content)
	if block == nil || block.Type != pemType {
		return nil, fmt.Errorf("%w %s is not a PEM file with a %s", ErrCAKey, path, pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrCAKey, path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w %s is a %T, not an Ed25519 key", ErrCAKey, path, parsed)
	}
	return key, nil
}
