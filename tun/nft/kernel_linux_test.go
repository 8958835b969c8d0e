//go:build linux

package nft

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"

	"meshd/tun"
	"meshd/tun/netns"
)

// kernel is a namespace with a firewall.
type kernel struct {
	testing.TB
	ns *netns.NS
	*Firewall
}

func newKernel(t testing.TB) kernel {
	t.Helper()
	ns := netns.ForTest(t)
	return kernel{t, ns, New(Options{Namespace: ns.Do})}
}

// do changes the kernel's rules as another program would.
func (k kernel) do(change func(*nftables.Conn) error) {
	k.Helper()
	err := k.ns.Do(func() error {
		c := new(nftables.Conn)
		if err := change(c); err != nil {
			return err
		}
		return c.Flush()
	})
	if err != nil {
		k.Fatal(err)
	}
}

// changes applies and gives what had to be done.
func (k kernel) changes(want tun.Rules) []string {
	k.Helper()
	done, err := k.apply(k.Context(), want)
	if err != nil {
		k.Fatal(err)
	}
	return done
}

func TestApply(t *testing.T) {
	for name, want := range wants() {
		t.Run(name, func(t *testing.T) {
			k := newKernel(t)
			tables := 1
			if len(want.Ports) > 0 {
				tables = 2
			}
			if done := k.changes(want); len(done) != tables {
				t.Errorf("applying to an empty kernel did %q, want %d tables", done, tables)
			}
			for range 2 {
				if done := k.changes(want); len(done) != 0 {
					t.Errorf("applying the same again did %q, want nothing", done)
				}
			}
			k.wantListing(want)
			for other, rules := range wants() {
				if done := k.changes(rules); (len(done) == 0) != (other == name) {
					t.Errorf("%s after %s did %q", other, name, done)
				}
				k.changes(want)
			}
			if removed, err := k.Remove(t.Context()); err != nil || len(removed) != 2 { // one of them had ports
				t.Errorf("Remove = %q, %v", removed, err)
			}
			if removed, err := k.Remove(t.Context()); err != nil || len(removed) != 0 {
				t.Errorf("Remove of nothing = %q, %v", removed, err)
			}
			k.do(func(c *nftables.Conn) error {
				tables, err := c.ListTables()
				if len(tables) != 0 {
					t.Errorf("%d tables are left", len(tables))
				}
				return err
			})
		})
	}
}

// wantListing has nft, which others wrote, read the table: the kernel has what
// our text says.
func (k kernel) wantListing(want tun.Rules) {
	k.Helper()
	program, err := exec.LookPath("nft")
	if err != nil {
		k.Log("not compared with what nft lists: ", err)
		return
	}
	// How nft calls fields for which it has no name, and what it leaves out since
	// the rest implies it.
	names := strings.NewReplacer(
		"meta protocol ip iifname", "iifname", "meta l4proto ipv6-icmp ", "", "meta l4proto udp ", "", "@nh,192,32", "arp daddr ip",
		"@nh,112,32 0x0", "arp saddr ip 0.0.0.0", "@nh,64,16 0xfe80", "ip6 saddr fe80::/16",
		"@nh,64,128 0x0", "ip6 saddr ::", "@nh,192,8 0xff", "ip6 daddr ff00::/8",
		"@ll,48,48", "ether saddr", "@nh,96,32", "ip saddr", "@nh,64,48", "arp saddr ether", "@nh,112,32", "arp saddr ip",
		"@nh,64,128", "ip6 saddr", "@th,64,128", "icmpv6 taddr")
	inOrder := func(list string) string {
		all := strings.Split(strings.TrimSuffix(strings.TrimPrefix(list, "elements = { "), " }"), ", ")
		slices.Sort(all)
		return strings.Join(all, ", ")
	}
	words := func(s string) string {
		s = strings.Join(strings.Fields(names.Replace(s)), " ")
		return regexp.MustCompile(`elements = \{ [^}]* \}`).ReplaceAllStringFunc(s, inOrder)
	}
	for _, rules := range compile(want) {
		if len(rules.chains) == 0 {
			continue
		}
		var out []byte
		err = k.ns.Do(func() (err error) {
			out, err = exec.CommandContext(k.Context(), program, "list", "table", families[rules.table.Family], TableName).CombinedOutput()
			return err
		})
		if err != nil {
			k.Fatalf("nft list: %v\n%s", err, out)
		}
		if got, text := words(string(out)), words(rules.String()); got != text {
			k.Errorf("nft lists\n%s\nwant\n%s", out, rules)
		}
	}
}

