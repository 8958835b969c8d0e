package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/fxamacker/cbor/v2"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/trust"
)

// tokenMaker makes tokens, also such as our own code refuses to.
type tokenMaker struct {
	t             *testing.T
	ca            ed25519.PrivateKey
	key           ed25519.PrivateKey // of the credential
	charter, cred []byte
}

func newTokenMaker(t *testing.T) *tokenMaker {
	t.Helper()
	m := &tokenMaker{t: t, ca: newKey(t), key: newKey(t)}
	now := time.Now()
	charter := trust.Charter{Name: "home", Version: 1, Created: now, Networks: []mesh.Network{
		{Name: "default", IPv6: mesh.DefaultIPv6(mesh.ID{1}), IPv6Len: 64},
	}}
	credential := trust.Credential{
		Serial: trust.NewSerial(), Key: m.key.Public().(ed25519.PublicKey), NamePattern: "web-*",
		NotBefore: now, NotAfter: now.Add(time.Hour), MaxCertLife: time.Hour, Uses: 1,
	}
	var err1, err2 error
	m.charter, err1 = charter.Sign(m.ca)
	m.cred, err2 = credential.Sign(m.ca)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return m
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (m *tokenMaker) encode(v any) []byte {
	m.t.Helper()
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		m.t.Fatal(err)
	}
	raw, err := mode.Marshal(v)
	if err != nil {
		m.t.Fatal(err)
	}
	return raw
}

