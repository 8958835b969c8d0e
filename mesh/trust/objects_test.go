package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
)

// parsers reads each kind of object the way its users do, and gives its Object.
func parsers(w world) map[Kind]func(raw []byte) (Object, error) {
	return map[Kind]func([]byte) (Object, error){
		KindCharter: func(raw []byte) (Object, error) {
			c, err := ParseCharter(raw, w.charter.ID())
			if err != nil {
				return Object{}, err
			}
			return c.Object, nil
		},
		KindCredential: func(raw []byte) (Object, error) {
			c, err := ParseCredential(raw, w.charter.CA)
			if err != nil {
				return Object{}, err
			}
			return c.Object, nil
		},
		KindCertificate: func(raw []byte) (Object, error) {
			c, err := ParseCertificate(raw, w.charter.CA)
			if err != nil {
				return Object{}, err
			}
			return c.Object, nil
		},
		KindAdmission: func(raw []byte) (Object, error) {
			a, err := ParseAdmission(raw)
			if err == nil {
				err = a.Verify(w.joined, w.founder)
			}
			if err != nil {
				return Object{}, err
			}
			return a.Object, nil
		},
		KindRecord: func(raw []byte) (Object, error) {
			r, err := ParseRecord(raw)
			if err == nil {
				err = r.Verify(w.joined, w.charter.Ranges())
			}
			if err != nil {
				return Object{}, err
			}
			return r.Object, nil
		},
		KindRevocation: func(raw []byte) (Object, error) {
			r, err := ParseRevocation(raw, w.charter.CA)
			if err != nil {
				return Object{}, err
			}
			return r.Object, nil
		},
		KindTombstone: func(raw []byte) (Object, error) {
			t, err := ParseTombstone(raw)
			if err == nil {
				err = t.Verify(w.founder, w.charter.CA)
			}
			if err != nil {
				return Object{}, err
			}
			return t.Object, nil
		},
		KindRekey: func(raw []byte) (Object, error) {
			r, err := ParseRekey(raw)
			if err == nil {
				err = r.Verify(w.founder)
			}
			if err != nil {
				return Object{}, err
			}
			return r.Object, nil
		},
	}
}

func (w world) objects() map[Kind]Object {
	return map[Kind]Object{
		KindCharter: w.charter.Object, KindCredential: w.credential.Object, KindCertificate: w.joined.Object,
		KindAdmission: w.admission.Object, KindRecord: w.record.Object,
		KindRevocation: w.revocation.Object, KindTombstone: w.tombstone.Object, KindRekey: w.rekey.Object,
	}
}

func TestRoundTrip(t *testing.T) {
	w := newWorld(t)
	t.Run("charter", func(t *testing.T) {
		want := testCharter()
		want.CA = public("ca")
		got := *w.charter
		got.Created = got.Created.UTC()
		sameObject(t, want, got, got.Object)
	})
	t.Run("credential", func(t *testing.T) {
		got := *w.credential
		got.NotBefore, got.NotAfter = got.NotBefore.UTC(), got.NotAfter.UTC()
		sameObject(t, testCredential(), got, got.Object)
	})
	t.Run("certificate", func(t *testing.T) {
		got := *w.joined
		got.NotBefore, got.NotAfter, got.Admitted = got.NotBefore.UTC(), got.NotAfter.UTC(), got.Admitted.UTC()
		if got.Credential.Hash != w.credential.Hash {
			t.Error("the credential inside is another")
		}
		got.Credential = w.credential
		sameObject(t, testCertificate(w.credential), got, got.Object)
	})
	t.Run("admission", func(t *testing.T) {
		if a := w.admission; a.Certificate != w.joined.Hash || a.Admitter != w.founder.Hash || !a.Seen.Equal(start.Add(time.Hour)) {
			t.Errorf("got %+v", a)
		}
		if err := w.admission.Verify(w.joined, w.founder); err != nil {
			t.Error(err)
		}
	})
	t.Run("record", func(t *testing.T) {
		got := *w.record
		got.env = envelope{}
		got.Leases[0].Since = got.Leases[0].Since.UTC()
		sameObject(t, testRecord(w.joined.Hash), got, got.Object)
		if err := w.record.Verify(w.joined, w.charter.Ranges()); err != nil {
			t.Error(err)
		}
	})
	t.Run("revocation", func(t *testing.T) {
		got := *w.revocation
		got.At = got.At.UTC()
		sameObject(t, testRevocation(w.joined.ID()), got, got.Object)
	})
	t.Run("tombstone", func(t *testing.T) {
		got := *w.tombstone
		got.env, got.At = envelope{}, got.At.UTC()
		sameObject(t, testTombstone(w.joined.ID(), w.founder.Hash), got, got.Object)
	})
	t.Run("rekey", func(t *testing.T) {
		got := *w.rekey
		got.env, got.At = envelope{}, got.At.UTC()
		sameObject(t, testRekey(w.joined.ID(), w.founder.Hash), got, got.Object)
	})
	t.Run("token", func(t *testing.T) {
		got, err := ParseToken(" " + w.token.String() + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, w.token) {
			t.Errorf("got %+v\nwant %+v", got, w.token)
		}
	})
}

