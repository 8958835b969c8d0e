//go:build linux

// Package nft makes the kernel's firewall look like [tun.Rules].
//
//	prerouting   TUN ──► from_mesh     links ──► from-NETWORK     others
//	forward      TUN ◄── to_mesh       links ◄── to-NETWORK
//	postrouting  masquerade what leaves the mesh
//
// Everything is in the tables "inet meshd" and, for what containers say to their
// neighbours on a bridge, "bridge meshd". They are replaced in one transaction when
// they are not as they should be; containers that come and go only change elements
// of sets. Chains of others are asked as well, and may drop what ours accept: in the
// chain FORWARD of iptables (nf_tables) our links are accepted at its head, also
// under Docker's policy DROP. [Firewall.Obstacles] tells of what is not ours to open.
//
// What is there is read each time, unless the kernel says that no rule of anybody
// has changed since; so Apply repairs what others undo and takes over after a crash.
// The owner runs [Firewall.Watch] and calls Apply when it signals. Needs
// CAP_NET_ADMIN.
package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"meshd/tun"
)

// TableName is the name of our table, of the family inet.
const TableName = "meshd"

var table = &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}

// The first round does the work. One more meets a race with another program, and
// the last one only looks.
const rounds = 3

// ErrNoNFTables says that the kernel has no nf_tables, or not what we need of it.
var ErrNoNFTables = errors.New("the kernel lacks nf_tables (modules nf_tables, nft_ct, nft_masq, nft_chain_nat)")

// Options for [New]. The zero value is for the process's own namespace.
type Options struct {
	// Namespace runs a function inside the network namespace to manage, such as
	// the method Do of netns.NS; nil: the one that the process is in.
	Namespace func(func() error) error
	Log       *slog.Logger // gets every change, at level debug; nil: none
}

// Firewall is a host's. Its methods may be called from any goroutine.
type Firewall struct {
	in     func(func() error) error // fixed at construction
	log    *slog.Logger             // fixed at construction
	legacy string                   // fixed at construction: the file that lists tables of the old iptables
	mu     sync.Mutex               // held while the kernel is changed
	seen   state                    // guarded by mu: what is there, unless the generation has changed
}

// New builds a Firewall; it touches nothing.
func New(o Options) *Firewall {
	f := &Firewall{in: o.Namespace, log: o.Log, legacy: "/proc/net/ip_tables_names"}
	if f.in == nil {
		f.in = func(fn func() error) error { return fn() }
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	return f
}

// Apply makes the firewall look like want.
func (f *Firewall) Apply(ctx context.Context, want tun.Rules) error {
	_, err := f.apply(ctx, want)
	return err
}

// Remove removes everything that is ours, whichever daemon left it, and lists it
// as commands.
func (f *Firewall) Remove(ctx context.Context) (removed []string, err error) {
	return f.apply(ctx, tun.Rules{})
}

func (f *Firewall) apply(ctx context.Context, want tun.Rules) (done []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	tables := compile(want)
	err = f.with(func(c *nftables.Conn) error {
		var err error
		for range rounds {
			if ctx.Err() != nil {
				return errors.Join(err, ctx.Err())
			}
			have, readErr := f.read(c)
			if readErr != nil {
				return readErr
			}
			tables := staying(have, tables, want)
			ops := diff(have, tables, opening(want))
			if len(ops) == 0 {
				return nil
			}
			for _, o := range ops {
				if err := o.add(c); err != nil {
					return fmt.Errorf("%s: %w", o.text, err) // half a batch goes with its socket
				}
			}
			if err = f.flush(c, ops); err == nil {
				f.foresee(have, tables, ops)
				for _, op := range ops {
					done = append(done, op.text)
				}
				err = fmt.Errorf("firewall does not stay as set, another program undoes %q", ops[0].text)
			}
		}
		return err
	})
	return done, err
}

// op is one change of the kernel, and its text is the command that would make it.
type op struct {
	text    string
	add     func(*nftables.Conn) error // to the batch
	element bool                       // it changes elements of a set, and nothing else
}

// staying keeps the rules for bridges as long as anything is wanted. Containers of
// which nobody tells us any more, since what is known of them is damaged, may well
// be on one still: they are cut off, rather than free to lie.
func staying(have state, tables []ruleset, want tun.Rules) []ruleset {
	if want.IsZero() || have.tables[bridged] == nil {
		return tables
	}
	tables = slices.Clone(tables)
	for i, t := range tables {
		if t.table == bridged && t.content == nil {
			t = bridgeFor(nil)
			t.content = contentOf(t)
			tables[i] = t
		}
	}
	return tables
}

// flush carries out what is in the batch, in one transaction.
func (f *Firewall) flush(c *nftables.Conn, ops []op) error {
	err := c.Flush()
	if err != nil {
		err = fmt.Errorf("change firewall: %w", withAdvice(err))
	}
	for _, o := range ops {
		f.log.Debug("firewall changed", "command", o.text, "err", err)
	}
	return err
}

// state is what the kernel has of ours, and where it belongs.
type state struct {
	generation uint32                       // to which this belongs; 0: not known
	tables     map[*nftables.Table]*content // ours; nil: there is none
	forwards   []forward                    // where others decide
}

// read tells what is there, without looking again if nobody has changed anything.
func (f *Firewall) read(c *nftables.Conn) (state, error) {
	before, err := generation()
	if err == nil && before == f.seen.generation {
		return f.seen, nil
	}
	chains, err := c.ListChains()
	if err != nil {
		return state{}, fmt.Errorf("list chains: %w", withAdvice(err))
	}
	s := state{tables: map[*nftables.Table]*content{}}
	for _, t := range []*nftables.Table{table, bridged} {
		if s.tables[t], err = readContent(c, t, chains); err != nil {
			return s, err
		}
	}
	if s.forwards, err = readForwards(c, chains); err != nil {
		return s, err
	}
	if after, err := generation(); err == nil && after == before {
		s.generation = after
	}
	f.seen = s
	return s, nil
}

// foresee tells read what is there after a change, if the next generation is the
// one that this made. What more than elements has changed is read.
func (f *Firewall) foresee(have state, tables []ruleset, ops []op) {
	f.seen = state{}
	if have.generation == 0 || slices.ContainsFunc(ops, func(o op) bool { return !o.element }) {
		return
	}
	f.seen = state{generation: have.generation + 1, tables: map[*nftables.Table]*content{}, forwards: have.forwards}
	for _, t := range tables {
		f.seen.tables[t.table] = t.content
	}
}

// diff lists the changes that lead from have to the tables, and open other
// firewalls for our links or close them again.
func diff(have state, tables []ruleset, open []match) []op {
	var ops []op
	for _, t := range tables {
		ops = append(ops, t.change(have.tables[t.table])...)
	}
	for _, f := range have.forwards {
		ops = append(ops, f.diff(open)...)
	}
	return ops
}

func withAdvice(err error) error {
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", ErrNoNFTables, err)
	}
	return err
}

// with runs fn inside the namespace, with an open socket.
func (f *Firewall) with(fn func(*nftables.Conn) error) error {
	return f.in(func() error {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(withRoom))
		if err != nil {
			return fmt.Errorf("open nf_tables socket: %w", withAdvice(err))
		}
		defer func() { _ = c.CloseLasting() }()
		return fn(c)
	})
}

// withRoom has a transaction fit into a socket, which goes there in one piece:
// some 300 bytes for each container.
func withRoom[Socket interface{ SetWriteBuffer(int) error }](s Socket) error {
	const forThousands = 4 << 20
	return s.SetWriteBuffer(forThousands)
}
