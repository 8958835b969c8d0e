package trust

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestPermit(t *testing.T) {
	list := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, prefix(p))
		}
		return out
	}
	for _, c := range []struct {
		name   string
		rights Rights
		lease  []netip.Prefix
		want   bool
	}{
		{"no limits", Rights{}, list("10.86.1.0/24", "fd86:1:2:1::/64"), true},
		{"in the range", Rights{Ranges: list("10.86.16.0/20")}, list("10.86.17.0/24", "fd86:1:2:11::/64"), true},
		{"the whole range", Rights{Ranges: list("10.86.16.0/20")}, list("10.86.16.0/20"), true},
		{"wider than the range", Rights{Ranges: list("10.86.16.0/20")}, list("10.86.0.0/16"), false},
		{"outside the range", Rights{Ranges: list("10.86.16.0/20")}, list("10.86.32.0/24"), false},
		{"in the second range", Rights{Ranges: list("10.86.16.0/20", "10.86.64.0/20")}, list("10.86.65.0/24"), true},
		{"one family outside", Rights{Ranges: list("10.86.16.0/20", "fd86:1:2::/60")}, list("10.86.17.0/24", "fd86:1:2:11::/64"), false},
		{"the pin", Rights{Pins: list("10.86.5.0/24")}, list("10.86.5.0/24", "fd86:1:2:5::/64"), true},
		{"not the pin", Rights{Pins: list("10.86.5.0/24")}, list("10.86.6.0/24", "fd86:1:2:6::/64"), false},
		{"part of the pin", Rights{Pins: list("10.86.5.0/24")}, list("10.86.5.0/25"), false},
		{"pin of the other family", Rights{Pins: list("10.86.5.0/24", "fd86:1:2:5::/64")}, list("10.86.5.0/24", "fd86:1:2:6::/64"), false},
		{"pin of a family that the lease has not", Rights{Pins: list("fd86:1:2:5::/64")}, list("10.86.6.0/24"), false},
		{"pin of one family, lease of the other too", Rights{Pins: list("fd86:1:2:5::/64")}, list("10.86.5.0/24", "fd86:1:2:5::/64"), true},
	} {
		if got := c.rights.Permit(c.lease); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestCredentialBounds(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Credential)
		ok     bool
	}{
		{"as it is", func(*Credential) {}, true},
		{"any name", func(c *Credential) { c.NamePattern = "" }, true},
		{"any number of uses", func(c *Credential) { c.Uses = 0 }, true},
		{"short key", func(c *Credential) { c.Key = c.Key[:31] }, false},
		{"no time", func(c *Credential) { c.NotAfter = c.NotBefore }, false},
		{"ends before it begins", func(c *Credential) { c.NotAfter = c.NotBefore.Add(-time.Second) }, false},
		{"before 1970", func(c *Credential) { c.NotBefore = time.Unix(-1, 0) }, false},
		{"beyond 9999", func(c *Credential) { c.NotAfter = time.Unix(math.MaxInt64, 0) }, false},
		{"certificates of no time", func(c *Credential) { c.MaxCertLife = 0 }, false},
		{"certificates of negative time", func(c *Credential) { c.MaxCertLife = -time.Hour }, false},
		{"certificates of 101 years", func(c *Credential) { c.MaxCertLife = 101 * 365 * 24 * time.Hour }, false},
		{"broken pattern", func(c *Credential) { c.NamePattern = "web-[" }, false},
		{"pattern with an escape", func(c *Credential) { c.NamePattern = "\x1b*" }, false},
		{"pattern of 64", func(c *Credential) { c.NamePattern = strings.Repeat("*", 64) }, false},
		{"range with host bits", func(c *Credential) { c.Rights.Ranges[0] = prefix("10.86.16.1/20") }, false},
		{"v4-mapped range", func(c *Credential) { c.Rights.Ranges[0] = prefix("::ffff:10.86.16.0/116") }, false},
		{"no range", func(c *Credential) { c.Rights.Ranges[0] = netip.Prefix{} }, false},
		{"5 pins", func(c *Credential) { c.Rights.Pins = make([]netip.Prefix, 5) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			credential := testCredential()
			c.change(&credential)
			raw, err := credential.Sign(key("ca"))
			if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrMalformed) {
				t.Fatalf("Sign: %v", err)
			}
			if err == nil {
				if _, err := ParseCredential(raw, public("ca")); err != nil {
					t.Errorf("Parse refuses what Sign made: %v", err)
				}
			}
		})
	}
	credential := testCredential()
	if _, err := ParseCredential(must(credential.Sign(key("node")))(t), public("ca")); !errors.Is(err, ErrSignature) {
		t.Errorf("signed by another than the CA: %v", err)
	}
}

