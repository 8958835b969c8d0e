package attach

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestPoolOrder(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		want   []string // all that it gives, in order
	}{
		{"10.86.7.0/29", []string{"10.86.7.2", "10.86.7.3", "10.86.7.4", "10.86.7.5", "10.86.7.6"}},
		{"10.86.7.8/30", []string{"10.86.7.10"}},
		{"10.86.7.8/31", []string{"10.86.7.9"}},
		{"10.86.7.8/32", nil},
		{"255.255.255.248/29", []string{"255.255.255.250", "255.255.255.251", "255.255.255.252", "255.255.255.253", "255.255.255.254"}},
		{"fd00::8/125", []string{"fd00::a", "fd00::b", "fd00::c", "fd00::d", "fd00::e"}},
		{"fd00::/127", []string{"fd00::1"}},
		{"fd00::/128", nil},
	} {
		t.Run(tt.prefix, func(t *testing.T) {
			p := newPool(netip.MustParsePrefix(tt.prefix), nil, poolState{})
			var got []string
			for {
				a, err := p.take()
				if errors.Is(err, ErrExhausted) {
					break
				}
				if err != nil || len(got) > len(tt.want) {
					t.Fatalf("%v after %v", err, got)
				}
				got = append(got, a.String())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("gives %v, want %v", got, tt.want)
			}
		})
	}
}

func TestPoolLarge(t *testing.T) {
	for _, prefix := range []string{"fd00:86:0:7::/64", "fd00:86::/48", "fd00::/8", "10.0.0.0/8", "fd00::7:0:0:0/66"} {
		p := newPool(netip.MustParsePrefix(prefix), nil, poolState{Prefix: netip.MustParsePrefix(prefix), Next: p63 - 10})
		seen := map[netip.Addr]bool{}
		for range 2000 {
			a, err := p.take()
			if err != nil || seen[a] || !p.usable(a) {
				t.Fatalf("%s gives %s, %v; before: %t", prefix, a, err, seen[a])
			}
			seen[a] = true
		}
	}
}

const p63 = 1<<63 - 3

func TestPoolWishes(t *testing.T) {
	p := newPool(netip.MustParsePrefix("10.86.7.0/24"), []netip.Addr{netip.MustParseAddr("10.86.7.2")}, poolState{})
	for _, tt := range []struct {
		wish string
		want error
	}{
		{"10.86.7.0", ErrOutside},
		{"10.86.7.1", ErrTaken},
		{"10.86.7.2", ErrTaken},
		{"10.86.7.254", nil},
		{"10.86.7.254", ErrTaken},
		{"10.86.7.255", ErrOutside},
		{"10.86.8.0", ErrOutside},
		{"10.86.6.255", ErrOutside},
		{"fd00::2", ErrOutside},
	} {
		if err := p.wish(netip.MustParseAddr(tt.wish)); !errors.Is(err, tt.want) {
			t.Errorf("wish %s: %v, want %v", tt.wish, err, tt.want)
		}
	}
}

// naive is a pool that looks through all of its subnet each time.
type naive struct {
	all  []netip.Addr // for containers, in order
	held map[netip.Addr]bool
	line []netip.Addr
	next int
}

func (n *naive) take() (netip.Addr, error) {
	for i := range n.all {
		at := (n.next + i) % len(n.all)
		if a := n.all[at]; !n.held[a] && !slices.Contains(n.line, a) {
			n.held[a], n.next = true, at+1
			return a, nil
		}
	}
	if len(n.line) == 0 {
		return netip.Addr{}, ErrExhausted
	}
	a := n.line[0]
	n.line, n.held[a] = n.line[1:], true
	return a, nil
}

func (n *naive) wish(a netip.Addr) error {
	if n.held[a] {
		return ErrTaken
	}
	if !slices.Contains(n.all, a) {
		return ErrOutside
	}
	n.line = slices.DeleteFunc(n.line, func(l netip.Addr) bool { return l == a })
	n.held[a] = true
	return nil
}

func (n *naive) free(a netip.Addr) {
	if n.held[a] {
		delete(n.held, a)
		n.line = append(n.line, a)
	}
	if len(n.line) > maxLine {
		n.line = n.line[1:]
	}
}

