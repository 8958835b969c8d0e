package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
)

// driver is both of Docker's drivers. Its methods may be called from any
// goroutine.
type driver struct {
	core     Core                  // fixed at construction
	networks func() []mesh.Network // fixed at construction
	store    *store                // fixed at construction

	mu     sync.Mutex
	open   []openPool    // guarded by mu
	closed chan struct{} // guarded by mu: closed, and made anew, when one of open goes

	useMu sync.Mutex           // held while uses of pools that have lapsed end
	asked map[string]time.Time // guarded by useMu: when a network's gateway was asked for last
}

func newDriver(core Core, networks func() []mesh.Network, store *store) *driver {
	return &driver{core: core, networks: networks, store: store, closed: make(chan struct{}), asked: map[string]time.Time{}}
}

func (d *driver) methods() map[string]method {
	return map[string]method{
		"/Plugin.Activate": say(map[string][]string{"Implements": {"NetworkDriver", "IpamDriver"}}),

		"/NetworkDriver.GetCapabilities":             say(map[string]string{"Scope": "local", "ConnectivityScope": "global"}),
		"/NetworkDriver.CreateNetwork":               on(d.createNetwork),
		"/NetworkDriver.DeleteNetwork":               on(d.deleteNetwork),
		"/NetworkDriver.CreateEndpoint":              on(d.createEndpoint),
		"/NetworkDriver.EndpointOperInfo":            on(d.endpointInfo),
		"/NetworkDriver.DeleteEndpoint":              on(d.deleteEndpoint),
		"/NetworkDriver.Join":                        on(d.join),
		"/NetworkDriver.Leave":                       on(func(context.Context, endpointRequest) (any, error) { return nothing, nil }),
		"/NetworkDriver.ProgramExternalConnectivity": on(d.publish),
		"/NetworkDriver.RevokeExternalConnectivity":  on(func(context.Context, endpointRequest) (any, error) { return nothing, nil }),
		"/NetworkDriver.AllocateNetwork": on(func(context.Context, networkRequest) (any, error) {
			return nil, errors.New("meshd needs no Swarm: make the network on each host, with scope local")
		}),
		"/NetworkDriver.FreeNetwork":    on(func(context.Context, networkRequest) (any, error) { return nothing, nil }),
		"/NetworkDriver.DiscoverNew":    say(nothing),
		"/NetworkDriver.DiscoverDelete": say(nothing),

		"/IpamDriver.GetCapabilities": say(map[string]bool{"RequiresMACAddress": false}),
		"/IpamDriver.GetDefaultAddressSpaces": say(map[string]string{
			"LocalDefaultAddressSpace": addressSpace, "GlobalDefaultAddressSpace": addressSpace,
		}),
		"/IpamDriver.RequestPool":    on(d.requestPool),
		"/IpamDriver.ReleasePool":    on(d.releasePool),
		"/IpamDriver.RequestAddress": on(d.requestAddress),
		"/IpamDriver.ReleaseAddress": on(d.releaseAddress),
	}
}

// nothing is the answer of a method that was successful and has nothing to say.
var nothing = struct{}{}

// named finds a network of the mesh by its name.
func (d *driver) named(name string) (mesh.Network, error) {
	all := d.networks()
	if i := slices.IndexFunc(all, func(n mesh.Network) bool { return n.Name == name }); i >= 0 {
		return all[i], nil
	}
	return mesh.Network{}, fmt.Errorf("%w: %.70q: it has %s: see `meshctl network list`", attach.ErrUnknownNetwork, name, list(all))
}

// around finds the network of the mesh of which p is a part.
func (d *driver) around(p netip.Prefix) (mesh.Network, error) {
	all := d.networks()
	for _, n := range all {
		for _, r := range n.Ranges() {
			if r.Bits() <= p.Bits() && r.Contains(p.Addr()) {
				return n, nil
			}
		}
	}
	flag := "--ipv4"
	if p.Addr().Is6() {
		flag = "--ipv6"
	}
	return mesh.Network{}, fmt.Errorf("%s is not in a network of the mesh: it has %s; `meshctl network create NAME %s %s` makes one", p, list(all), flag, p.Masked())
}

// lacks tells that a network has no range of a family. One that is not there lacks
// nothing.
func (d *driver) lacks(name string, is6 bool) bool {
	n, err := d.named(name)
	return err == nil && !slices.ContainsFunc(n.Ranges(), func(p netip.Prefix) bool { return p.Addr().Is6() == is6 })
}

// withoutIPv6 is what to do when a network has none.
const withoutIPv6 = "make Docker's network without --ipv6"