// sameObject compares all but the bytes, which want never had.
func sameObject[T any](t *testing.T, want, got T, o Object) {
	t.Helper()
	if len(o.Raw) == 0 || o.Hash != sha256.Sum256(o.Raw) {
		t.Error("the hash is not that of the bytes")
	}
	reflect.ValueOf(&got).Elem().FieldByName("Object").SetZero()
	if !reflect.DeepEqual(want, got) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEveryKindIsItsOwn(t *testing.T) {
	w := newWorld(t)
	for kind, o := range w.objects() {
		if got, err := KindOf(o.Raw); got != kind || err != nil {
			t.Errorf("KindOf = %d, %v; want %d", got, err, kind)
		}
		e, err := open(o.Raw)
		if err != nil {
			t.Fatal(err)
		}
		for other, parse := range parsers(w) {
			_, err := parse(o.Raw)
			if (err == nil) != (kind == other) {
				t.Errorf("kind %d read as kind %d: %v", kind, other, err)
			}
			if kind == other {
				continue
			}
			// The same body and signature under another kind's number.
			if _, err := parse(encode([]any{uint8(other), e.body, e.sig})); err == nil {
				t.Errorf("kind %d relabelled as %d is accepted", kind, other)
			}
		}
	}
	// The contexts alone keep signatures apart, whatever the bodies look like.
	body := []byte{0xa0}
	for signed, context := range contexts {
		sig := ed25519.Sign(key("ca"), append([]byte(context), body...))
		for kind := range contexts {
			e := envelope{kind: kind, body: body, sig: sig}
			err := e.verify(public("ca"))
			if (err == nil) != (kind == signed) {
				t.Errorf("a signature for kind %d under kind %d: %v", signed, kind, err)
			}
		}
	}
}

func TestTamperedObjectIsRefused(t *testing.T) {
	w := newWorld(t)
	read := parsers(w)
	for kind, o := range w.objects() {
		for i := range o.Raw {
			raw := bytes.Clone(o.Raw)
			raw[i] ^= 1 << (i % 8)
			if _, err := read[kind](raw); err == nil {
				t.Errorf("kind %d: byte %d changed, and accepted", kind, i)
			}
			if _, err := read[kind](o.Raw[:i]); err == nil {
				t.Errorf("kind %d: cut at %d, and accepted", kind, i)
			}
		}
		if _, err := read[kind](append(bytes.Clone(o.Raw), 0)); err == nil {
			t.Errorf("kind %d: accepted with a byte behind it", kind)
		}
	}
}

// signRaw signs any body bytes.
func signRaw(signer ed25519.PrivateKey, kind Kind, body []byte) []byte {
	return encode([]any{uint8(kind), body, ed25519.Sign(signer, append([]byte(contexts[kind]), body...))})
}

func TestOnlyDeterministicEncoding(t *testing.T) {
	w := newWorld(t)
	e, err := open(w.admission.Raw)
	if err != nil {
		t.Fatal(err)
	}
	// An admission's body is a3 01 5820<32> 02 5820<32> 03 1a<4>.
	first, second, third := e.body[1:36], e.body[36:71], e.body[71:]
	unknown := func(more ...byte) []byte { // four fields: the fourth is not ours
		return append(append([]byte{0xa4}, e.body[1:]...), more...)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, body := range map[string][]byte{
		"duplicate key":             join([]byte{0xa4}, first, first, second, third),
		"wrong order":               join([]byte{0xa3}, second, first, third),
		"indefinite map":            join([]byte{0xbf}, first, second, third, []byte{0xff}),
		"long map header":           join([]byte{0xb8, 3}, first, second, third),
		"long key":                  join([]byte{0xa3, 0x18, 1}, first[1:], second, third),
		"long length":               join([]byte{0xa3, 1, 0x59, 0, 32}, first[3:], second, third),
		"long integer":              join([]byte{0xa3}, first, second, []byte{3, 0x1b, 0, 0, 0, 0}, third[2:]),
		"tag on a time":             join([]byte{0xa3}, first, second, []byte{3, 0xc1}, third[1:]),
		"tag on everything":         join([]byte{0xd9, 0xd9, 0xf7}, e.body),
		"unknown: long integer":     unknown(4, 0x18, 1),
		"unknown: indefinite text":  unknown(4, 0x7f, 0x61, 'a', 0xff),
		"unknown: indefinite array": unknown(4, 0x9f, 0xff),
		"unknown: tag":              unknown(4, 0xc0, 0x60),
		"unknown: duplicate inside": unknown(4, 0xa2, 1, 1, 1, 2),
		"unknown: order inside":     unknown(4, 0xa2, 2, 1, 1, 1),
		"unknown: long float":       unknown(4, 0xfb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0),
		"unknown: other NaN":        unknown(4, 0xf9, 0x7e, 1),
		"unknown: undefined":        unknown(4, 0xf7),
		"unknown: invalid UTF-8":    unknown(4, 0x61, 0xff),
		"unknown: too deep":         unknown(append([]byte{4}, append(bytes.Repeat([]byte{0x81}, 20), 0)...)...),
		"something behind":          append(bytes.Clone(e.body), 0),
		"empty":                     {},
		"not a map":                 {0x80},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseAdmission(signRaw(key("founder"), KindAdmission, body)); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v, want ErrMalformed", err)
			}
		})
	}
	if _, err := ParseAdmission(signRaw(key("founder"), KindAdmission, e.body)); err != nil {
		t.Errorf("the unchanged body: %v", err)
	}
	t.Run("envelope", func(t *testing.T) {
		for name, raw := range map[string][]byte{
			"fourth element":    encode([]any{uint8(KindAdmission), e.body, e.sig, 1}),
			"two elements":      encode([]any{uint8(KindAdmission), e.body}),
			"short signature":   encode([]any{uint8(KindAdmission), e.body, e.sig[:63]}),
			"long signature":    encode([]any{uint8(KindAdmission), e.body, append(bytes.Clone(e.sig), 0)}),
			"null signature":    encode([]any{uint8(KindAdmission), e.body, nil}),
			"body as array":     encode([]any{uint8(KindAdmission), integers(e.body), e.sig}),
			"signature as list": encode([]any{uint8(KindAdmission), e.body, integers(e.sig)}),
			"kind as text":      encode([]any{"4", e.body, e.sig}),
			"kind 260":          encode([]any{260, e.body, e.sig}),
			"kind 4.0":          encode([]any{4.0, e.body, e.sig}),
			"map":               encode(map[string]any{"Kind": 4, "Body": e.body, "Sig": e.sig}),
			"long header":       append([]byte{0x98, 3}, w.admission.Raw[1:]...),
		} {
			if _, err := ParseAdmission(raw); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s: got %v, want ErrMalformed", name, err)
			}
		}
	})
}