func TestApplyRepairs(t *testing.T) {
	want := wants()["two_networks"]
	for name, damage := range map[string]func(*nftables.Conn) error{
		"table deleted": func(c *nftables.Conn) error { c.DelTable(table); return nil },
		"rules flushed": func(c *nftables.Conn) error { c.FlushTable(table); return nil },
		"all flushed":   func(c *nftables.Conn) error { c.FlushRuleset(); return nil },
		"a rule deleted": func(c *nftables.Conn) error {
			rules, err := c.GetRules(table, &nftables.Chain{Name: fromMesh})
			if err == nil {
				rules[1].Table = table
				err = c.DelRule(rules[1])
			}
			return err
		},
		"a rule put first": func(c *nftables.Conn) error {
			c.InsertRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: fromMesh}, Exprs: accept().exprs()})
			return nil
		},
		"a rule replaced": func(c *nftables.Conn) error {
			rules, err := c.GetRules(table, &nftables.Chain{Name: fromSegment + "db"})
			if err == nil {
				r := rules[len(rules)-1]
				r.Table, r.Exprs = table, accept().exprs()
				c.ReplaceRule(r)
			}
			return err
		},
		"an element deleted": func(c *nftables.Conn) error {
			return c.SetDeleteElements(&nftables.Set{Table: table, Name: linksOf + "db"}, []nftables.SetElement{{Key: ifname("mbr-db")}})
		},
		"a chain more": func(c *nftables.Conn) error {
			c.AddChain(&nftables.Chain{Name: "more", Table: table})
			return nil
		},
		"a policy changed": func(c *nftables.Conn) error {
			drop := nftables.ChainPolicyDrop
			c.AddChain(&nftables.Chain{Name: "forward", Table: table, Policy: &drop})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(t)
			k.changes(want)
			k.do(damage)
			if done := k.changes(want); len(done) != 1 {
				t.Errorf("repair did %q, want one transaction", done)
			}
			if done := k.changes(want); len(done) != 0 {
				t.Errorf("after the repair: %q", done)
			}
			k.wantListing(want)
		})
	}
}

// wantsChanges applies and compares what had to be done.
func (k kernel) wantsChanges(when string, rules tun.Rules, want ...string) {
	k.Helper()
	if done := k.changes(rules); !slices.Equal(done, want) {
		k.Errorf("%s it does\n%s\nwant\n%s", when, strings.Join(done, "\n"), strings.Join(want, "\n"))
	}
	k.wantListing(rules)
}

func TestContainersComeAndGo(t *testing.T) {
	k := newKernel(t)
	few, more := crowd(3), crowd(4)
	k.changes(few)
	comes := []string{
		`nft add element inet meshd addresses4 { "mv-0000000003" . 10.86.17.3 }`,
		`nft add element inet meshd addresses6 { "mv-0000000003" . fd86:0:0:11::5, "mv-0000000003" . fe80::ff:fe00:3 }`,
		`nft add element bridge meshd macs { "mv-0000000003" . 02:00:00:00:00:03 }`,
		`nft add element bridge meshd addresses4 { "mv-0000000003" . 10.86.17.3 }`,
		`nft add element bridge meshd addresses6 { "mv-0000000003" . fd86:0:0:11::5, "mv-0000000003" . fe80::ff:fe00:3 }`,
	}
	goes := slices.Clone(comes)
	for i := range goes {
		goes[i] = strings.Replace(goes[i], "nft add", "nft delete", 1)
	}
	k.wantsChanges("for a container that comes", more, comes...)
	k.wantsChanges("for the same", more)
	k.wantsChanges("for one that goes", few, goes...)

	// Other programs change rules between: nothing is taken for granted then.
	macsOfPorts := &nftables.Set{Table: bridged, Name: macs}
	more.Ports[0].MAC = "02:00:00:00:00:99"
	k.changes(more)
	k.do(func(c *nftables.Conn) error {
		c.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyINet})
		return nil
	})
	k.wantsChanges("after a change elsewhere", more)
	k.do(func(c *nftables.Conn) error { c.FlushSet(macsOfPorts); return nil })
	k.wantsChanges("after a flush of a set", more, `nft add element bridge meshd macs { `+
		`"mv-0000000000" . 02:00:00:00:00:99, "mv-0000000001" . 02:00:00:00:00:01, "mv-0000000002" . 02:00:00:00:00:02, "mv-0000000003" . 02:00:00:00:00:03 }`)
	k.do(func(c *nftables.Conn) error {
		stranger := set{also: nftables.TypeEtherAddr, elements: []element{{"mv-0000000001", []byte{2, 0, 0, 0, 0, 0x42}}}}
		return inParts(stranger.keys(), func(e []nftables.SetElement) error { return c.SetAddElements(macsOfPorts, e) })
	})
	k.wantsChanges("after somebody let a container lie", more, `nft delete element bridge meshd macs { "mv-0000000001" . 02:00:00:00:00:42 }`)
	k.do(func(c *nftables.Conn) error { c.DelTable(bridged); return nil })
	few.Ports[0].MAC = more.Ports[0].MAC
	k.wantsChanges("after a table went", few, append(goes[:2], "nft replace table bridge meshd")...)
}