// TestCertificateBeyondItsCredential signs, with the credential's true key, what
// the credential does not allow: whoever holds a token can do that.
func TestCertificateBeyondItsCredential(t *testing.T) {
	w := newWorld(t)
	pinned := testCredential()
	pinned.Rights = Rights{Pins: []netip.Prefix{prefix("10.86.5.0/24")}}
	open := testCredential()
	open.Rights = Rights{}
	parse := func(c Credential) *Credential {
		return must(ParseCredential(must(c.Sign(key("ca")))(t), public("ca")))(t)
	}
	ranged, pin, free := w.credential, parse(pinned), parse(open)
	five := []netip.Prefix{prefix("10.86.5.0/24")}
	for _, c := range []struct {
		name       string
		credential *Credential
		change     func(*Certificate)
		want       error
	}{
		{"as allowed", ranged, func(*Certificate) {}, nil},
		{"as allowed, pinned", pin, func(*Certificate) {}, nil},
		{"as allowed, free", free, func(*Certificate) {}, nil},
		{"longest life", ranged, func(c *Certificate) { c.NotAfter = c.NotBefore.Add(ranged.MaxCertLife) }, nil},
		{"life too long", ranged, func(c *Certificate) { c.NotAfter = c.NotBefore.Add(ranged.MaxCertLife + time.Second) }, ErrForbidden},
		{"begins before", ranged, func(c *Certificate) { c.NotBefore = start.Add(-time.Second) }, ErrForbidden},
		{"begins after", ranged, func(c *Certificate) { c.NotBefore = ranged.NotAfter.Add(time.Second) }, ErrForbidden},
		{"seniority before", ranged, func(c *Certificate) { c.Admitted = start.Add(-time.Second) }, ErrForbidden},
		{"no seniority", ranged, func(c *Certificate) { c.Admitted = time.Time{} }, ErrForbidden},
		{"other name", ranged, func(c *Certificate) { c.Name = "db-1" }, ErrForbidden},
		{"capability", ranged, func(c *Certificate) { c.Capabilities = []string{CapRotate} }, ErrForbidden},
		{"no range", ranged, func(c *Certificate) { c.Rights.Ranges = nil }, ErrForbidden},
		{"another range", ranged, func(c *Certificate) { c.Rights.Ranges = []netip.Prefix{prefix("10.86.0.0/16")} }, ErrForbidden},
		{"one more range", ranged, func(c *Certificate) {
			c.Rights.Ranges = append(c.Rights.Ranges[:1:1], prefix("10.86.64.0/20"))
		}, ErrForbidden},
		{"pin inside the range", ranged, func(c *Certificate) { c.Rights.Pins = []netip.Prefix{prefix("10.86.17.0/24")} }, ErrForbidden},
		{"pin of the family that is not ranged", ranged, func(c *Certificate) {
			c.Rights = Rights{Pins: []netip.Prefix{prefix("fd86:1:2:1::/64")}}
		}, ErrForbidden},
		{"no pin", pin, func(c *Certificate) { c.Rights.Pins = nil }, ErrForbidden},
		{"another pin", pin, func(c *Certificate) { c.Rights.Pins = []netip.Prefix{prefix("10.86.6.0/24")} }, ErrForbidden},
		{"one more pin", pin, func(c *Certificate) { c.Rights.Pins = append(five[:1:1], prefix("10.86.6.0/24")) }, ErrForbidden},
		{"pin from a free token", free, func(c *Certificate) { c.Rights.Pins = five }, ErrForbidden},
		{"narrower than a free token", free, func(c *Certificate) { c.Rights.Ranges = five }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cert := testCertificate(c.credential)
			c.change(&cert)
			if _, err := cert.Sign(key("credential")); !errors.Is(err, c.want) {
				t.Errorf("Sign: %v, want %v", err, c.want)
			}
			_, err := ParseCertificate(rawCertificate(cert, "credential"), public("ca"))
			if !errors.Is(err, c.want) {
				t.Errorf("Parse: %v, want %v", err, c.want)
			}
		})
	}
}

// rawCertificate signs without looking.
func rawCertificate(c Certificate, signer string) []byte {
	b := certificateBody{
		Serial: c.Serial, Identity: c.Identity, Name: c.Name, SealKey: c.SealKey,
		Ranges: c.Rights.Ranges, Pins: c.Rights.Pins, Capabilities: c.Capabilities,
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, Admitted: c.Admitted,
	}
	if c.Credential != nil {
		b.Credential = c.Credential.Raw
	}
	return sign(key(signer), KindCertificate, b)
}

