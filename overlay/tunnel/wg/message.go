package wg

import "encoding/binary"

// The messages. Integers are little endian. Types are 1 to 4, and 0x11 to 0x14
// in the suite aes256gcm; three zero bytes follow.
//
//	initiation    0        4        8           40           88            116     132    148
//	              | type   | sender | ephemeral | static+tag | stamp+tag   | mac1  | mac2 |
//
//	response      0        4        8          12          44     60     76     92
//	              | type+1 | sender | receiver | ephemeral | tag  | mac1 | mac2 |
//
//	cookie reply  0        4          8       32            64
//	              | type+2 | receiver | nonce | cookie+tag  |
//
//	transport     0        4          8         16
//	              | type+3 | receiver | counter | packet, padded + tag |
const (
	initiationSize  = 148
	responseSize    = 92
	cookieReplySize = 64
	macSize         = 16
	tagSize         = 16

	// HeaderSize is what comes before the packet in a transport message.
	HeaderSize = 16
	// MaxHandshake is the size of the longest message for [Machine.Receive].
	MaxHandshake = initiationSize
	// Overhead is by how much a transport message is larger than the packet in it.
	Overhead = HeaderSize + tagSize
)

// kind is a message's type less the first type of its suite.
type kind uint32

const (
	initiation kind = iota
	response
	cookieReply
	transport
)

// classify tells what a datagram claims to be. Its length is then right.
func classify(b []byte) (*suite, kind, bool) {
	if len(b) < Overhead {
		return nil, 0, false
	}
	typ := binary.LittleEndian.Uint32(b) // the zero bytes included
	for _, s := range suites[1:] {
		k := kind(typ - s.types)
		switch {
		case k == initiation && len(b) == initiationSize,
			k == response && len(b) == responseSize,
			k == cookieReply && len(b) == cookieReplySize,
			k == transport:
			return s, k, true
		}
	}
	return nil, 0, false
}

// IsHandshake tells whether a datagram is for [Machine.Receive].
func IsHandshake(datagram []byte) bool {
	_, k, ok := classify(datagram)
	return ok && k != transport
}

// IsInitiation tells whether a message of ours opens a handshake.
func IsInitiation(datagram []byte) bool {
	_, k, ok := classify(datagram)
	return ok && k == initiation
}

// SessionIndex gives the index for which to look in the [Table]; false if the
// datagram is no transport message.
func SessionIndex(datagram []byte) (index uint32, ok bool) {
	_, k, ok := classify(datagram)
	if !ok || k != transport {
		return 0, false
	}
	return binary.LittleEndian.Uint32(datagram[4:]), true
}
