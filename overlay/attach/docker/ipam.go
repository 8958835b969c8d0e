package docker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
)

// How Docker chooses a pool is a trap. It asks for one before it tells the network
// driver about the network, so -o network=web comes too late; only --subnet and
// --ipam-opt are known by then. And engines before 27 look whether a pool that
// nobody chose with --subnet overlaps an IPv4 route or a nameserver of the host, and
// if so ask again, for ever. Every subnet of the mesh has a route. They take
// 0.0.0.0/0 without a look.
//
//	given                      pool                  PoolID    network
//	--subnet 10.87.0.0/16      as given              web/4     whose range that is
//	--ipam-opt network=web     0.0.0.0/0             web/4     web
//	  and --ipv6               its range             web/6
//	-o network=web, or neither 0.0.0.0/0 or ::/0     +9f86…/4  CreateNetwork tells; until then
//	                                                           others wait

var (
	anyIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	anyIPv6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// openPool is one that Docker asked for and has not used yet: it follows up at
// once, or never.
type openPool struct {
	id    poolID
	since time.Time
}

// openFor is how long an open pool counts.
const openFor = 10 * time.Second

func (d *driver) requestPool(ctx context.Context, r requestPoolRequest) (any, error) {
	name := r.Options[networkOption]
	if r.Pool != "" {
		p := netip.MustParsePrefix(r.Pool) // checked
		n, err := d.around(p)
		if err != nil {
			return nil, err
		}
		if name != "" && name != n.Name {
			return nil, fmt.Errorf("%s is of network %s of the mesh, not of %s", p, n.Name, name)
		}
		return requestPoolResponse{PoolID: poolID{n.Name, p.Addr().Is6()}.String(), Pool: p.String()}, nil
	}
	if name == "" {
		return d.unnamedPool(ctx, r.V6)
	}
	n, err := d.named(name)
	if err != nil {
		return nil, err
	}
	ranges := n.Ranges()
	i := slices.IndexFunc(ranges, func(p netip.Prefix) bool { return p.Addr().Is6() == r.V6 })
	if i < 0 && r.V6 {
		return nil, fmt.Errorf("network %s of the mesh has no IPv6: it is %s: %s", name, list([]mesh.Network{n}), withoutIPv6)
	}
	if i < 0 {
		return nil, fmt.Errorf("network %s of the mesh has no IPv4: it is %s", name, list([]mesh.Network{n}))
	}
	pool, id := anyIPv4, poolID{name, r.V6}
	if r.V6 {
		pool = ranges[i]
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgetOpenLocked()
	if slices.ContainsFunc(d.open, func(o openPool) bool { return o.id == id }) {
		return nil, fmt.Errorf("the engine asks for a subnet of network %s again and again: add --subnet %s", name, ranges[i])
	}
	d.open = append(d.open, openPool{id, time.Now()})
	return requestPoolResponse{PoolID: id.String(), Pool: pool.String()}, nil
}

// unnamedPool opens a pool that CreateNetwork will name. There is never more than
// one of a family, so that it is known which one is meant.
func (d *driver) unnamedPool(ctx context.Context, is6 bool) (any, error) {
	raw := make([]byte, 8)
	_, _ = rand.Read(raw) // it never fails
	id, pool := poolID{"+" + hex.EncodeToString(raw), is6}, anyIPv4
	if is6 {
		pool = anyIPv6
	}
	for {
		d.mu.Lock()
		d.forgetOpenLocked()
		other := d.unnamedLocked(is6)
		closed := d.closed
		if other < 0 {
			d.open = append(d.open, openPool{id, time.Now()})
			d.mu.Unlock()
			return requestPoolResponse{PoolID: id.String(), Pool: pool.String()}, nil
		}
		left := openFor - time.Since(d.open[other].since)
		d.mu.Unlock()
		select {
		case <-closed:
		case <-time.After(left):
		case <-ctx.Done():
			return nil, errors.New("other networks are being made: try again, or add --ipam-opt network=NAME")
		}
	}
}

// unnamedLocked finds the open pool of a family that has no name yet; -1: none.
func (d *driver) unnamedLocked(is6 bool) int {
	return slices.IndexFunc(d.open, func(o openPool) bool { return o.id.unnamed() && o.id.is6 == is6 })
}

func (d *driver) forgetOpenLocked() {
	d.open = slices.DeleteFunc(d.open, func(o openPool) bool { return time.Since(o.since) >= openFor })
}

// onlyUnnamed gives the name of the pool of a family that waits for one.
func (d *driver) onlyUnnamed(is6 bool) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.unnamedLocked(is6)
	if i < 0 {
		return "", errors.New("it is not known any more which pool this is: try again, or add --ipam-opt network=NAME")
	}
	return d.open[i].id.name, nil
}

// closePool says that a pool is used, or will not be.
func (d *driver) closePool(id poolID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = slices.DeleteFunc(d.open, func(o openPool) bool { return o.id == id })
	close(d.closed)
	d.closed = make(chan struct{})
}

func (d *driver) releasePool(ctx context.Context, r poolRequest) (any, error) {
	id, err := parsePool(r.PoolID)
	if err != nil {
		return nil, err
	}
	d.closePool(id)
	if !id.unnamed() {
		return nothing, d.core.Unuse(ctx, useOfPool(id.name))
	}
	if _, ok := d.store.pool(id.name); !ok {
		return nothing, nil
	}
	return nothing, d.store.update(func(m *memory) { delete(m.Pools, id.name) })
}

// errNoNetwork says that Docker asks for an address of a pool too early.
var errNoNetwork = errors.New("it is not known yet of which network of the mesh this pool is: add --ipam-opt network=NAME")

// pool finds the network of a pool.
func (d *driver) pool(id poolID) (string, error) {
	if !id.unnamed() {
		return id.name, nil
	}
	name, ok := d.store.pool(id.name)
	if !ok {
		return "", errNoNetwork
	}
	return name, nil
}

func (d *driver) requestAddress(ctx context.Context, r requestAddressRequest) (any, error) {
	id, err := parsePool(r.PoolID)
	if err != nil {
		return nil, err
	}
	wish := anyIPv4.Addr()
	if id.is6 {
		wish = anyIPv6.Addr()
	}
	if r.Address != "" {
		wish = netip.MustParseAddr(r.Address).Unmap() // checked
	}
	forGateway := r.Options[requestType] == requestsGateway
	name, err := d.pool(id)
	if errors.Is(err, errNoNetwork) && forGateway && wish.IsUnspecified() {
		// It has one when it has a name; Docker wants some answer now.
		return requestAddressResponse{Address: netip.PrefixFrom(wish, 0).String()}, nil
	}
	if err != nil {
		return nil, err
	}
	d.closePool(id)
	if forGateway {
		return d.gateway(ctx, name, wish)
	}
	got, err := d.core.Reserve(ctx, attach.Want{Door: door, Network: name, Address: wish})
	if id.is6 && errors.Is(err, attach.ErrOutside) && d.lacks(name, true) {
		return nil, fmt.Errorf("%w: %s", err, withoutIPv6)
	}
	if err != nil {
		return nil, err
	}
	return requestAddressResponse{Address: got.String()}, nil
}

// poolUse is how long a pool uses its network at least: for as long as the gateway
// may be waited for, and then for an open pool's time.
const poolUse = callTimeout + openFor

// lapse ends the uses of pools that Docker has not come back to, as when it crashed,
// and of those from before our own restart.
func (d *driver) lapse(ctx context.Context) error {
	d.useMu.Lock()
	defer d.useMu.Unlock()
	var errs []error
	for _, n := range d.networks() {
		if asked, ok := d.asked[n.Name]; ok && time.Since(asked) < poolUse {
			continue
		}
		delete(d.asked, n.Name)
		errs = append(errs, d.core.Unuse(ctx, useOfPool(n.Name)))
	}
	return errors.Join(errs...)
}

// gateway gives this host's own address, which is nobody's to choose.
func (d *driver) gateway(ctx context.Context, name string, wish netip.Addr) (any, error) {
	d.useMu.Lock()
	d.asked[name] = time.Now()
	d.useMu.Unlock()
	subnet, err := d.core.Use(ctx, useOfPool(name), name)
	if err != nil {
		return nil, err
	}
	for i, g := range subnet.Gateways {
		if g.Is4() != wish.Is4() {
			continue
		}
		if !wish.IsUnspecified() && wish != g {
			return nil, fmt.Errorf("%s: the gateway of network %s is this host's own address in it, %s: leave --gateway out", wish, name, g)
		}
		return requestAddressResponse{Address: netip.PrefixFrom(g, subnet.Prefixes[i].Bits()).String()}, nil
	}
	return nil, fmt.Errorf("network %s of the mesh has no addresses of that family", name)
}

func (d *driver) releaseAddress(ctx context.Context, r releaseAddressRequest) (any, error) {
	id, err := parsePool(r.PoolID)
	if err != nil {
		return nil, err
	}
	name, err := d.pool(id)
	if err != nil {
		return nothing, nil // an unnamed pool has given no address
	}
	// The gateway comes here too; nobody has reserved it.
	return nothing, d.core.Release(ctx, door, name, netip.MustParseAddr(r.Address).Unmap())
}