// integers writes bytes as a list of numbers, which a lax decoder takes for the
// bytes: the same signed content under another hash.
func integers(raw []byte) []int {
	out := make([]int, len(raw))
	for i, b := range raw {
		out[i] = int(b)
	}
	return out
}

// fields takes an object's body apart into a generic map.
func fields(t testing.TB, o Object) map[any]any {
	t.Helper()
	e, err := open(o.Raw)
	if err != nil {
		t.Fatal(err)
	}
	var m map[any]any
	if err := decMode.Unmarshal(e.body, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

var signers = map[Kind]string{
	KindCharter: "ca", KindCredential: "ca", KindCertificate: "credential", KindAdmission: "founder", KindRecord: "node",
	KindRevocation: "ca", KindTombstone: "founder", KindRekey: "founder",
}

func TestUnknownFieldsSurvive(t *testing.T) {
	w := newWorld(t)
	read := parsers(w)
	for kind, o := range w.objects() {
		m := fields(t, o)
		m[uint64(99)] = map[any]any{"new": []any{1, "x", 1.5, math.NaN(), nil, true, []byte{1}}}
		m["later"] = -7
		if nested, ok := m[uint64(5)].([]any); ok && kind == KindCharter {
			nested[0].(map[any]any)[uint64(40)] = "also inside"
		}
		if nested, ok := m[uint64(7)].([]any); ok && kind == KindRecord { // a box in a rekey is a list, which holds no more
			nested[0].(map[any]any)[uint64(40)] = "also inside"
		}
		raw := signRaw(key(signers[kind]), kind, encode(m))
		got, err := read[kind](raw)
		if err != nil {
			t.Errorf("kind %d: %v", kind, err)
			continue
		}
		if !bytes.Equal(got.Raw, raw) || got.Hash != sha256.Sum256(raw) {
			t.Errorf("kind %d: the bytes did not survive", kind)
		}
	}
}

func TestFieldsInAnotherFormAreRefused(t *testing.T) {
	w := newWorld(t)
	read := parsers(w)
	b4, b6 := []byte{10, 86, 17, 0, 24}, append(prefix("fd86:1:2:11::/64").Addr().AsSlice(), 64)
	mapped := append(netip.MustParseAddr("::ffff:10.86.17.0").AsSlice(), 120)
	zoned := append(netip.MustParseAddr("fe80::").AsSlice(), "eth0\x40"...)
	setLease := func(field uint64, v any) func(map[any]any) {
		return func(m map[any]any) { m[uint64(7)].([]any)[0].(map[any]any)[field] = v }
	}
	set := func(field uint64, v any) func(map[any]any) {
		return func(m map[any]any) { m[field] = v }
	}
	drop := func(field uint64) func(map[any]any) {
		return func(m map[any]any) { delete(m, field) }
	}
	for _, c := range []struct {
		name   string
		kind   Kind
		change func(map[any]any)
	}{
		{"short hash", KindAdmission, set(1, w.joined.Hash[:31])},
		{"long hash", KindAdmission, set(1, append(w.joined.Hash[:], 0))},
		{"hash as a list", KindAdmission, set(1, integers(w.joined.Hash[:]))},
		{"hash as text", KindAdmission, set(1, strings.Repeat("a", 32))},
		{"null hash", KindAdmission, set(1, nil)},
		{"no hash", KindAdmission, drop(1)},
		{"text key instead", KindAdmission, func(m map[any]any) { m["1"] = m[uint64(1)]; delete(m, uint64(1)) }},
		{"time as a float", KindAdmission, set(3, float64(start.Unix())+.5)},
		{"time NaN", KindAdmission, set(3, math.NaN())},
		{"time infinite", KindAdmission, set(3, math.Inf(1))},
		{"time as text", KindAdmission, set(3, "2026-03-01T12:00:00Z")},
		{"time before 1970", KindAdmission, set(3, -1)},
		{"time beyond 9999", KindAdmission, set(3, 253402300800)},
		{"huge time", KindAdmission, set(3, int64(math.MaxInt64))},
		{"larger time than int64", KindAdmission, set(3, uint64(math.MaxUint64))},
		{"negative huge time", KindAdmission, set(3, int64(math.MinInt64))},
		{"short serial", KindCertificate, set(1, make([]byte, 15))},
		{"short seal key", KindCertificate, set(4, make([]byte, 31))},
		{"long seal key", KindCertificate, set(4, make([]byte, 33))},
		{"short identity", KindCertificate, set(2, make([]byte, 31))},
		{"identity as a list", KindCertificate, set(2, integers(public("node")))},
		{"admission time huge", KindCertificate, set(10, int64(math.MaxInt64))},
		{"begin huge", KindCertificate, set(8, int64(math.MaxInt64))},
		{"begin and end huge", KindCertificate, func(m map[any]any) { m[uint64(8)], m[uint64(9)] = int64(math.MaxInt64-60), int64(math.MaxInt64) }},
		{"short tunnel key", KindRecord, set(5, make([]byte, 31))},
		{"epoch as a float", KindRecord, set(1, 3.0)},
		{"negative epoch", KindRecord, set(1, -1)},
		{"negative seq", KindRecord, set(2, -1)},
		{"left as a number", KindRecord, set(11, 1)},
		{"endpoint as text", KindRecord, set(6, []any{"192.0.2.1:51820"})},
		{"endpoint null", KindRecord, set(6, []any{nil})},
		{"endpoint cut", KindRecord, set(6, []any{[]byte{192, 0, 2, 1, 1}})},
		{"lease prefix empty", KindRecord, setLease(2, []any{[]byte{}})},
		{"lease prefix null", KindRecord, setLease(2, []any{nil})},
		{"lease prefix of 33 bits", KindRecord, setLease(2, []any{[]byte{10, 86, 17, 0, 33}})},
		{"lease prefix of 255 bits", KindRecord, setLease(2, []any{[]byte{10, 86, 17, 0, 255}})},
		{"lease prefix v4-mapped", KindRecord, setLease(2, []any{mapped})},
		{"lease prefix with a zone", KindRecord, setLease(2, []any{zoned})},
		{"lease since huge", KindRecord, setLease(4, int64(math.MaxInt64))},
		{"lease state 0", KindRecord, setLease(3, 0)},
		{"lease state 256", KindRecord, setLease(3, 256+2)},
		{"no lease network", KindRecord, func(m map[any]any) { delete(m[uint64(7)].([]any)[0].(map[any]any), uint64(1)) }},
		{"lease null", KindRecord, set(7, []any{nil})},
		{"label as bytes", KindRecord, set(8, map[any]any{"a": []byte("b")})},
		{"uptime negative", KindRecord, set(12, -1)},
		{"uptime as a float", KindRecord, set(12, 1.5)},
		{"sends with a key beyond its newest", KindRecord, set(14, 3)},
		{"a newest key without end", KindRecord, set(13, uint64(math.MaxUint64))},
		{"proof of another length", KindRecord, set(15, make([]byte, PossessionSize-1))},
		{"of no node and no token", KindRevocation, drop(1)},
		{"of a node and a token", KindRevocation, set(2, bytes.Repeat([]byte{1}, 16))},
		{"of an empty node", KindRevocation, set(1, []byte{})},
		{"node of zeros", KindRevocation, set(1, make([]byte, 20))},
		{"node too short", KindRevocation, set(1, make([]byte, 19))},
		{"node as text", KindRevocation, set(1, strings.Repeat("a", 20))},
		{"serial too short", KindRevocation, func(m map[any]any) { delete(m, uint64(1)); m[uint64(2)] = []byte{1} }},
		{"an exception as text", KindRevocation, func(m map[any]any) {
			delete(m, uint64(1))
			m[uint64(2)], m[uint64(3)] = bytes.Repeat([]byte{1}, 16), []any{strings.Repeat("a", 20)}
		}},
		{"exceptions out of order", KindRevocation, func(m map[any]any) {
			delete(m, uint64(1))
			m[uint64(2)], m[uint64(3)] = bytes.Repeat([]byte{1}, 16), []any{bytes.Repeat([]byte{2}, 20), bytes.Repeat([]byte{1}, 20)}
		}},
		{"revoked at no time", KindRevocation, drop(4)},
		{"revoked in 1969", KindRevocation, set(4, -1)},
		{"dead node too long", KindTombstone, set(1, make([]byte, 21))},
		{"dead node of zeros", KindTombstone, set(1, make([]byte, 20))},
		{"epoch 0", KindTombstone, set(2, 0)},
		{"epoch without a next", KindTombstone, set(2, uint64(MaxEpoch+1))},
		{"seq negative", KindTombstone, set(3, -1)},
		{"seq as a float", KindTombstone, set(3, 2.0)},
		{"reason 0", KindTombstone, set(4, 0)},
		{"reason 3", KindTombstone, set(4, 3)},
		{"reason 257", KindTombstone, set(4, 257)},
		{"dead at a huge time", KindTombstone, set(5, int64(math.MaxInt64))},
		{"issuer too short", KindTombstone, set(6, make([]byte, 31))},
		{"issuer null", KindTombstone, set(6, nil)},
		{"a tombstone beyond a broadcast", KindTombstone, set(9, make([]byte, MaxBroadcast))},
		{"generation 0", KindRekey, set(1, 0)},
		{"generation without a next", KindRekey, set(1, uint64(MaxGeneration+1))},
		{"key id too long", KindRekey, set(2, make([]byte, 17))},
		{"no boxes", KindRekey, set(3, []any{})},
		{"boxes null", KindRekey, set(3, nil)},
		{"a box of one", KindRekey, set(3, []any{[]any{make([]byte, 20)}})},
		{"a box of three", KindRekey, set(3, []any{[]any{make([]byte, 20), make([]byte, sealedKey), 1}})},
		{"a box too short", KindRekey, set(3, []any{[]any{make([]byte, 20), make([]byte, sealedKey-1)}})},
		{"a box for half a node", KindRekey, set(3, []any{[]any{make([]byte, 10), make([]byte, sealedKey)}})},
		{"two boxes for one node", KindRekey, set(3, []any{[]any{make([]byte, 20), make([]byte, sealedKey)}, []any{make([]byte, 20), make([]byte, sealedKey)}})},
		{"rekeyed at a time as text", KindRekey, set(4, "now")},
		{"signer too long", KindRekey, set(5, make([]byte, 33))},
		{"grace negative", KindRekey, set(6, -1)},
		{"network length as text", KindCharter, func(m map[any]any) { m[uint64(5)].([]any)[0].(map[any]any)[uint64(3)] = "24" }},
		{"network length negative", KindCharter, func(m map[any]any) { m[uint64(5)].([]any)[0].(map[any]any)[uint64(3)] = -1 }},
		{"created huge", KindCharter, set(6, int64(math.MaxInt64))},
		{"life overflows", KindCredential, set(9, uint64(math.MaxUint64))},
		{"begin after end by overflow", KindCredential, set(8, int64(math.MaxInt64))},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := fields(t, w.objects()[c.kind])
			c.change(m)
			_, err := read[c.kind](signRaw(key(signers[c.kind]), c.kind, encode(m)))
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v, want ErrMalformed", err)
			}
		})
	}
	// What the table changes is accepted unchanged.
	m := fields(t, w.record.Object)
	setLease(2, []any{b4, b6})(m)
	if _, err := read[KindRecord](signRaw(key("node"), KindRecord, encode(m))); err != nil {
		t.Errorf("the same lease: %v", err)
	}
}

