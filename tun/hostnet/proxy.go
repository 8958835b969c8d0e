//go:build linux

package hostnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

type (
	addProxy struct {
		link
		addr netip.Addr
	}
	delProxy addProxy
)

// besideDiff lists what has the host answer on a link for whom it should, and for
// nobody else.
func besideDiff(l link, have, want []netip.Addr) (ops, deletions []op) {
	for _, a := range want {
		if !slices.Contains(have, a) {
			ops = append(ops, addProxy{l, a})
		}
	}
	for _, a := range have {
		if !slices.Contains(want, a) {
			deletions = append(deletions, delProxy{l, a})
		}
	}
	return ops, deletions
}

func (o addProxy) String() string { return fmt.Sprintf("ip neigh add proxy %s dev %s", o.addr, o.name) }
func (o delProxy) String() string { return fmt.Sprintf("ip neigh del proxy %s dev %s", o.addr, o.name) }

func (o addProxy) do(k kernel) error {
	if o.addr.Is6() {
		if err := k.configure6(o.name, "proxy_ndp=1"); err != nil { // IPv4 asks for no leave
			return err
		}
	}
	n, err := k.proxy(o)
	if err == nil {
		err = answerAtOnce(n)
	}
	if err != nil {
		return err
	}
	return k.NeighSet(n)
}

func (o delProxy) do(k kernel) error {
	n, err := k.proxy(addProxy(o))
	if err != nil {
		return err
	}
	return k.NeighDel(n)
}

func (k kernel) proxy(o addProxy) (*netlink.Neigh, error) {
	l, err := k.LinkByName(o.name) // it may be new
	if err != nil {
		return nil, err
	}
	family := netlink.FAMILY_V4
	if o.addr.Is6() {
		family = netlink.FAMILY_V6
	}
	return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: family, Flags: netlink.NTF_PROXY, State: netlink.NUD_PERMANENT, IP: o.addr.AsSlice()}, nil
}

// From linux/neighbour.h.
const (
	ndtaName        = 1
	ndtaParms       = 6
	ndtpaIfindex    = 1
	ndtpaProxyDelay = 13
)

// answerAtOnce has the kernel answer for others on a link without a delay. It waits
// up to 0.8 s, so that who has the address itself may answer first: here nobody
// does. It is the sysctl proxy_delay, in a way that goes where those are read-only.
func answerAtOnce(n *netlink.Neigh) error {
	name := "arp_cache"
	if n.Family == netlink.FAMILY_V6 {
		name = "ndisc_cache"
	}
	parms := nl.NewRtAttr(ndtaParms, nil)
	parms.AddRtAttr(ndtpaIfindex, nl.Uint32Attr(uint32(n.LinkIndex)))
	parms.AddRtAttr(ndtpaProxyDelay, binary.NativeEndian.AppendUint64(nil, 0))
	req := nl.NewNetlinkRequest(unix.RTM_SETNEIGHTBL, unix.NLM_F_ACK)
	req.AddData(tableMessage{byte(n.Family)})
	req.AddData(nl.NewRtAttr(ndtaName, nl.ZeroTerminated(name)))
	req.AddData(parms)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// tableMessage is struct ndtmsg: a family, and nothing.
type tableMessage [4]byte

func (m tableMessage) Len() int          { return len(m) }
func (m tableMessage) Serialize() []byte { return m[:] }
