//go:build linux

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fewHosts look each other up, as real ones do. The kernel's tables of neighbours
// are one for all namespaces, with room for 1024 entries (gc_thresh3): beyond
// about 30 hosts that talk to each other, packets get lost for want of room.
const fewHosts = 16

// introduce tells every host of all others for good; such entries are not counted.
func (l *Lab) introduce() error {
	cards := make([]net.HardwareAddr, len(l.hosts))
	for i, h := range l.hosts {
		if err := h.onNIC(func(eth netlink.Link) error { cards[i] = eth.Attrs().HardwareAddr; return nil }); err != nil {
			return err
		}
	}
	for _, h := range l.hosts {
		err := h.onNIC(func(eth netlink.Link) error {
			k, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer k.Close()
			for i, other := range l.hosts {
				for _, a := range []netip.Addr{other.IPv4, other.IPv6} {
					n := &netlink.Neigh{LinkIndex: eth.Attrs().Index, IP: a.AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: cards[i]}
					if other == h {
						continue
					}
					if err := k.NeighSet(n); err != nil {
						return fmt.Errorf("set neighbour %s of %s: %w", a, h.Name, err)
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// room for neighbours in the kernel's table of IPv6. Besides those of the underlay that
// the hosts were told of, each address that a host talks to through a TUN device is an
// entry of it. The table is of the whole machine, so its bounds are put back.
type room struct {
	was [3]string // gc_thresh1 to 3; empty: left alone
}

// enough for 254 hosts with a few addresses each.
const enough = "1000000"

func threshold(i int) string { return fmt.Sprintf("net/ipv6/neigh/default/gc_thresh%d", i+1) }

// make has room for all that a large lab needs. Where the kernel does not show its bounds,
// as in a container, they stay.
func (r *room) make() error {
	for i := range r.was {
		was, err := os.ReadFile("/proc/sys/" + threshold(i))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := setSysctl(threshold(i), enough); err != nil {
			return err
		}
		r.was[i] = strings.TrimSpace(string(was))
	}
	return nil
}

func (r *room) giveBack() error {
	var errs []error
	for i, was := range r.was {
		if was != "" {
			errs = append(errs, setSysctl(threshold(i), was))
		}
	}
	*r = room{}
	return errors.Join(errs...)
}