func TestCharterBounds(t *testing.T) {
	network := func(change func(*mesh.Network)) func(*Charter) {
		return func(c *Charter) { change(&c.Networks[0]) }
	}
	many := func(n int) func(*Charter) {
		return func(c *Charter) {
			c.Networks = nil
			for i := range n {
				c.Networks = append(c.Networks, mesh.Network{
					Name: fmt.Sprintf("%s-%02d", strings.Repeat("n", 60), i),
					IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), IPv4Len: 24,
					IPv6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 1, 1, 1, 1, byte(i)}), 48), IPv6Len: 64,
				})
			}
		}
	}
	for _, c := range []struct {
		name   string
		change func(*Charter)
		ok     bool
	}{
		{"as it is", func(*Charter) {}, true},
		{"no name", func(c *Charter) { c.Name = "" }, false},
		{"name of 63", func(c *Charter) { c.Name = strings.Repeat("a", 63) }, true},
		{"name of 64", func(c *Charter) { c.Name = strings.Repeat("a", 64) }, false},
		{"version 0", func(c *Charter) { c.Version = 0 }, false},
		{"no network", func(c *Charter) { c.Networks = nil }, false},
		{"64 networks", many(64), true},
		{"65 networks", many(65), false},
		{"two networks of one name", func(c *Charter) {
			c.Networks = append(c.Networks, mesh.Network{Name: "default", IPv4: prefix("10.87.0.0/16"), IPv4Len: 24})
		}, false},
		{"overlapping networks", func(c *Charter) {
			c.Networks = append(c.Networks, mesh.Network{Name: "other", IPv4: prefix("10.86.128.0/17"), IPv4Len: 24})
		}, false},
		{"overlap with the control range", network(func(n *mesh.Network) { n.IPv6 = mesh.ControlRange(IdentityOf(public("ca"))) }), false},
		{"no range", network(func(n *mesh.Network) { *n = mesh.Network{Name: "default"} }), false},
		{"IPv4 alone", network(func(n *mesh.Network) { n.IPv6, n.IPv6Len = netip.Prefix{}, 0 }), true},
		{"IPv6 alone", network(func(n *mesh.Network) { n.IPv4, n.IPv4Len = netip.Prefix{}, 0 }), true},
		{"length without range", network(func(n *mesh.Network) { n.IPv4 = netip.Prefix{} }), false},
		{"host bits", network(func(n *mesh.Network) { n.IPv4 = prefix("10.86.0.1/16") }), false},
		{"subnet as long as the range", network(func(n *mesh.Network) { n.IPv4Len = 16 }), false},
		{"subnet shorter than the range", network(func(n *mesh.Network) { n.IPv4Len = 8 }), false},
		{"subnet /30", network(func(n *mesh.Network) { n.IPv4Len = 30 }), true},
		{"subnet /31", network(func(n *mesh.Network) { n.IPv4Len = 31 }), false},
		{"subnet /126", network(func(n *mesh.Network) { n.IPv6Len = 126 }), true},
		{"subnet /127", network(func(n *mesh.Network) { n.IPv6Len = 127 }), false},
		{"range /3", network(func(n *mesh.Network) { n.IPv4 = prefix("32.0.0.0/3") }), false},
		{"multicast", network(func(n *mesh.Network) { n.IPv4 = prefix("224.0.0.0/16") }), false},
		{"loopback", network(func(n *mesh.Network) { n.IPv4 = prefix("127.0.0.0/16") }), false},
		{"link-local", network(func(n *mesh.Network) { n.IPv6 = prefix("fe80::/48") }), false},
		{"IPv6 as IPv4", network(func(n *mesh.Network) { n.IPv4 = prefix("fd00::/16") }), false},
		{"IPv4 as IPv6", network(func(n *mesh.Network) { n.IPv6, n.IPv6Len = prefix("10.87.0.0/16"), 24 }), false},
		{"v4-mapped", network(func(n *mesh.Network) { n.IPv6, n.IPv6Len = prefix("::ffff:10.0.0.0/104"), 120 }), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			charter := testCharter()
			c.change(&charter)
			raw, err := charter.Sign(key("ca"))
			if (err == nil) != c.ok {
				t.Fatalf("Sign: %v", err)
			}
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Errorf("got %v, want ErrMalformed", err)
				}
				// A CA that does not check itself must not get it past us either.
				charter.CA = public("ca")
				raw = rawCharter(charter)
			}
			if _, err := ParseCharter(raw, mesh.ID{}); (err == nil) != c.ok {
				t.Errorf("Parse: %v", err)
			}
		})
	}
}

