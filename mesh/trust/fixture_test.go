package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"net/netip"
	"testing"
	"time"

	"meshd/mesh"
)

// key makes the same key for the same name, so test objects are the same in
// every run.
func key(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(name string) ed25519.PublicKey { return key(name).Public().(ed25519.PublicKey) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func port(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// start is the moment at which the test mesh begins.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func testCharter() Charter {
	return Charter{Name: "test", Version: 1, Created: start, Networks: []mesh.Network{{
		Name: "default", IPv4: prefix("10.86.0.0/16"), IPv4Len: 24, IPv6: prefix("fd86:1:2::/48"), IPv6Len: 64,
	}}}
}

func testCredential() Credential {
	return Credential{
		Serial: Serial{1}, Key: public("credential"), NamePattern: "web-*", Uses: 3,
		Rights:    Rights{Ranges: []netip.Prefix{prefix("10.86.16.0/20")}},
		NotBefore: start, NotAfter: start.Add(24 * time.Hour), MaxCertLife: 90 * 24 * time.Hour,
	}
}

func testCertificate(c *Credential) Certificate {
	cert := Certificate{
		Serial: Serial{2}, Identity: public("node"), Name: "web-1", SealKey: mesh.Key{7},
		NotBefore: start, NotAfter: start.Add(30 * 24 * time.Hour), Admitted: start, Credential: c,
	}
	if c != nil {
		cert.Rights = c.Rights
	}
	return cert
}

func testRecord(cert Hash) Record {
	return Record{
		Version: mesh.Version{Epoch: 3, Seq: 9}, Certificate: cert, Nonce: 5, Key: mesh.Key{9},
		Endpoints: []netip.AddrPort{port("192.0.2.1:51820"), port("[2001:db8::1]:51820")},
		Leases: []mesh.Lease{{
			Network: "default", Prefixes: []netip.Prefix{prefix("10.86.17.0/24"), prefix("fd86:1:2:11::/64")},
			State: mesh.Held, Since: start, ClaimEpoch: 2,
		}},
		Labels: map[string]string{"zone": "a"}, Suites: []string{"chacha20poly1305"},
		Uptime: 90 * time.Second, Keys: Generations{Newest: 2, Sends: 1},
	}
}

func testRevocation(id mesh.NodeID) Revocation {
	return Revocation{Node: id, At: start.Add(time.Hour)}
}

func testTombstone(id mesh.NodeID, issuer Hash) Tombstone {
	return Tombstone{Node: id, Version: mesh.Version{Epoch: 3, Seq: 2}, Reason: Expired, At: start.Add(time.Hour), Issuer: issuer}
}

func testRekey(id mesh.NodeID, signer Hash) Rekey {
	return Rekey{
		Generation: 2, KeyID: KeyIDOf([]byte("key")), Boxes: []Box{{Node: id, Sealed: bytes.Repeat([]byte{3}, sealedKey)}},
		At: start.Add(time.Hour), Signer: signer, Grace: 24 * time.Hour,
	}
}

// world is one object of each kind, all of which belong together.
type world struct {
	charter    *Charter
	credential *Credential
	founder    *Certificate // signed by the CA
	joined     *Certificate // signed by the credential
	admission  *Admission
	record     *Record
	revocation *Revocation // of the joined node
	tombstone  *Tombstone  // of the joined node, by the founder
	rekey      *Rekey      // by the founder, for the joined node
	token      *Token
}

func newWorld(t testing.TB) world {
	t.Helper()
	var w world
	charter, credential := testCharter(), testCredential()
	w.charter = must(ParseCharter(must(charter.Sign(key("ca")))(t), mesh.ID{}))(t)
	w.credential = must(ParseCredential(must(credential.Sign(key("ca")))(t), public("ca")))(t)
	founder := testCertificate(nil)
	founder.Identity, founder.Name, founder.Capabilities = public("founder"), "first", []string{CapRotate}
	w.founder = must(ParseCertificate(must(founder.Sign(key("ca")))(t), public("ca")))(t)
	joined := testCertificate(w.credential)
	w.joined = must(ParseCertificate(must(joined.Sign(key("credential")))(t), public("ca")))(t)
	admission := Admission{Certificate: w.joined.Hash, Admitter: w.founder.Hash, Seen: start.Add(time.Hour)}
	w.admission = must(ParseAdmission(admission.Sign(key("founder"))))(t)
	record := testRecord(w.joined.Hash)
	w.record = must(ParseRecord(must(record.Sign(key("node")))(t)))(t)
	revocation, tombstone, rekey := testRevocation(w.joined.ID()), testTombstone(w.joined.ID(), w.founder.Hash), testRekey(w.joined.ID(), w.founder.Hash)
	w.revocation = must(ParseRevocation(must(revocation.Sign(key("ca")))(t), public("ca")))(t)
	w.tombstone = must(ParseTombstone(must(tombstone.Sign(key("founder")))(t)))(t)
	w.rekey = must(ParseRekey(must(rekey.Sign(key("founder")))(t)))(t)
	w.token = &Token{
		Charter: w.charter, Credential: w.credential, Key: key("credential"),
		GossipKey: make([]byte, GossipKeySize), Seeds: []string{"seed.example:7946", "192.0.2.1:7946"},
	}
	return w
}

// must unwraps a result inside an expression and ends the test on an error.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
