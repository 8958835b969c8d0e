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
// nobody chose with --subnet overlaps a route of the host, and if so ask again, for
// ever. Every subnet of the mesh has a route. They take 0.0.0.0/0 without a look.
//
//	given                      pool       PoolID   network
//	--subnet 10.87.0.0/16      as given   web/4    whose range that is
//	--ipam-opt network=web     0.0.0.0/0  web/4    web
//	-o network=web, or neither 0.0.0.0/0  +9f86…/4 CreateNetwork tells, and is told
//	                                               from others by there being but one

var (
	anyIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	anyIPv6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// unnamedPool waits for CreateNetwork.
type unnamedPool struct {
	is6     bool
	since   time.Time
	gateway bool // Docker asked for its gateway, which it does before CreateNetwork
}

// unnamedFor is how long a pool waits: Docker asks the next question at once.
const unnamedFor = time.Minute

func (d *driver) requestPool(_ context.Context, r requestPoolRequest) (any, error) {
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
	pool := anyIPv4
	if r.V6 {
		pool = anyIPv6
	}
	if name == "" {
		name = d.addUnnamed(r.V6)
	} else if n, err := d.named(name); err != nil {
		return nil, err
	} else if !slices.ContainsFunc(n.Ranges(), func(p netip.Prefix) bool { return p.Addr().Is6() == r.V6 }) {
		return nil, fmt.Errorf("network %s of the mesh has no addresses of that family: it is %s", name, list([]mesh.Network{n}))
	}
	return requestPoolResponse{PoolID: poolID{name, r.V6}.String(), Pool: pool.String()}, nil
}

func (d *driver) addUnnamed(is6 bool) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, p := range d.unnamed {
		if time.Since(p.since) > unnamedFor {
			delete(d.unnamed, name)
		}
	}
	raw := make([]byte, 8)
	_, _ = rand.Read(raw) // it never fails
	name := "+" + hex.EncodeToString(raw)
	d.unnamed[name] = &unnamedPool{is6: is6, since: time.Now()}
	return name
}

// onlyUnnamed gives the one pool of a family that waits for its network.
func (d *driver) onlyUnnamed(is6 bool) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []string
	for name, p := range d.unnamed {
		if p.is6 == is6 && p.gateway && time.Since(p.since) <= unnamedFor {
			found = append(found, name)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d networks are being made at this moment, and they cannot be told apart: "+
			"try again, or add --ipam-opt network=NAME", len(found))
	}
	return found[0], nil
}

func (d *driver) releasePool(ctx context.Context, r poolRequest) (any, error) {
	id, err := parsePool(r.PoolID)
	if err != nil {
		return nil, err
	}
	if !id.unnamed() {
		return nothing, d.core.Unuse(ctx, useOfPool(id.name))
	}
	d.mu.Lock()
	delete(d.unnamed, id.name)
	d.mu.Unlock()
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
		d.mu.Lock()
		defer d.mu.Unlock()
		if p, ok := d.unnamed[id.name]; ok {
			p.gateway = true
			return requestAddressResponse{Address: netip.PrefixFrom(wish, 0).String()}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if forGateway {
		return d.gateway(ctx, name, wish)
	}
	got, err := d.core.Reserve(ctx, attach.Want{Door: door, Network: name, Address: wish})
	if err != nil {
		return nil, err
	}
	return requestAddressResponse{Address: got.String()}, nil
}

// gateway gives this host's own address, which is nobody's to choose.
func (d *driver) gateway(ctx context.Context, name string, wish netip.Addr) (any, error) {
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