// Rules for bridges stay while anything is wanted: they hold for containers of which
// nobody knows any more, and which send nothing then.
func TestBridgesStayClosed(t *testing.T) {
	k := newKernel(t)
	want, none := crowd(2), crowd(0)
	if done := k.changes(none); slices.ContainsFunc(done, func(s string) bool { return strings.Contains(s, "bridge") }) {
		t.Errorf("for a host that has no containers it does %q", done)
	}
	k.changes(want)
	k.changes(none)
	k.changes(none)
	k.do(func(c *nftables.Conn) error {
		rules, err := c.GetRules(bridged, &nftables.Chain{Name: fromPort})
		elements, setErr := c.GetSetElements(&nftables.Set{Table: bridged, Name: macs})
		if len(rules) != 2 || len(elements) != 0 {
			t.Errorf("without containers there are %d rules, and they know %d", len(rules), len(elements))
		}
		return errors.Join(err, setErr)
	})
	if done := k.changes(tun.Rules{}); !slices.Contains(done, "nft delete table bridge meshd") {
		t.Errorf("when nothing is wanted it does %q", done)
	}
}

// More than one message holds.
func TestManyContainers(t *testing.T) {
	k := newKernel(t)
	many := crowd(2*maxElements + 1)
	k.wantsChanges("for many", many, "nft replace table inet meshd", "nft replace table bridge meshd")
	k.changes(crowd(1))
	k.changes(many)
	k.wantsChanges("for many again", many)
}

// iptablesForward makes what iptables does: a chain FORWARD with a policy, and a
// rule like those of Docker.
func iptablesForward(family nftables.TableFamily, policy nftables.ChainPolicy) func(*nftables.Conn) error {
	return func(c *nftables.Conn) error {
		filter := c.AddTable(&nftables.Table{Name: "filter", Family: family})
		chain := c.AddChain(&nftables.Chain{
			Name: "FORWARD", Table: filter, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
		})
		var info xt.ConntrackMtinfo3
		info.MatchFlags = 1 << 0 // XT_CONNTRACK_STATE
		info.StateMask = 1<<1 | 1<<2
		c.AddRule(&nftables.Rule{Table: filter, Chain: chain, Exprs: append(out("docker0").exprs(),
			&expr.Match{Name: "conntrack", Rev: 3, Info: &info}, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})})
		return nil
	}
}

// comments lists the comments of the rules of a chain FORWARD.
func (k kernel) comments(family nftables.TableFamily) string {
	k.Helper()
	var all []string
	k.do(func(c *nftables.Conn) error {
		rules, err := c.GetRules(&nftables.Table{Name: "filter", Family: family}, &nftables.Chain{Name: "FORWARD"})
		for _, r := range rules {
			text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			all = append(all, text)
		}
		return err
	})
	return strings.Join(all, ",")
}

