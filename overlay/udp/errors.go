package udp

import (
	"errors"
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

// transient errors are about a train, a path or a moment.
var transient = []error{
	ErrTruncated, ErrSource,
	unix.EAGAIN, unix.EINTR, unix.ENOBUFS, unix.ENOMEM, // the kernel has no room
	unix.EPERM, unix.EACCES, // a firewall; a destination that is a broadcast
	unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENONET, // links and routes
	unix.ENODEV, unix.ENXIO, unix.EADDRNOTAVAIL, // an interface or address that is gone
	unix.ECONNREFUSED, unix.ECONNRESET, unix.ETIMEDOUT, unix.EPROTO, unix.ENOPROTOOPT, // what ICMP says
	unix.EMSGSIZE, unix.EINVAL, unix.EAFNOSUPPORT, unix.EDESTADDRREQ, unix.EIO, // this train
}

// Transient tells whether the socket goes on working after an error of Receive
// or Send. If not, as for one that is closed, the Group has to be opened anew.
// EAGAIN is transient: on Receive there is no train, on Send the buffer is full
// and the train should be dropped.
func Transient(err error) bool {
	return slices.ContainsFunc(transient, func(e error) bool { return errors.Is(err, e) })
}

// refusesTrain tells whether an error may be about UDP_SEGMENT rather than the
// datagrams, and whether that will stay so.
func refusesTrain(err error) (refuses, forGood bool) {
	switch err {
	case unix.EIO, // no checksums in hardware on the interface, or IPsec
		unix.EOPNOTSUPP, unix.ENOPROTOOPT: // sandboxes with a kernel of their own
		return true, true
	case unix.EINVAL, unix.EMSGSIZE: // a segment above the MTU; alone it would be fragmented
		return true, false
	}
	return false, false
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