func rawCharter(c Charter) []byte {
	body := charterBody{Name: c.Name, CA: c.CA, Version: c.Version, Previous: c.Previous, Created: c.Created}
	for _, n := range c.Networks {
		body.Networks = append(body.Networks, networkBody(n))
	}
	return sign(key("ca"), KindCharter, body)
}

func TestCharterOfAnotherMesh(t *testing.T) {
	foreign := testCharter()
	raw := must(foreign.Sign(key("other ca")))(t)
	if _, err := ParseCharter(raw, newWorld(t).charter.ID()); !errors.Is(err, ErrForbidden) {
		t.Errorf("got %v, want ErrForbidden", err)
	}
	// A charter that names our CA, but is signed by another key.
	ours := testCharter()
	ours.CA = public("ca")
	if _, err := ParseCharter(sign(key("other ca"), KindCharter, charterBody{
		Name: ours.Name, CA: ours.CA, Version: 9, Created: start, Networks: []networkBody{networkBody(ours.Networks[0])},
	}), mesh.ID{}); !errors.Is(err, ErrSignature) {
		t.Errorf("got %v, want ErrSignature", err)
	}
}

func TestCharterNewer(t *testing.T) {
	a, b := &Charter{Version: 1, Object: Object{Hash: Hash{1}}}, &Charter{Version: 1, Object: Object{Hash: Hash{2}}}
	c := &Charter{Version: 2}
	for _, x := range []struct {
		new, old *Charter
		want     bool
	}{{a, nil, true}, {a, a, false}, {b, a, true}, {a, b, false}, {c, b, true}, {b, c, false}} {
		if got := x.new.Newer(x.old); got != x.want {
			t.Errorf("%v newer than %v: %v", x.new, x.old, got)
		}
	}
}

