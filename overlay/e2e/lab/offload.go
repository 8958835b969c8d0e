//go:build linux

package lab

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A virtual card passes packets of 64 KiB on as they are. These features, by the
// names that ethtool has for them, make the sender cut them, and the receiver join
// what comes in one moment, as happens with a real card.
var likeNIC = []feature{
	{"tx-tcp-segmentation", false},
	{"tx-tcp-ecn-segmentation", false},
	{"tx-tcp-mangleid-segmentation", false},
	{"tx-tcp6-segmentation", false},
	{"tx-udp-segmentation", false},
	{"tx-udp_tnl-segmentation", false},
	{"tx-udp_tnl-csum-segmentation", false},
	{"rx-gro", true},
}

type feature struct {
	name string
	on   bool
}

// LikeNIC has the host's network card carry no packet that is larger than the
// MTU: the kernel cuts what is handed to it, TCP and UDP, and joins what arrives
// (GRO). On a lab, do it on every host.
func (h *Host) LikeNIC() error {
	if err := h.Do(func() error { return setFeatures(nic, likeNIC) }); err != nil {
		return fmt.Errorf("force segmentation on %s: %w", h.Name, err)
	}
	return nil
}

// setFeatures is `ethtool -K`, through ETHTOOL_MSG_FEATURES_SET of the kernel's
// Documentation/networking/ethtool-netlink.rst.
func setFeatures(link string, want []feature) error {
	family, err := netlink.GenlFamilyGet("ethtool")
	if err != nil {
		return fmt.Errorf("find ethtool in the kernel: %w", err)
	}
	nested := func(attr int) int { return attr | unix.NLA_F_NESTED }
	r := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	r.AddData(&nl.Genlmsg{Command: unix.ETHTOOL_MSG_FEATURES_SET, Version: 1})
	header := nl.NewRtAttr(nested(unix.ETHTOOL_A_FEATURES_HEADER), nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_NAME, nl.ZeroTerminated(link))
	r.AddData(header)
	wanted := nl.NewRtAttr(nested(unix.ETHTOOL_A_FEATURES_WANTED), nil)
	bits := wanted.AddRtAttr(nested(unix.ETHTOOL_A_BITSET_BITS), nil)
	for _, f := range want {
		bit := bits.AddRtAttr(nested(unix.ETHTOOL_A_BITSET_BITS_BIT), nil)
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(f.name))
		if f.on {
			bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
		}
	}
	r.AddData(wanted)
	if _, err := r.Execute(unix.NETLINK_GENERIC, 0); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("set features of %s: %w", link, err)
	}
	return nil
}
