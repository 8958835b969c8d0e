//go:build linux

package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// generalHeader is the length of what comes before the attributes of a message:
// struct nlmsghdr and struct nfgenmsg.
const generalHeader = unix.NLMSG_HDRLEN + 4

// generation counts the transactions of all programs in this namespace: while it
// stays the same, so does every rule. The kernel leaves out 0.
func generation() (uint32, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	const size = generalHeader
	ask := make([]byte, size)
	binary.NativeEndian.PutUint32(ask, size)
	binary.NativeEndian.PutUint16(ask[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	binary.NativeEndian.PutUint16(ask[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	// The kernel has answered before it returned.
	answer := make([]byte, 256)
	n, _, err := unix.Recvfrom(fd, answer, unix.MSG_DONTWAIT)
	if err != nil {
		return 0, err
	}
	answer = answer[:n]
	const attr = unix.SizeofNlAttr
	if n < size+attr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN ||
		binary.NativeEndian.Uint16(answer[size+2:]) != unix.NFTA_GEN_ID {
		return 0, fmt.Errorf("the kernel answers %x", answer)
	}
	return binary.BigEndian.Uint32(answer[size+attr:]), nil
}
