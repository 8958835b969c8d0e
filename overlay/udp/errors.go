package udp

import (
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

var (
	// ErrTruncated is returned by Receive for a train that did not fit. What is
	// left of it should be dropped.
	ErrTruncated = errors.New("datagram truncated")
	// ErrSource is returned by Send when the whole train was sent, but not from
	// Train.Local, which the kernel refused: it should be forgotten.
	ErrSource = errors.New("source address refused")
)

// final errors are about the socket. All others are about a train, a path or a
// moment; which they are is for firewalls and network drivers to choose, too.
var final = []error{os.ErrClosed, unix.EBADF, unix.ENOTSOCK, unix.EFAULT}

// Transient tells whether the socket goes on working after an error of Receive
// or Send. If not, as for one that is closed, the Group has to be opened anew.
// EAGAIN is transient: on Receive there is no train, on Send the buffer is full
// and the train should be dropped.
func Transient(err error) bool {
	return err != nil && !slices.ContainsFunc(final, func(e error) bool { return errors.Is(err, e) })
}

// refusesTrain tells whether an error may be about UDP_SEGMENT rather than the
// datagrams.
func refusesTrain(err error) bool {
	switch err {
	case unix.EIO, // no checksums in hardware on the interface, or IPsec
		unix.EOPNOTSUPP, unix.ENOPROTOOPT, // sandboxes with a kernel of their own
		unix.EINVAL, unix.EMSGSIZE: // a segment above the MTU; alone it would be fragmented
		return true
	}
	return false
}

// refusesSource tells whether an error may be about the source address.
func refusesSource(err error) bool {
	switch err {
	case unix.EINVAL, unix.EADDRNOTAVAIL, // it is gone
		unix.ENETUNREACH, unix.EHOSTUNREACH, // no route from it
		unix.ENODEV, unix.ENXIO: // its interface is gone
		return true
	}
	return false
}