func TestCertificateSigner(t *testing.T) {
	w := newWorld(t)
	byCA, byToken := testCertificate(nil), testCertificate(w.credential)
	for _, c := range []struct {
		name   string
		cert   Certificate
		signer string
		want   error
	}{
		{"CA", byCA, "ca", nil},
		{"credential", byToken, "credential", nil},
		{"credential's key without its credential", byCA, "credential", ErrSignature},
		{"CA beside a credential", byToken, "ca", ErrSignature},
		{"the node itself", byCA, "node", ErrSignature},
		{"another key beside a credential", byToken, "node", ErrSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := ParseCertificate(rawCertificate(c.cert, c.signer), public("ca")); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	t.Run("credential of another mesh", func(t *testing.T) {
		foreign := testCredential()
		c := must(ParseCredential(must(foreign.Sign(key("other ca")))(t), public("other ca")))(t)
		if _, err := ParseCertificate(rawCertificate(testCertificate(c), "credential"), public("ca")); !errors.Is(err, ErrSignature) {
			t.Errorf("got %v, want ErrSignature", err)
		}
	})
}

func TestCertificateBounds(t *testing.T) {
	for name, change := range map[string]func(*Certificate){
		"short identity":        func(c *Certificate) { c.Identity = c.Identity[:31] },
		"long identity":         func(c *Certificate) { c.Identity = append(c.Identity[:32:32], 0) },
		"no name":               func(c *Certificate) { c.Name = "" },
		"name with a newline":   func(c *Certificate) { c.Name = "web-1\nroot" },
		"name with an escape":   func(c *Certificate) { c.Name = "\x1b[2J" },
		"name with a zero":      func(c *Certificate) { c.Name = "web\x00" },
		"upper case":            func(c *Certificate) { c.Name = "Web" },
		"no time":               func(c *Certificate) { c.NotAfter = c.NotBefore },
		"ends before it begins": func(c *Certificate) { c.NotAfter = c.NotBefore.Add(-time.Hour) },
		"101 years":             func(c *Certificate) { c.NotAfter = c.NotBefore.Add(101 * 365 * 24 * time.Hour) },
		"beyond 9999":           func(c *Certificate) { c.NotAfter = time.Unix(math.MaxInt64, 0) },
		"all of time": func(c *Certificate) {
			c.NotBefore, c.NotAfter = time.Unix(math.MinInt64, 0), time.Unix(math.MaxInt64, 0)
		},
		"admitted beyond 9999":       func(c *Certificate) { c.Admitted = time.Unix(math.MaxInt64, 0) },
		"5 ranges":                   func(c *Certificate) { c.Rights.Ranges = make([]netip.Prefix, 5) },
		"pin with host bits":         func(c *Certificate) { c.Rights.Pins = []netip.Prefix{prefix("10.86.5.1/24")} },
		"17 capabilities":            func(c *Certificate) { c.Capabilities = strings.Split(strings.Repeat("x,", 16)+"x", ",") },
		"empty capability":           func(c *Certificate) { c.Capabilities = []string{""} },
		"capability with an escape":  func(c *Certificate) { c.Capabilities = []string{"\x1b"} },
		"capability of 33 letters":   func(c *Certificate) { c.Capabilities = []string{strings.Repeat("x", 33)} },
		"capability beyond ASCII":    func(c *Certificate) { c.Capabilities = []string{"rötate"} },
		"capability that is no word": func(c *Certificate) { c.Capabilities = []string{"a b"} },
	} {
		t.Run(name, func(t *testing.T) {
			cert := testCertificate(nil)
			change(&cert)
			if _, err := cert.Sign(key("ca")); !errors.Is(err, ErrMalformed) {
				t.Errorf("Sign: %v, want ErrMalformed", err)
			}
			if _, err := ParseCertificate(rawCertificate(cert, "ca"), public("ca")); !errors.Is(err, ErrMalformed) {
				t.Errorf("Parse: %v, want ErrMalformed", err)
			}
		})
	}
}

func TestValidAt(t *testing.T) {
	c := testCertificate(nil)
	for at, want := range map[time.Time]bool{
		c.NotBefore.Add(-1): false, c.NotBefore: true, c.NotAfter.Add(-1): true, c.NotAfter: false,
	} {
		if c.ValidAt(at) != want {
			t.Errorf("at %s: %v", at, !want)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"", "any", true}, {"*", "any", true}, {"web-*", "web-1", true}, {"web-*", "db-1", false},
		{"web-?", "web-12", false}, {"web-[0-9]", "web-x", false}, {"web-[", "web-[", false},
	} {
		if got := matches(c.pattern, c.name); got != c.want {
			t.Errorf("%q, %q: %v", c.pattern, c.name, got)
		}
	}
}

func ExampleRights_Permit() {
	r := Rights{Ranges: []netip.Prefix{netip.MustParsePrefix("10.86.16.0/20")}}
	fmt.Println(r.Permit([]netip.Prefix{netip.MustParsePrefix("10.86.17.0/24")}))
	fmt.Println(r.Permit([]netip.Prefix{netip.MustParsePrefix("10.86.32.0/24")}))
	// Output:
	// true
	// false
}
