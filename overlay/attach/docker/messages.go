package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"meshd/overlay/attach"
	"meshd/tun"
)

// The messages of Docker's remote network and IPAM drivers, with the field names
// of libnetwork's packages drivers/remote/api and ipams/remote/api. Fields that
// nobody here needs are left out, and unknown ones are ignored: newer engines
// send more.

const (
	maxBody = 64 << 10 // bytes of a request; a real one has some hundred

	portMapOption   = "com.docker.network.portmap" // what people gave with -p
	requestType     = "RequestAddressType"         // an option of RequestAddress
	requestsGateway = "com.docker.network.gateway" // its value for the gateway of a pool
	addressSpace    = "meshd"                      // tells our pools from those of other IPAM drivers
	networkOption   = "network"                    // -o and --ipam-opt: a network of the mesh
	gatewayOption   = "gateway"                    // -o: who leads containers out of the mesh
	gatewayMesh     = "mesh"                       // this host, by the mesh's own bridge
	gatewayDocker   = "docker"                     // Docker's docker_gwbridge, as with its overlay driver
	modeOption      = "mode"                       // -o: how containers hang on this host; see attach.Mode
	parentOption    = "parent"                     // -o: the link below a macvlan or an ipvlan
)

// request is a decoded message that can say what is wrong with it.
type request interface{ check() error }

// none is the request of methods without one.
type none struct{}

func (none) check() error { return nil }

type ipamData struct {
	AddressSpace string
	Pool         string
	Gateway      string
	AuxAddresses map[string]string
}

type createNetworkRequest struct {
	NetworkID string
	Options   struct {
		Generic  map[string]string `json:"com.docker.network.generic"`
		Internal bool              `json:"com.docker.network.internal"`
	}
	IPv4Data, IPv6Data []ipamData
}

func (r createNetworkRequest) check() error {
	if err := checkID("NetworkID", r.NetworkID); err != nil {
		return err
	}
	if err := checkOptions(r.Options.Generic, networkOption, gatewayOption, modeOption, parentOption); err != nil {
		return err
	}
	if err := checkMode(attach.Mode(r.Options.Generic[modeOption]), r.Options.Generic[parentOption]); err != nil {
		return err
	}
	if g := r.Options.Generic[gatewayOption]; g != "" && g != gatewayMesh && g != gatewayDocker {
		return fmt.Errorf("option gateway=%.40q: it is mesh or docker", g)
	}
	for _, data := range [][]ipamData{r.IPv4Data, r.IPv6Data} {
		if len(data) > 1 {
			return errors.New("more than one subnet of a family: a network of the mesh has one")
		}
		for _, d := range data {
			if _, err := netip.ParsePrefix(d.Pool); err != nil {
				return fmt.Errorf("pool %.60q is not a subnet", d.Pool)
			}
			if len(d.AuxAddresses) > 0 {
				return errors.New("auxiliary addresses: this host gives every address itself; leave --aux-address out")
			}
			if d.Gateway == "" {
				continue
			}
			if _, err := netip.ParsePrefix(d.Gateway); err != nil {
				return fmt.Errorf("gateway %.60q is not an address with a length", d.Gateway)
			}
		}
	}
	return nil
}

// checkMode verifies how containers are to hang on this host, as far as can be
// told before there is one.
func checkMode(mode attach.Mode, parent string) error {
	switch mode {
	case "", attach.Bridge, attach.PTP:
		if parent != "" {
			return errors.New("option parent: it goes with -o mode=macvlan or -o mode=ipvlan")
		}
	case attach.MACVLAN, attach.IPVLAN:
		if parent == "" {
			return fmt.Errorf("option mode=%s: add -o parent=LINK, a network card of this host", mode)
		}
		if !tun.IsLinkName(parent) {
			return fmt.Errorf("option parent=%.40q is no name of a network link", parent)
		}
	default:
		return fmt.Errorf("option mode=%.40q: it is bridge, ptp, macvlan or ipvlan", mode)
	}
	return nil
}

type networkRequest struct{ NetworkID string }

func (r networkRequest) check() error { return checkID("NetworkID", r.NetworkID) }

type endpointRequest struct{ NetworkID, EndpointID string }

func (r endpointRequest) check() error {
	return errors.Join(checkID("NetworkID", r.NetworkID), checkID("EndpointID", r.EndpointID))
}

// endpointInterface goes both ways. Addresses have a length.
type endpointInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

type createEndpointRequest struct {
	endpointRequest
	Interface *endpointInterface
}

func (r createEndpointRequest) check() error {
	err := r.endpointRequest.check()
	if err == nil && r.Interface != nil {
		_, err = r.Interface.addresses()
		if mac := r.Interface.MacAddress; err == nil && mac != "" {
			if parsed, bad := net.ParseMAC(mac); bad != nil || len(parsed) != 6 {
				err = fmt.Errorf("%.40q is not a MAC address", mac)
			}
		}
	}
	return err
}

