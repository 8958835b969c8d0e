//go:build linux

package lab

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
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
// entry of it. The table is of the whole machine, so labs of several programs share the
// room: the first one notes the bounds in a file, and the last one puts them back, or the
// next last one if that crashed.
type room struct {
	bounds string   // directory of gc_thresh1 to 3; empty: the kernel's
	notes  string   // file with the bounds to put back; empty: the machine's
	user   *os.File // the notes, locked by each lab that has room; nil: it has none
}

const (
	boundsDir = "/proc/sys/net/ipv6/neigh/default"
	notesFile = "/run/meshd-lab-neighbours"

	enough = 1_000_000 // for 254 hosts with a few addresses each
)

// make has room for all that a large lab needs. Where the kernel does not show its bounds,
// as in a container, or does not let us change them, they stay.
func (r *room) make() error {
	r.bounds, r.notes = cmp.Or(r.bounds, boundsDir), cmp.Or(r.notes, notesFile)
	err := r.alone(r.enter)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		slog.Warn("no more room for neighbours, so a large lab may lose packets", "err", err)
		return nil
	}
	return err
}

func (r *room) enter() error {
	user, err := os.OpenFile(r.notes, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Flock(int(user.Fd()), unix.LOCK_SH), r.raise(user)); err != nil {
		return errors.Join(err, user.Close())
	}
	r.user = user
	return nil
}

// raise notes the bounds, unless a lab has raised them already, and raises them.
func (r *room) raise(notes *os.File) error {
	was, err := r.read()
	if err != nil {
		return err
	}
	if slices.Min(was[:]) >= enough {
		return nil
	}
	if _, err := notes.WriteAt(fmt.Appendf(nil, "%d %d %d\n", was[0], was[1], was[2]), 0); err != nil {
		return err
	}
	for i := range was {
		was[i] = max(was[i], enough)
	}
	return r.write(was)
}

// giveBack puts the bounds back, if no other lab has room.
func (r *room) giveBack() error {
	if r.user == nil {
		return nil
	}
	return r.alone(func() error {
		err := unix.Flock(int(r.user.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			err = nil
		case err == nil:
			err = r.putBack()
		}
		err = errors.Join(err, r.user.Close())
		r.user = nil
		return err
	})
}

func (r *room) putBack() error {
	raw, err := os.ReadFile(r.notes)
	if err != nil {
		return err
	}
	var was [3]int
	if n, _ := fmt.Sscan(string(raw), &was[0], &was[1], &was[2]); n < len(was) {
		return nil // they were as large before
	}
	return errors.Join(r.write(was), os.Truncate(r.notes, 0))
}

// alone does what no two labs may do at a time.
func (r *room) alone(do func() error) error {
	f, err := os.OpenFile(r.notes+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	return do()
}

func (r *room) bound(i int) string { return fmt.Sprintf("%s/gc_thresh%d", r.bounds, i+1) }

func (r *room) read() (bounds [3]int, err error) {
	for i := range bounds {
		raw, err := os.ReadFile(r.bound(i))
		if err != nil {
			return bounds, err
		}
		if bounds[i], err = strconv.Atoi(strings.TrimSpace(string(raw))); err != nil {
			return bounds, err
		}
	}
	return bounds, nil
}

func (r *room) write(bounds [3]int) error {
	var errs []error
	for i, n := range bounds {
		errs = append(errs, os.WriteFile(r.bound(i), []byte(strconv.Itoa(n)), 0))
	}
	return errors.Join(errs...)
}
