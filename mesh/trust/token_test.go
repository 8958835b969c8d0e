package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
)

func TestDamagedToken(t *testing.T) {
	text := newWorld(t).token.String()
	if _, err := ParseToken(text); err != nil {
		t.Fatal(err)
	}
	for i := range text {
		if _, err := ParseToken(text[:i]); !errors.Is(err, ErrToken) {
			t.Fatalf("cut to %d characters: %v", i, err)
		}
		for _, c := range "A-z0 ." {
			if byte(c) == text[i] || c == ' ' && i == 0 {
				continue
			}
			if _, err := ParseToken(text[:i] + string(c) + text[i+1:]); !errors.Is(err, ErrToken) {
				t.Fatalf("character %d changed to %q: %v", i, c, err)
			}
		}
	}
	// The last character carries unused bits; they must be zero.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for _, c := range alphabet {
		if byte(c) == text[len(text)-1] {
			continue
		}
		if _, err := ParseToken(text[:len(text)-1] + string(c)); err == nil {
			t.Errorf("last character changed to %q, and accepted", c)
		}
	}
}

func TestForeignTextIsNoToken(t *testing.T) {
	text := newWorld(t).token.String()
	encoded, _ := strings.CutPrefix(text, "meshd1.")
	for name, s := range map[string]string{
		"empty": "", "prefix alone": "meshd1.", "another version": "meshd2." + encoded, "no prefix": encoded,
		"upper case": "MESHD1." + encoded, "kubeadm": "abcdef.0123456789abcdef",
		"twice": text + text, "padded": text + "=", "too long": text + strings.Repeat("A", maxTokenText),
	} {
		if _, err := ParseToken(s); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %v", name, err)
		}
	}
}

// seal writes any body as a token with a right checksum.
func seal(b tokenBody) string { return sealRaw(encode(b)) }

func sealRaw(raw []byte) string {
	raw = bytes.Clone(raw)
	sum := sha256.Sum256(raw)
	return "meshd1." + base64.RawURLEncoding.EncodeToString(append(raw, sum[:4]...))
}

func TestTokenWhosePartsDoNotFit(t *testing.T) {
	w := newWorld(t)
	other, credential := testCharter(), testCredential()
	foreign := must(ParseCharter(must(other.Sign(key("other ca")))(t), mesh.ID{}))(t)
	for name, change := range map[string]func(*tokenBody){
		"charter of another mesh": func(b *tokenBody) { b.Charter = foreign.Raw },
		"no charter":              func(b *tokenBody) { b.Charter = nil },
		"no credential":           func(b *tokenBody) { b.Credential = nil },
		"credential by another":   func(b *tokenBody) { b.Credential = must(credential.Sign(key("other ca")))(t) },
		"another key":             func(b *tokenBody) { b.Seed = key("node").Seed() },
		"short key":               func(b *tokenBody) { b.Seed = b.Seed[:31] },
		"short gossip key":        func(b *tokenBody) { b.GossipKey = b.GossipKey[:16] },
		"17 seeds":                func(b *tokenBody) { b.Seeds = strings.Split(strings.Repeat("a:1,", 16)+"a:1", ",") },
		"seed with a newline":     func(b *tokenBody) { b.Seeds = []string{"a:1\nb:2"} },
		"empty seed":              func(b *tokenBody) { b.Seeds = []string{""} },
		"long seed":               func(b *tokenBody) { b.Seeds = []string{strings.Repeat("a", 261)} },
	} {
		t.Run(name, func(t *testing.T) {
			b := tokenBody{w.charter.Raw, w.credential.Raw, w.token.Key.Seed(), w.token.GossipKey, w.token.Seeds}
			if _, err := ParseToken(seal(b)); err != nil {
				t.Fatal(err)
			}
			change(&b)
			if _, err := ParseToken(seal(b)); !errors.Is(err, ErrToken) {
				t.Errorf("got %v, want ErrToken", err)
			}
		})
	}
}

func TestTokenTime(t *testing.T) {
	token := newWorld(t).token
	begin, end := token.Credential.NotBefore, token.Credential.NotAfter
	for _, c := range []struct {
		name string
		now  time.Time
		says string // empty: usable
	}{
		{"begin", begin, ""},
		{"end", end, ""},
		{"clock a little behind", begin.Add(-9 * time.Minute), ""},
		{"clock far behind", begin.Add(-11 * time.Minute), "set the clock"},
		{"clock of 1970", time.Unix(0, 0), "set the clock"},
		{"expired", end.Add(time.Second), "expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cert, err := token.Certify(public("node"), mesh.Key{1}, "web-1", c.now)
			if c.says != "" {
				if !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := token.Credential.MaxCertLife; cert.NotAfter.Sub(cert.NotBefore) != want || !cert.ValidAt(begin) && !cert.ValidAt(c.now) {
				t.Errorf("valid %s to %s", cert.NotBefore, cert.NotAfter)
			}
		})
	}
}

func TestCertifyBeginsBeforeNow(t *testing.T) {
	for _, c := range []struct {
		name            string
		at, life        time.Duration // after the token's begin; longest life
		begin, admitted time.Duration
	}{
		{"an hour later", time.Hour, time.Hour, 50 * time.Minute, time.Hour},
		{"soon after the token's begin", time.Minute, time.Hour, 0, time.Minute},
		{"clock behind the token's begin", -time.Minute, time.Hour, 0, 0},
		{"life of a minute", time.Hour, time.Minute, time.Hour - 30*time.Second, time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			token := newWorld(t).token
			credential := testCredential()
			credential.MaxCertLife = c.life
			token.Credential = must(ParseCredential(must(credential.Sign(key("ca")))(t), public("ca")))(t)
			cert := must(token.Certify(public("node"), mesh.Key{1}, "web-1", start.Add(c.at)))(t)
			if begin, admitted := cert.NotBefore.Sub(start), cert.Admitted.Sub(start); begin != c.begin || admitted != c.admitted {
				t.Errorf("begins %s, admitted %s after the token's begin, want %s, %s", begin, admitted, c.begin, c.admitted)
			}
			if life := cert.NotAfter.Sub(cert.NotBefore); life != c.life {
				t.Errorf("valid for %s", life)
			}
		})
	}
}

func TestCertifyRefusesName(t *testing.T) {
	token := newWorld(t).token
	for _, name := range []string{"db-1", "", "web-\n", "web-A", "web-"} {
		if _, err := token.Certify(public("node"), mesh.Key{}, name, start); err == nil {
			t.Errorf("name %q accepted", name)
		}
	}
	if _, err := token.Certify(ed25519.PublicKey{1}, mesh.Key{}, "web-1", start); err == nil {
		t.Error("a short identity key accepted")
	}
}
