// Package subnetenv writes flannel's subnet.env, by which programs made for flannel
// learn this node's subnet: dockerd --bip, flannel's CNI plugin, scripts.
//
//	FLANNEL_NETWORK=10.86.0.0/16         the mesh's network, or several with commas
//	FLANNEL_SUBNET=10.86.23.1/24         the first usable address, for their bridge
//	FLANNEL_IPV6_NETWORK=fd00:86::/48
//	FLANNEL_IPV6_SUBNET=fd00:86:0:17::1/64
//	FLANNEL_MTU=1420
//	FLANNEL_IPMASQ=true                  we masquerade; they need not
//
// Those programs give out the addresses of the subnet, so nobody else may. There is
// a file only while the node holds its subnet: without one they fail and try again,
// and with an old one they would take another node's addresses.
package subnetenv

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"meshd/overlay/attach"
)

// File is where and how a subnet is written down.
type File struct {
	Path       string
	Masquerade bool // this host does it
}

// Apply makes the file tell of a subnet, replacing it at once if it does not. A
// subnet that is not live, such as the zero value, has no file.
func (f File) Apply(s attach.Subnet) error {
	want := text(s, f.Masquerade)
	if want == nil {
		if err := os.Remove(f.Path); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("remove subnet file: %w", err)
		}
		return nil
	}
	if have, err := os.ReadFile(f.Path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err := replace(f.Path, want); err != nil {
		return fmt.Errorf("write subnet file: %w", err)
	}
	return nil
}

// text is the content of the file; nil: there is nothing to tell.
func text(s attach.Subnet, masquerade bool) []byte {
	if s.State != attach.Live || len(s.Prefixes) == 0 {
		return nil
	}
	var b bytes.Buffer
	for i, p := range s.Prefixes {
		family := ""
		if p.Addr().Is6() {
			family = "IPV6_"
		}
		var ranges []string
		for _, r := range s.Routes {
			if r.Addr().Is4() == p.Addr().Is4() {
				ranges = append(ranges, r.String())
			}
		}
		fmt.Fprintf(&b, "FLANNEL_%sNETWORK=%s\n", family, strings.Join(ranges, ","))
		fmt.Fprintf(&b, "FLANNEL_%sSUBNET=%s\n", family, netip.PrefixFrom(s.Gateways[i], p.Bits()))
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", s.MTU, masquerade)
	return b.Bytes()
}

// replace puts a whole file in the place of another, for everybody to read.
func replace(path string, content []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync() // else a power failure may leave an empty file by that name
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
