package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// resolveWait bounds the look-up of one seed's name.
const resolveWait = 3 * time.Second

// search is how this node looks for members.
type search struct {
	seeds []string
	at    time.Time   // of the next round
	round *instance   // that joins others now; nil: none does
	joins chan joined // result of a round; one at a time
	again bool        // there are new seeds, which that round does not know
	// gently: one address will do at first, since others are there. Who makes all members
	// of a large mesh take new names is not to make each exchange tables with eight others.
	gently bool
}

// join looks for members, one round at a time.
func (l *loop) join(now time.Time) {
	if l.inst == nil || l.parting.left || l.search.round != nil || now.Before(l.search.at) {
		return
	}
	l.search.round = l.inst
	inst, alone := l.inst, !l.book.alone.IsZero() && !l.search.gently
	l.search.gently = false
	known, live := slices.Clone(l.book.known), slices.Collect(maps.Values(inst.others()))
	named, own := l.search.seeds, []netip.AddrPort{inst.address}
	if l.sockets != nil {
		for _, a := range []netip.Addr{l.opt.Bind.Addr(), netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
			own = append(own, netip.AddrPortFrom(a, l.sockets.port()))
		}
	}
	live = append(live, l.book.skip(now)...)
	l.tasks.Go(func() {
		seeds := l.resolveSeeds(named, alone)
		before := l.seals.hungUp.Load()
		j := inst.join(targets(alone, seeds, known, live, own))
		j.otherKey = l.seals.hungUp.Load() != before
		l.search.joins <- j
	})
}

// resolveSeeds looks all seeds up, or one of them if we have company.
func (l *loop) resolveSeeds(seeds []string, all bool) []netip.AddrPort {
	if n := len(seeds); !all && n > 1 {
		i := rand.IntN(n)
		seeds = seeds[i : i+1]
	}
	found := make([][]netip.AddrPort, len(seeds))
	var wait sync.WaitGroup
	for i, s := range seeds {
		wait.Go(func() {
			addresses, err := resolve(l.ctx, s)
			if err != nil && l.ctx.Err() == nil {
				l.say.say(slog.LevelWarn, "seed not found, trying on", "seed", s, "err", err)
			}
			found[i] = addresses
		})
	}
	wait.Wait()
	return slices.Concat(found...)
}

// joined is what came of a round.
type joined struct {
	reached []netip.AddrPort // where a table was exchanged
	err     error            // of one address, if none was reached
	// otherKey: somebody hung up on us, as members do who cannot open what they get
	otherKey bool
}

// joined ends a round.
func (l *loop) joined(j joined) {
	now := time.Now()
	if l.search.round == l.inst { // else another name has reached them
		l.book.reach(j.reached, now)
	}
	l.opt.Core.OtherKey(j.otherKey && len(j.reached) == 0)
	if l.search.round == l.inst && !l.search.again { // else a new instance begins, or new seeds are tried, at once
		l.search.at = now.Add(l.book.pause(now))
	}
	l.search.round, l.search.again = nil, false
	if j.err != nil && !l.book.alone.IsZero() {
		l.say.say(slog.LevelInfo, "no member answers yet, trying on", "err", j.err)
	}
}

// join exchanges tables with each address, all at the same time.
func (i *instance) join(addresses []netip.AddrPort) joined {
	results := make([]error, len(addresses))
	var wait sync.WaitGroup
	for n, a := range addresses {
		wait.Go(func() {
			_, err := i.list.Join([]string{a.String()})
			if one := errors.Unwrap(err); one != nil {
				err = one // of a list of one, which would take three lines
			}
			results[n] = err
		})
	}
	wait.Wait()
	var out joined
	for n, err := range results {
		if err == nil {
			out.reached = append(out.reached, addresses[n])
		}
	}
	if len(results) > 0 && len(out.reached) == 0 {
		out.err = results[0]
	}
	return out
}

// splitSeed takes "host:port" apart.
func splitSeed(seed string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(seed)
	if err != nil || host == "" {
		return "", 0, fmt.Errorf("seed %q is not host:port", seed)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("seed %q has no port between 1 and 65535", seed)
	}
	return host, uint16(n), nil
}

// resolve finds a seed's addresses, anew each time.
func resolve(ctx context.Context, seed string) ([]netip.AddrPort, error) {
	host, port, err := splitSeed(seed)
	if err != nil {
		return nil, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{plain(netip.AddrPortFrom(a, port))}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	var out []netip.AddrPort
	for _, a := range found {
		out = append(out, plain(netip.AddrPortFrom(a, port)))
	}
	return out, err
}