func TestForwardIsOpened(t *testing.T) {
	want := wants()["two_networks"]
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		k := newKernel(t)
		k.do(iptablesForward(family, nftables.ChainPolicyDrop))
		k.changes(want)
		const open = "meshd,meshd,meshd,meshd,"
		check := func(when, want string) {
			t.Helper()
			if got := k.comments(family); got != want {
				t.Errorf("%s the rules of FORWARD have the comments %q, want %q", when, got, want)
			}
		}
		check("at first", open)
		if done := k.changes(want); len(done) != 0 {
			t.Errorf("the same again did %q", done)
		}
		filter, chain := &nftables.Table{Name: "filter", Family: family}, &nftables.Chain{Name: "FORWARD"}
		k.do(func(c *nftables.Conn) error {
			c.InsertRule(&nftables.Rule{Table: filter, Chain: chain, Exprs: drop(in("eth7")).exprs()})
			return nil
		})
		k.changes(want)
		check("after somebody put a rule before them", ","+open)

		k.do(func(c *nftables.Conn) error {
			c.FlushChain(&nftables.Chain{Name: "FORWARD", Table: filter})
			return nil
		})
		check("after a flush", "")
		k.changes(want)
		check("after the repair", strings.TrimSuffix(open, ","))

		k.do(func(c *nftables.Conn) error {
			rules, err := c.GetRules(filter, chain)
			if err == nil {
				rules[2].Table = filter
				err = c.DelRule(rules[2])
			}
			return err
		})
		k.changes(want)
		check("after one was deleted", strings.TrimSuffix(open, ","))

		k.changes(wants()["no_containers"])
		check("without containers", "")
		k.changes(want)
		if removed, err := k.Remove(t.Context()); err != nil || len(removed) != 5 {
			t.Errorf("Remove = %q, %v; want a table and four rules", removed, err)
		}
		check("after all was removed", "")
	}
}

func TestObstacles(t *testing.T) {
	k := newKernel(t)
	k.legacy = filepath.Join(t.TempDir(), "ip_tables_names")
	check := func(when string, want ...string) {
		t.Helper()
		got, err := k.Obstacles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%s: %q, want %d", when, got, len(want))
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("%s: %q, want %q in it", when, got[i], want[i])
			}
		}
	}
	k.do(iptablesForward(nftables.TableFamilyIPv4, nftables.ChainPolicyDrop))
	k.changes(wants()["two_networks"])
	check("what we can open")

	policy := nftables.ChainPolicyDrop
	k.do(func(c *nftables.Conn) error {
		firewalld := c.AddTable(&nftables.Table{Name: "firewalld", Family: nftables.TableFamilyINet})
		c.AddChain(&nftables.Chain{
			Name: "filter_FORWARD", Table: firewalld, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(10), Policy: &policy,
		})
		return nil
	})
	check("another firewall", "filter_FORWARD")
	if err := os.WriteFile(k.legacy, []byte("nat\nfilter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	check("and the old iptables", "filter_FORWARD", "iptables-legacy")
}

func TestWatch(t *testing.T) {
	k := newKernel(t)
	ctx, cancel := context.WithCancel(t.Context())
	changed, done := make(chan struct{}, 1), make(chan error, 1)
	go func() { done <- k.Watch(ctx, changed) }()
	signalled := func(when string) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("no signal %s", when)
		}
	}
	signalled("when it begins")
	k.do(iptablesForward(nftables.TableFamilyIPv4, nftables.ChainPolicyDrop))
	signalled("after a new chain")
	k.changes(wants()["two_networks"])
	signalled("after our own change")
	for len(changed) > 0 {
		<-changed
	}
	flush := func(table, set string) {
		k.do(func(c *nftables.Conn) error {
			c.FlushSet(&nftables.Set{Table: &nftables.Table{Name: table, Family: nftables.TableFamilyINet}, Name: set})
			return nil
		})
	}
	k.do(func(c *nftables.Conn) error {
		other := c.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyINet})
		return c.AddSet(&nftables.Set{Table: other, Name: "names", KeyType: nftables.TypeIFName}, []nftables.SetElement{{Key: ifname("eth0")}})
	})
	signalled("after a new table")
	flush("other", "names")
	flush(TableName, linksOf+"db")
	signalled("after a flush of a set of ours")
	select {
	case <-changed:
		t.Error("a signal for elements of others")
	case <-time.After(50 * time.Millisecond):
	}
	k.do(func(c *nftables.Conn) error { c.FlushRuleset(); return nil })
	signalled("after a flush of everything")
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Watch = %v, want nil", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Watch does not end")
	}
}