// addresses gives those that the interface has, IPv4 first.
func (i *endpointInterface) addresses() ([]netip.Addr, error) {
	var all []netip.Addr
	for _, a := range []struct {
		text string
		is6  bool
	}{{i.Address, false}, {i.AddressIPv6, true}} {
		if a.text == "" {
			continue
		}
		p, err := netip.ParsePrefix(a.text)
		if err != nil || p.Addr().Is6() != a.is6 || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%.60q is not an address with a length", a.text)
		}
		all = append(all, p.Addr())
	}
	return all, nil
}

type createEndpointResponse struct{ Interface endpointInterface }

// connectedRequest comes with what is said of the container as a whole.
type connectedRequest struct {
	endpointRequest
	Options map[string]json.RawMessage
}

// publishes tells whether ports of the container are published, as docker run -p
// and -P do.
func (r connectedRequest) publishes() bool {
	var ports []json.RawMessage
	raw, ok := r.Options[portMapOption]
	return ok && (json.Unmarshal(raw, &ports) != nil || len(ports) > 0)
}

type interfaceName struct{ SrcName, DstPrefix string }

type staticRoute struct {
	Destination string
	RouteType   int    // 0: by NextHop; 1: on the link
	NextHop     string `json:",omitempty"`
}

// onLink is the RouteType of what needs no next hop.
const onLink = 1

type joinResponse struct {
	InterfaceName         interfaceName
	Gateway               string        `json:",omitempty"`
	GatewayIPv6           string        `json:",omitempty"`
	StaticRoutes          []staticRoute `json:",omitempty"`
	DisableGatewayService bool          `json:",omitempty"`
}

type requestPoolRequest struct {
	AddressSpace, Pool, SubPool string
	Options                     map[string]string
	V6                          bool
}

func (r requestPoolRequest) check() error {
	if r.SubPool != "" {
		return fmt.Errorf("range %.60q: addresses come from the whole of this host's subnet; leave --ip-range out", r.SubPool)
	}
	if r.Pool != "" {
		p, err := netip.ParsePrefix(r.Pool)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("%.60q is not a subnet", r.Pool)
		}
	}
	return checkOptions(r.Options, networkOption)
}

type requestPoolResponse struct {
	PoolID, Pool string
	Data         map[string]string
}

type poolRequest struct{ PoolID string }

func (r poolRequest) check() error {
	_, err := parsePool(r.PoolID)
	return err
}

type requestAddressRequest struct {
	PoolID, Address string
	Options         map[string]string
}

func (r requestAddressRequest) check() error { return checkPoolAddress(r.PoolID, r.Address, true) }

type requestAddressResponse struct {
	Address string // with its length
	Data    map[string]string
}

type releaseAddressRequest struct{ PoolID, Address string }

func (r releaseAddressRequest) check() error { return checkPoolAddress(r.PoolID, r.Address, false) }

func checkPoolAddress(pool, address string, mayLack bool) error {
	id, err := parsePool(pool)
	if err != nil || address == "" && mayLack {
		return err
	}
	a, err := netip.ParseAddr(address)
	if err != nil || a.Zone() != "" || a.Unmap().Is6() != id.is6 {
		return fmt.Errorf("%.60q is not an address of pool %s", address, pool)
	}
	return nil
}

// poolID names a pool: "web/4" is what containers of network web take IPv4
// addresses from. A pool that was asked for before anybody named its network has
// a random name, which no network can have: "+9f86d081884c7d65/4".
type poolID struct {
	name string
	is6  bool
}

func (p poolID) String() string {
	if p.is6 {
		return p.name + "/6"
	}
	return p.name + "/4"
}

func (p poolID) unnamed() bool { return strings.HasPrefix(p.name, "+") }

func parsePool(s string) (poolID, error) {
	name, family, ok := strings.Cut(s, "/")
	id := poolID{name, family == "6"}
	bare := strings.TrimPrefix(name, "+")
	if !ok || family != "4" && family != "6" || !isWord(bare) {
		return poolID{}, fmt.Errorf("%.80q is not a pool", s)
	}
	return id, nil
}

// isWord tells whether s is 1 to 64 of a-z, A-Z, 0-9 and "-", as all IDs are: safe
// in a path, a log, and the ID of an attachment.
func isWord(s string) bool {
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 64
}

func checkID(field, id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%s is missing", field)
	case !isWord(id):
		return fmt.Errorf("%s %.70q: 1 to 64 letters and digits", field, id)
	}
	return nil
}

// checkOptions refuses what would be ignored.
func checkOptions(options map[string]string, known ...string) error {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		if !slices.Contains(known, key) {
			return fmt.Errorf("unknown option %.60q: known are %s", key, strings.Join(known, ", "))
		}
	}
	return nil
}

// decode reads a request of any kind; no body is one without fields.
func decode[R request](body []byte) (R, error) {
	var r R
	if len(body) > 0 {
		if err := json.Unmarshal(body, &r); err != nil {
			return r, fmt.Errorf("read request: %w", err)
		}
	}
	return r, r.check()
}