func TestRecordBounds(t *testing.T) {
	lease := func(change func(*mesh.Lease)) func(*Record) {
		return func(r *Record) { change(&r.Leases[0]) }
	}
	endpoint := func(s string) func(*Record) {
		return func(r *Record) { r.Endpoints = []netip.AddrPort{port(s)} }
	}
	words := func(n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprint("w", i)
		}
		return out
	}
	for _, c := range []struct {
		name   string
		change func(*Record)
		ok     bool
	}{
		{"as it is", func(*Record) {}, true},
		{"nothing but a key", func(r *Record) { *r = Record{Version: mesh.Version{Epoch: 1}, Key: mesh.Key{1}} }, true},
		{"epoch 0", func(r *Record) { r.Version.Epoch = 0 }, false},
		{"highest epoch", func(r *Record) { r.Version.Epoch = MaxEpoch }, true},
		{"epoch too high", func(r *Record) { r.Version.Epoch = MaxEpoch + 1 }, false},
		{"no key", func(r *Record) { r.Key = mesh.Key{} }, false},
		{"4 endpoints", func(r *Record) { r.Endpoints = append(r.Endpoints, r.Endpoints...) }, true},
		{"5 endpoints", func(r *Record) { r.Endpoints = append(r.Endpoints, append(r.Endpoints, r.Endpoints[0])...) }, false},
		{"endpoint port 0", endpoint("192.0.2.1:0"), false},
		{"endpoint loopback", endpoint("127.0.0.1:1"), true},
		{"endpoint unspecified", endpoint("0.0.0.0:1"), false},
		{"endpoint multicast", endpoint("224.0.0.1:1"), false},
		{"endpoint v4-mapped", endpoint("[::ffff:192.0.2.1]:1"), false},
		{"endpoint link-local", endpoint("[fe80::1]:1"), false},
		{"endpoint with a zone", endpoint("[2001:db8::1%eth0]:1"), false},
		{"endpoint invalid", func(r *Record) { r.Endpoints = []netip.AddrPort{{}} }, false},
		{"two leases in a network", func(r *Record) { r.Leases = append(r.Leases, r.Leases[0]) }, false},
		{"claimed in a later epoch", lease(func(l *mesh.Lease) { l.ClaimEpoch = 4 }), false},
		{"lease state unknown", lease(func(l *mesh.Lease) { l.State = 5 }), false},
		{"lease state none", lease(func(l *mesh.Lease) { l.State = 0 }), false},
		{"lease without prefix", lease(func(l *mesh.Lease) { l.Prefixes = nil }), false},
		{"lease of three prefixes", lease(func(l *mesh.Lease) { l.Prefixes = append(l.Prefixes, l.Prefixes[0]) }), false},
		{"lease of two IPv4", lease(func(l *mesh.Lease) { l.Prefixes[1] = prefix("10.86.18.0/24") }), false},
		{"lease with host bits", lease(func(l *mesh.Lease) { l.Prefixes[0] = prefix("10.86.17.1/24") }), false},
		{"lease v4-mapped", lease(func(l *mesh.Lease) { l.Prefixes[0] = prefix("::ffff:10.86.17.0/120") }), false},
		{"lease network with a newline", lease(func(l *mesh.Lease) { l.Network = "a\nb" }), false},
		{"left with a lease", func(r *Record) { r.Left = true }, false},
		{"left with a released lease", func(r *Record) { r.Left, r.Leases[0].State = true, mesh.Released }, true},
		{"label with a control character", func(r *Record) { r.Labels = map[string]string{"a": "\x1b[31m"} }, false},
		{"label key with a space", func(r *Record) { r.Labels = map[string]string{"a b": "c"} }, false},
		{"label key empty", func(r *Record) { r.Labels = map[string]string{"": "c"} }, false},
		{"label value of 64", func(r *Record) { r.Labels = map[string]string{"a": strings.Repeat("x", 64)} }, true},
		{"label value of 65", func(r *Record) { r.Labels = map[string]string{"a": strings.Repeat("x", 65)} }, false},
		{"17 labels", func(r *Record) {
			r.Labels = map[string]string{}
			for _, w := range words(17) {
				r.Labels[w] = ""
			}
		}, false},
		{"16 suites", func(r *Record) { r.Suites = words(16) }, true},
		{"17 suites", func(r *Record) { r.Suites = words(17) }, false},
		{"suite with an escape", func(r *Record) { r.Suites = []string{"\x1b"} }, false},
		{"suite of 33", func(r *Record) { r.Suites = []string{strings.Repeat("s", 33)} }, false},
		{"17 capabilities", func(r *Record) { r.Capabilities = words(17) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := testRecord(Hash{})
			c.change(&r)
			raw, err := r.Sign(key("node"))
			if (err == nil) != c.ok {
				t.Fatalf("Sign: %v", err)
			}
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Errorf("got %v, want ErrMalformed", err)
				}
				return
			}
			if _, err := ParseRecord(raw); err != nil {
				t.Errorf("Parse refuses what Sign made: %v", err)
			}
		})
	}
}

