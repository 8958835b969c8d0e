//go:build linux

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"meshd/tun"
)

// sysctlDir is where the sysctls are. The kernel shows those of the namespace
// that the calling thread is in.
type sysctlDir string

// sysctls maps a key, with slashes since interface names may have dots, to its
// value. A key that the kernel does not have is not in it.
type sysctls map[string]string

// defaults stands for links to come in the name of a sysctl.
const defaults = "default"

const (
	forward4 = "net/ipv4/ip_forward" // sets that of every interface too
	forward6 = "net/ipv6/conf/all/forwarding"
	ipv4Conf = "net/ipv4/conf"
	ipv6Conf = "net/ipv6/conf"
)

func conf(family, link, key string) string { return "net/" + family + "/conf/" + link + "/" + key }

// read takes the sysctls that matter for the link, and for forwarding.
func (d sysctlDir) read(link string) (sysctls, error) {
	keys := []string{forward4, forward6}
	if link != "" {
		keys = append(keys,
			conf("ipv4", link, "forwarding"), conf("ipv6", link, "forwarding"),
			conf("ipv6", link, "disable_ipv6"), conf("ipv6", link, "addr_gen_mode"))
	}
	values := sysctls{}
	if err := d.add(values, keys); err != nil {
		return nil, err
	}
	if values[forward6] != "0" {
		return values, nil // on already, or no IPv6
	}
	interfaces, err := os.ReadDir(filepath.Join(string(d), ipv6Conf))
	if err != nil {
		return nil, fmt.Errorf("list sysctls: %w", err)
	}
	keys = nil
	for _, i := range interfaces {
		keys = append(keys, conf("ipv6", i.Name(), "accept_ra"), conf("ipv6", i.Name(), "forwarding"))
	}
	return values, d.add(values, keys)
}

// has tells whether the kernel knows the key.
func (d sysctlDir) has(key string) bool {
	_, err := os.Stat(filepath.Join(string(d), key))
	return err == nil
}

// stuck tells whether the key has this value and is not ours to change: a
// service's sandbox and a container show sysctls read-only.
func (d sysctlDir) stuck(key, value string) bool {
	path := filepath.Join(string(d), key)
	raw, err := os.ReadFile(path)
	return err == nil && strings.TrimSpace(string(raw)) == value &&
		unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS) != nil
}

func (d sysctlDir) add(values sysctls, keys []string) error {
	for _, key := range keys {
		raw, err := os.ReadFile(filepath.Join(string(d), key))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
			// The interface is gone, or the kernel lacks the family.
		case err != nil:
			return fmt.Errorf("read sysctl: %w", err)
		default:
			values[key] = strings.TrimSpace(string(raw))
		}
	}
	return nil
}

// EnableForwarding has the kernel forward packets between all interfaces, as
// [Net.Apply] of a state with forwarding does, for daemons that may not: after
// it, they find it done. It gives the commands that it carried out.
func (n *Net) EnableForwarding() (changes []string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	err = n.with(func(k kernel) error {
		values, err := k.sysctl.read("")
		if err != nil {
			return err
		}
		for _, op := range sysctlOps(state{sysctl: values}, tun.HostState{Forwarding: true}) {
			if err := op.do(k); err != nil {
				return fmt.Errorf("%s: %w", op, err)
			}
			changes = append(changes, op.String())
		}
		return nil
	})
	return changes, err
}

func (d sysctlDir) set(key, value string) error {
	err := os.WriteFile(filepath.Join(string(d), key), []byte(value), 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; set it on the host, or before the daemon starts", err)
	}
	return err
}