// list prints networks for people.
func list(networks []mesh.Network) string {
	var all []string
	for _, n := range networks {
		var ranges []string
		for _, r := range n.Ranges() {
			ranges = append(ranges, r.String())
		}
		all = append(all, fmt.Sprintf("%s (%s)", n.Name, strings.Join(ranges, ", ")))
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

func (d *driver) createNetwork(ctx context.Context, r createNetworkRequest) (any, error) {
	name := r.Options.Generic[networkOption]
	var pools []string // unnamed ones that are of this network
	for _, data := range slices.Concat(r.IPv4Data, r.IPv6Data) {
		found, pool, err := d.networkOf(data)
		if err != nil {
			return nil, err
		}
		if pool != "" {
			pools = append(pools, pool)
		}
		if found == "" {
			continue
		}
		if name != "" && name != found {
			return nil, fmt.Errorf("%s is of network %s of the mesh, not of %s", data.Pool, found, name)
		}
		name = found
	}
	if name == "" {
		name = mesh.DefaultNetwork
	}
	if _, err := d.named(name); err != nil {
		return nil, err
	}
	// What cannot be had should be said now, not when a container starts.
	if _, err := d.core.Use(ctx, useOfNetwork(r.NetworkID), name); err != nil {
		return nil, errors.Join(err, d.unuseFailed(ctx, r.NetworkID))
	}
	n := network{
		Network: name, Internal: r.Options.Internal,
		Mode: attach.Mode(r.Options.Generic[modeOption]), Parent: r.Options.Generic[parentOption],
	}
	if r.Options.Generic[gatewayOption] == gatewayDocker {
		n.Gateway = gatewayDocker
	}
	err := d.store.update(func(m *memory) {
		m.Networks[r.NetworkID] = n
		for _, p := range pools {
			m.Pools[p] = name
		}
	})
	if err != nil {
		return nil, errors.Join(err, d.unuseFailed(ctx, r.NetworkID))
	}
	for _, p := range pools {
		d.closePool(poolID{p, false})
		d.closePool(poolID{p, true})
	}
	return nothing, d.core.Unuse(ctx, useOfPool(name))
}

// undoWait bounds what is done for a request that has failed.
const undoWait = 5 * time.Second

// unuseFailed ends the use of a network that was not made, whatever became of it and
// of the request: Docker does not come back to it. One that was made before keeps its
// own.
func (d *driver) unuseFailed(ctx context.Context, id string) error {
	if _, ok := d.store.network(id); ok {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
	defer cancel()
	return d.core.Unuse(undo, useOfNetwork(id))
}

// A network of Docker uses one of the mesh for as long as it is there, and a pool
// from the question for its gateway on until there is that network.
func useOfNetwork(id string) string { return door + "/network/" + id }
func useOfPool(name string) string  { return door + "/pool/" + name }

// networkOf tells of which network a pool is, as far as it says, and whether it
// is an unnamed one.
func (d *driver) networkOf(data ipamData) (name, pool string, err error) {
	p := netip.MustParsePrefix(data.Pool) // checked
	if p.Bits() > 0 {
		if data.AddressSpace != addressSpace {
			return "", "", fmt.Errorf("the subnet %s is another driver's: add --ipam-driver meshd", p)
		}
		n, err := d.around(p)
		return n.Name, "", err
	}
	if data.AddressSpace != addressSpace || data.Gateway == "" {
		return "", "", nil // the null driver: CreateEndpoint chooses addresses
	}
	if gateway := netip.MustParsePrefix(data.Gateway); !gateway.Addr().IsUnspecified() {
		n, err := d.around(gateway)
		return n.Name, "", err
	}
	pool, err = d.onlyUnnamed(p.Addr().Is6())
	return "", pool, err
}

func (d *driver) deleteNetwork(ctx context.Context, r networkRequest) (any, error) {
	if _, ok := d.store.network(r.NetworkID); ok {
		if err := d.store.update(func(m *memory) { delete(m.Networks, r.NetworkID) }); err != nil {
			return nil, err
		}
	}
	return nothing, d.core.Unuse(ctx, useOfNetwork(r.NetworkID))
}

// network finds what Docker calls a network.
func (d *driver) network(id string) (network, error) {
	n, ok := d.store.network(id)
	if !ok {
		return network{}, fmt.Errorf("network %.12s of Docker is not known here any more: remove it and make it again", id)
	}
	return n, nil
}

// attachment is the ID of an endpoint.
func attachment(endpoint string) string { return door + "/" + endpoint }

func (d *driver) createEndpoint(ctx context.Context, r createEndpointRequest) (any, error) {
	n, err := d.network(r.NetworkID)
	if err != nil {
		return nil, err
	}
	have := endpointInterface{}
	if r.Interface != nil {
		have = *r.Interface
	}
	addresses, err := have.addresses()
	if err != nil {
		return nil, err
	}
	ask := attach.Ask{
		ID: attachment(r.EndpointID), Network: n.Network, Mode: n.Mode, Parent: n.Parent, Addresses: addresses, MAC: have.MacAddress,
		Internal: n.Internal,
	}
	if len(addresses) == 0 { // another IPAM driver, without addresses of its own
		ask.Addresses = []netip.Addr{netip.IPv4Unspecified()}
	}
	got, err := d.core.Attach(ctx, ask)
	if err != nil {
		return nil, err
	}
	// Docker takes an answer for what it left open, and for nothing else.
	var answer createEndpointResponse
	if have.MacAddress == "" {
		answer.Interface.MacAddress = got.MAC
	}
	if len(addresses) == 0 {
		for _, a := range got.Addresses {
			if a.Addr().Is4() {
				answer.Interface.Address = a.String()
			}
		}
	}
	return answer, nil
}

func (d *driver) endpointInfo(_ context.Context, r endpointRequest) (any, error) {
	if _, err := d.core.Get(attachment(r.EndpointID)); err != nil {
		return nil, err
	}
	return map[string]any{"Value": nothing}, nil
}

func (d *driver) deleteEndpoint(ctx context.Context, r endpointRequest) (any, error) {
	return nothing, d.core.Detach(ctx, attachment(r.EndpointID))
}

// join tells Docker which link to move. The mesh's ranges get routes of their
// own: a container may have its default route elsewhere. One whose ports are
// published has: Docker publishes them on its own bridge, and puts a container
// there that has no gateway yet.
func (d *driver) join(_ context.Context, r connectedRequest) (any, error) {
	n, err := d.network(r.NetworkID)
	if err != nil {
		return nil, err
	}
	got, err := d.core.Get(attachment(r.EndpointID))
	if err != nil {
		return nil, err
	}
	answer := joinResponse{InterfaceName: interfaceName{got.Peer, "eth"}}
	byDocker := n.Internal || n.Gateway == gatewayDocker || r.publishes()
	answer.DisableGatewayService = n.Internal
	for _, gateway := range got.Gateways {
		if !hasFamily(got.Addresses, gateway) {
			continue
		}
		if got.Mode == attach.PTP {
			answer.StaticRoutes = append(answer.StaticRoutes, d.neighbours(got.Network, gateway)...)
		}
		for _, route := range got.Routes {
			if route.Addr().Is4() == gateway.Is4() {
				answer.StaticRoutes = append(answer.StaticRoutes, staticRoute{Destination: route.String(), NextHop: gateway.String()})
			}
		}
		switch {
		case byDocker:
		case gateway.Is4():
			answer.Gateway = gateway.String()
		default:
			answer.GatewayIPv6 = gateway.String()
		}
	}
	return answer, nil
}

// neighbours routes by the gateway whoever else of the subnet is on this host.
// Docker gives each container its address with the subnet's length, as if they
// shared a link, and where each has one of its own they do not.
func (d *driver) neighbours(network string, gateway netip.Addr) []staticRoute {
	n, err := d.named(network)
	if err != nil {
		return nil // it was deleted: nobody is to be reached
	}
	bits := n.IPv4Len
	if gateway.Is6() {
		bits = n.IPv6Len
	}
	half, err := gateway.Prefix(bits + 1) // more precise than the route that the address makes
	if err != nil {
		return nil
	}
	other := half.Addr().AsSlice()
	other[bits/8] ^= 0x80 >> (bits % 8)
	upper, _ := netip.AddrFromSlice(other)
	return []staticRoute{
		{Destination: netip.PrefixFrom(gateway, gateway.BitLen()).String(), RouteType: onLink},
		{Destination: half.String(), NextHop: gateway.String()},
		{Destination: netip.PrefixFrom(upper, half.Bits()).String(), NextHop: gateway.String()},
	}
}

func hasFamily(addresses []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
}

// publish refuses ports that nobody would forward. Docker asks it of whoever is the
// container's gateway.
func (d *driver) publish(_ context.Context, r connectedRequest) (any, error) {
	if r.publishes() {
		return nil, errors.New("the container came into this network without ports to publish: disconnect it and connect it again")
	}
	return nothing, nil
}