func TestRecordBeyondItsCertificate(t *testing.T) {
	w := newWorld(t)
	change := func(f func(*Record)) *Record {
		r := testRecord(w.joined.Hash)
		f(&r)
		return must(ParseRecord(must(r.Sign(key("node")))(t)))(t)
	}
	control := netip.AddrPortFrom(mesh.ControlAddr(w.charter.ID(), w.joined.ID()), 51820)
	for _, c := range []struct {
		name string
		rec  *Record
		want error
	}{
		{"as it is", w.record, nil},
		{"another certificate's", change(func(r *Record) { r.Certificate = w.founder.Hash }), ErrForbidden},
		{"lease outside the range", change(func(r *Record) { r.Leases[0].Prefixes[0] = prefix("10.86.32.0/24") }), ErrForbidden},
		{"lease wider than the range", change(func(r *Record) { r.Leases[0].Prefixes[0] = prefix("10.86.0.0/16") }), ErrForbidden},
		{"endpoint in the network", change(func(r *Record) { r.Endpoints[0] = port("10.86.3.4:51820") }), ErrForbidden},
		{"endpoint in the IPv6 network", change(func(r *Record) { r.Endpoints[0] = port("[fd86:1:2:3::4]:51820") }), ErrForbidden},
		{"endpoint in the control range", change(func(r *Record) { r.Endpoints[0] = control }), ErrForbidden},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.rec.Verify(w.joined, w.charter.Ranges()); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	other := testRecord(w.joined.Hash)
	forged := must(ParseRecord(must(other.Sign(key("founder")))(t)))(t)
	if err := forged.Verify(w.joined, nil); !errors.Is(err, ErrSignature) {
		t.Errorf("signed by another: %v", err)
	}
}

func TestAdmissionVerify(t *testing.T) {
	w := newWorld(t)
	again := testCertificate(w.credential)
	again.Serial = Serial{3}
	other := must(ParseCertificate(must(again.Sign(key("credential")))(t), public("ca")))(t)
	for _, c := range []struct {
		name          string
		seen, witness *Certificate
		at            time.Time
		signer        string
		want          error
	}{
		{"first moment", w.joined, w.founder, w.credential.NotBefore, "founder", nil},
		{"last moment", w.joined, w.founder, w.credential.NotAfter, "founder", nil},
		{"too early", w.joined, w.founder, w.credential.NotBefore.Add(-time.Second), "founder", ErrForbidden},
		{"too late", w.joined, w.founder, w.credential.NotAfter.Add(time.Second), "founder", ErrForbidden},
		{"signed by another", w.joined, w.founder, start, "node", ErrSignature},
		{"by the node itself", w.joined, other, start, "node", ErrForbidden},
		{"of a CA's certificate", w.founder, w.joined, start, "node", ErrForbidden},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := Admission{Certificate: c.seen.Hash, Admitter: c.witness.Hash, Seen: c.at}
			parsed := must(ParseAdmission(a.Sign(key(c.signer))))(t)
			if err := parsed.Verify(c.seen, c.witness); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if err := w.admission.Verify(w.founder, w.founder); !errors.Is(err, ErrForbidden) {
		t.Errorf("of another certificate: %v", err)
	}
	if err := w.admission.Verify(w.joined, w.joined); !errors.Is(err, ErrForbidden) {
		t.Errorf("by another witness: %v", err)
	}
	// A witness vouches only while it is a member itself.
	young := *w.founder
	young.NotBefore = start.Add(2 * time.Hour)
	if err := w.admission.Verify(w.joined, &young); !errors.Is(err, ErrForbidden) {
		t.Errorf("by a witness that was not valid yet: %v", err)
	}
}

func TestSizes(t *testing.T) {
	w := newWorld(t)
	full := testRecord(w.joined.Hash)
	full.Version = mesh.Version{Epoch: math.MaxUint32, Seq: math.MaxUint32}
	full.Nonce = math.MaxUint64
	full.Labels = nil
	full.Possession = make([]byte, PossessionSize)
	full.Uptime, full.Keys = maxLife, Generations{MaxGeneration, MaxGeneration}
	full.Suites = []string{"chacha20poly1305", "aes256gcm"}
	full.Endpoints = []netip.AddrPort{port("[2001:db8::1]:51820"), port("[2001:db8::2]:51820"), port("[2001:db8::3]:51820"), port("192.0.2.1:51820")}
	full.Leases = nil
	for i := range maxLeases {
		full.Leases = append(full.Leases, mesh.Lease{
			Network: fmt.Sprintf("network%d", i), State: mesh.Held, Since: start, ClaimEpoch: math.MaxUint32,
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(i)}), 64)},
		})
	}
	raw, err := full.Sign(key("node"))
	if err != nil {
		t.Errorf("a full record: %v", err)
	}
	t.Logf("record %d bytes, full %d of %d", len(w.record.Raw), len(raw), maxRecord)
	for i := range full.Leases {
		full.Leases[i].Network = strings.Repeat("n", 61) + fmt.Sprint(i)
	}
	if _, err := full.Sign(key("node")); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "bytes, at most") {
		t.Errorf("eight leases in networks with long names: %v", err)
	}

	// The largest certificate that a token's holder can make must fit a broadcast.
	ranges := []netip.Prefix{prefix("fd01::/64"), prefix("fd02::/64"), prefix("fd03::/64"), prefix("fd04::/64")}
	credential := testCredential()
	credential.Rights, credential.NamePattern, credential.Uses = Rights{ranges, ranges}, strings.Repeat("?", 63), math.MaxUint64
	c := must(ParseCredential(must(credential.Sign(key("ca")))(t), public("ca")))(t)
	cert := testCertificate(c)
	cert.Name = strings.Repeat("n", 63)
	largest := must(cert.Sign(key("credential")))(t)
	t.Logf("certificate with credential %d bytes, largest %d of %d", len(w.joined.Raw), len(largest), MaxBroadcast)
	if len(largest) > MaxBroadcast {
		t.Errorf("certificate of %d bytes, a broadcast takes %d", len(largest), MaxBroadcast)
	}
	t.Logf("admission %d bytes, token %d characters", len(w.admission.Raw), len(w.token.String()))
	if _, err := KindOf(make([]byte, MaxObject+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("an object beyond the limit: %v", err)
	}
	if _, err := ParseRecord(make([]byte, maxRecord+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("a record beyond the limit: %v", err)
	}
	m := fields(t, w.admission.Object)
	m[uint64(9)] = make([]byte, MaxBroadcast)
	if _, err := ParseAdmission(signRaw(key("founder"), KindAdmission, encode(m))); !errors.Is(err, ErrMalformed) {
		t.Errorf("an admission beyond the limit: %v", err)
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "web-1": true, "0": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "a b": false, "ä": false,
		"a\n": false, "\x1b[31m": false, "a\x00b": false, "../x": false, strings.Repeat("a", 64): false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v", name, err)
		} else if err != nil && strings.ContainsAny(err.Error(), "\n\x1b\x00") {
			t.Errorf("the error for %q would fool a terminal", name)
		}
	}
}