// The pool does what one does that looks through everything, over restarts too.
func TestPoolIsAsTheNaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.SampledFrom([]int{22, 24, 27, 28, 29, 30, 31, 32}).Draw(t, "bits")
		prefix := netip.PrefixFrom(netip.MustParseAddr("10.86.4.0"), bits)
		if rapid.Bool().Draw(t, "IPv6") {
			prefix = netip.PrefixFrom(netip.MustParseAddr("fd00::400"), bits+96)
		}
		p, n := newPool(prefix, nil, poolState{}), &naive{held: map[netip.Addr]bool{}}
		size := 1 << (32 - bits)
		for i, a := 0, prefix.Addr(); i < size; i, a = i+1, a.Next() {
			if size > 2 && i > 1 && i < size-1 || size == 2 && i == 1 {
				n.all = append(n.all, a)
			}
		}
		address := rapid.Custom(func(t *rapid.T) netip.Addr {
			raw := prefix.Addr().AsSlice()
			raw[len(raw)-1] += byte(rapid.IntRange(-1, min(size, 40)).Draw(t, "offset"))
			a, _ := netip.AddrFromSlice(raw)
			return a
		})
		same := func(what string, a, b netip.Addr, got, want error) {
			if a != b && want == nil || (got == nil) != (want == nil) {
				t.Fatalf("%s: %s, %v; want %s, %v", what, a, got, b, want)
			}
		}
		many := func(do func()) {
			for range rapid.SampledFrom([]int{1, 1, 1, 300}).Draw(t, "times") {
				do()
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(*rapid.T) {
				many(func() {
					a, err := p.take()
					b, want := n.take()
					same("take", a, b, err, want)
				})
			},
			"wish": func(t *rapid.T) {
				a := address.Draw(t, "address")
				same("wish "+a.String(), a, a, p.wish(a), n.wish(a))
			},
			"free": func(t *rapid.T) {
				a := address.Draw(t, "address")
				p.free(a)
				n.free(a)
			},
			"free some": func(*rapid.T) {
				for _, a := range n.all[:min(300, len(n.all))] {
					p.free(a)
					n.free(a)
				}
			},
			"restart": func(*rapid.T) {
				var held []netip.Addr
				for a := range n.held {
					held = append(held, a)
				}
				p = newPool(prefix, held, p.state())
			},
			"": func(t *rapid.T) {
				if len(n.held)+len(n.line) != len(p.known) || !slices.Equal(n.line, p.line) {
					t.Fatalf("%d held, line %v; want %d, %v", len(p.known)-len(p.line), p.line, len(n.held), n.line)
				}
			},
		})
	})
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"network":"web","attachments":[{"id":"ctl/a","mode":"bridge","mac":"02:00:00:00:00:01","mtu":1420,"addresses":["10.87.3.2/24"]}],` +
		`"reserved":[{"door":"docker","address":"10.87.3.3/24"}],"uses":["docker/x"],"pools":[{"prefix":"10.87.3.0/24","next":3,"line":["10.87.3.9"]}]}`))
	f.Add([]byte(`{"network":"web","pools":[{"prefix":"::/0","next":18446744073709551615,"line":["::"]}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := parseDocument("web", raw)
		if err != nil {
			return
		}
		n := newNetwork("web")
		n.fill(d)
		again, err := n.document().encode()
		if err != nil {
			t.Fatal(err)
		}
		same, err := parseDocument("web", again)
		if err != nil {
			t.Fatalf("%s was written as\n%s: %v", raw, again, err)
		}
		if twice, err := same.encode(); err != nil || string(twice) != string(again) {
			t.Fatalf("%s, then %s: %v", again, twice, err)
		}
		for _, s := range d.Pools {
			if a, err := newPool(s.Prefix, nil, s).take(); err == nil && checkHeld(netip.PrefixFrom(a, s.Prefix.Bits())) != nil {
				t.Fatalf("%s gives %s", s.Prefix, a)
			}
		}
	})
}

func TestDocumentRefuses(t *testing.T) {
	entry := func(id, addresses string) string {
		return fmt.Sprintf(`{"id":%q,"mode":"bridge","mac":"02:00:00:00:00:01","mtu":1420,"addresses":[%s]}`, id, addresses)
	}
	good := entry("ctl/a", `"10.87.3.2/24"`)
	for name, tt := range map[string]struct {
		document string
		ok       bool
	}{
		"good":                    {`{"network":"web","attachments":[` + good + `]}`, true},
		"reserved by its door":    {`{"network":"web","attachments":[` + good + `],"reserved":[{"door":"ctl","address":"10.87.3.2/24"}]}`, true},
		"reserved by another":     {`{"network":"web","attachments":[` + good + `],"reserved":[{"door":"cni","address":"10.87.3.2/24"}]}`, false},
		"nothing":                 {``, false},
		"no object":               {`[]`, false},
		"another network":         {`{"network":"db"}`, false},
		"null":                    {`{"network":"web","attachments":[null]}`, false},
		"null reservation":        {`{"network":"web","reserved":[null]}`, false},
		"id twice":                {`{"network":"web","attachments":[` + good + `,` + entry("ctl/a", `"10.87.3.3/24"`) + `]}`, false},
		"id of a use":             {`{"network":"web","attachments":[` + good + `],"uses":["ctl/a"]}`, false},
		"address twice":           {`{"network":"web","attachments":[` + good + `,` + entry("ctl/b", `"10.87.3.2/24"`) + `]}`, false},
		"reservation twice":       {`{"network":"web","reserved":[{"door":"a","address":"10.87.3.2/24"},{"door":"a","address":"10.87.3.2/24"}]}`, false},
		"two of a family":         {`{"network":"web","attachments":[` + entry("ctl/a", `"10.87.3.2/24","10.87.3.3/24"`) + `]}`, false},
		"no address":              {`{"network":"web","attachments":[` + entry("ctl/a", ``) + `]}`, false},
		"the host's address":      {`{"network":"web","attachments":[` + entry("ctl/a", `"10.87.3.1/24"`) + `]}`, false},
		"no door":                 {`{"network":"web","attachments":[` + entry("a", `"10.87.3.2/24"`) + `]}`, false},
		"a door that is no name":  {`{"network":"web","reserved":[{"door":"../x","address":"10.87.3.2/24"}]}`, false},
		"a pool that is a host":   {`{"network":"web","pools":[{"prefix":"10.87.3.1/24"}]}`, false},
		"a pool without a prefix": {`{"network":"web","pools":[{}]}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseDocument("web", []byte(tt.document)); (err == nil) != tt.ok {
				t.Errorf("%s: %v", tt.document, err)
			}
		})
	}
}