// forge changes what a signed object says and signs that.
func (m *tokenMaker) forge(raw []byte, context string, change func(map[uint64]any)) []byte {
	m.t.Helper()
	var parts []any
	var body map[uint64]any
	err := cbor.Unmarshal(raw, &parts)
	if err == nil {
		err = cbor.Unmarshal(parts[1].([]byte), &body)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	change(body)
	inner := m.encode(body)
	return m.encode([]any{parts[0], inner, ed25519.Sign(m.ca, append([]byte(context), inner...))})
}

func (m *tokenMaker) token(change func(map[uint64]any)) string {
	body := map[uint64]any{1: m.charter, 2: m.cred, 3: m.key.Seed(), 4: make([]byte, 32), 5: []string{"203.0.113.7:51881"}}
	change(body)
	raw := m.encode(body)
	sum := sha256.Sum256(raw)
	return "meshd1." + base64.RawURLEncoding.EncodeToString(append(raw, sum[:4]...))
}

// Whatever is given in place of a token: join and inspect end with 65 and one
// plain line that does not repeat it, and join leaves nothing behind.
func TestBadTokens(t *testing.T) {
	m := newTokenMaker(t)
	good := m.token(func(map[uint64]any) {})
	bad := map[string]string{
		"nothing":            "",
		"blanks":             " \n\t ",
		"something else":     "hello",
		"newer version":      "meshd2." + good[7:],
		"no prefix":          good[7:],
		"other case":         strings.ToUpper(good),
		"two of them":        good + "\n" + good,
		"a blank inside":     good[:40] + " " + good[40:],
		"an escape inside":   good[:40] + "\x1b[31m" + good[40:],
		"a zero at its end":  good + "\x00",
		"escapes":            "\x1b[2J\x1b]0;owned\x07",
		"bidi marks":         "\u202e" + good,
		"not UTF-8":          "meshd1.\xff\xfe",
		"1 MiB of it":        good + strings.Repeat("A", 1<<20),
		"1 MiB of blanks":    strings.Repeat(" ", 1<<20) + good,
		"1 MiB of zeros":     strings.Repeat("\x00", 1<<20),
		"a field missing":    m.token(func(b map[uint64]any) { delete(b, 4) }),
		"a short gossip key": m.token(func(b map[uint64]any) { b[4] = make([]byte, 31) }),
		"another key":        m.token(func(b map[uint64]any) { b[3] = newKey(t).Seed() }),
		"another mesh's credential": m.token(func(b map[uint64]any) {
			b[2] = newTokenMaker(t).cred
		}),
		"another mesh's charter": m.token(func(b map[uint64]any) { b[1] = newTokenMaker(t).charter }),
		"a charter that is none": m.token(func(b map[uint64]any) { b[1] = m.cred }),
		"many seeds":             m.token(func(b map[uint64]any) { b[5] = make([]string, 1000) }),
	}
	for n := 0; n < len(good)-1; n += 7 {
		bad[fmt.Sprintf("cut to %d", n)] = good[:n]
	}
	for at := 0; at < len(good); at += 11 {
		for bit := range 7 {
			flipped := []byte(good)
			flipped[at] ^= 1 << bit
			bad[fmt.Sprintf("bit %d of byte %d flipped", bit, at)] = string(flipped)
		}
	}
	for _, word := range []string{"\x1b[31mred\x1b[0m", "\u202edlrow", "a\nb", "a\x00b", "\u009b31m"} {
		bad[fmt.Sprintf("seed %q", word)] = m.token(func(b map[uint64]any) { b[5] = []string{word + ":1"} })
		bad[fmt.Sprintf("mesh %q", word)] = m.token(func(b map[uint64]any) {
			b[1] = m.forge(m.charter, "meshd v1 charter\x00", func(c map[uint64]any) { c[charterName(m)] = word })
		})
		bad[fmt.Sprintf("pattern %q", word)] = m.token(func(b map[uint64]any) {
			b[2] = m.forge(m.cred, "meshd v1 credential\x00", func(c map[uint64]any) { c[5] = word })
		})
	}

	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf("node: {name: web-1}\nstate_dir: %s/state\ncontrol: %s/sock\n", dir, dir)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	try := func(token string, args ...string) (out, complaint string, code int) {
		var stdout, stderr bytes.Buffer
		code = run(t.Context(), append([]string{"--config", path}, args...), strings.NewReader(token), &stdout, &stderr)
		return stdout.String(), stderr.String(), code
	}
	if out, complaint, code := try(good, "token", "inspect", "-"); code != 0 || !strings.Contains(out, "home") {
		t.Fatalf("the good one: %d, %s, %s", code, out, complaint)
	}
	for name, token := range bad {
		for _, args := range [][]string{{"token", "inspect", "-"}, {"join", "-"}} {
			out, complaint, code := try(token, args...)
			if code != exit.BadData || out != "" {
				t.Errorf("%s: %v exits %d, prints %q, says %.200q", name, args, code, out, complaint)
			}
			line := strings.TrimSuffix(complaint, "\n")
			if len(line) > 300 || !strings.HasPrefix(line, "meshctl: ") || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > unicode.MaxASCII }) {
				t.Errorf("%s: %v says %.400q, want one plain line", name, args, complaint)
			}
			if len(token) > 40 && strings.Contains(complaint, token[7:39]) {
				t.Errorf("%s: %v repeats the token, which may be good but for a letter: %q", name, args, complaint)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "state", "keys")); err == nil {
			t.Fatalf("%s: join made a state", name)
		}
	}
	// As an argument it is the same.
	for _, name := range []string{"newer version", "escapes", "bidi marks", "an escape inside"} {
		if _, complaint, code := try("", "join", "--", bad[name]); code != exit.BadData || strings.ContainsRune(complaint, 0x1b) {
			t.Errorf("%s as an argument: %d, %q", name, code, complaint)
		}
	}
	if out, complaint, code := try(good, "join", "-"); code != 0 {
		t.Errorf("after all that the good one: %d, %s, %s", code, out, complaint)
	}
}

// charterName is the number of the charter's field that has its name.
func charterName(m *tokenMaker) uint64 {
	var parts []any
	var body map[uint64]any
	if cbor.Unmarshal(m.charter, &parts) == nil && cbor.Unmarshal(parts[1].([]byte), &body) == nil {
		for k, v := range body {
			if v == "home" {
				return k
			}
		}
	}
	m.t.Fatal("the charter has no name")
	return 0
}
