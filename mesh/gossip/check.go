package gossip

import (
	"encoding/binary"
	"errors"
)

// memberlist's messages begin with their type. Most have a MessagePack map of
// numbers and strings behind it.
const (
	mlPing         = 0
	mlIndirectPing = 1
	mlAck          = 2
	mlSuspect      = 3
	mlAlive        = 4
	mlDead         = 5
	mlPushPull     = 6 // a map, then as many maps as it says, then as many bytes
	mlCompound     = 7 // number of parts, a byte │ length of each, 2 bytes │ parts
	mlUser         = 8 // in a packet our own message; in a stream a map that says how long it is, then it
	mlNack         = 11
	mlCRC          = 12 // 4 bytes │ a message
	mlError        = 13
)

const (
	// maxNodes is above what memberlist knows of a full mesh: 2000 members, and
	// names that they have given up of late.
	maxNodes = 8 << 10
	// maxFields is above what any map has.
	maxFields = 32
)

// errHarmful says that a message is none that a member sends.
var errHarmful = errors.New("not a message of a member")

// checkPacket refuses a packet with which memberlist could not cope: compressed
// ones above all, of which a thousandth arrives, and lengths that lie.
func checkPacket(m []byte, self *standing) error {
	if len(m) > 5 && m[0] == mlCRC {
		m = m[5:]
	}
	if len(m) < 2 || m[0] != mlCompound {
		return checkPart(m, self)
	}
	parts := int(m[1])
	lengths, rest := m[2:], []byte(nil)
	if len(lengths) < 2*parts {
		return errHarmful
	}
	lengths, rest = lengths[:2*parts], lengths[2*parts:]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(rest) || checkPart(rest[:n], self) != nil {
			return errHarmful
		}
		rest = rest[n:]
	}
	return nil
}

// checkPart refuses what is not a single message.
func checkPart(m []byte, self *standing) error {
	if len(m) == 0 {
		return errHarmful
	}
	switch m[0] {
	case mlUser:
		return nil
	case mlPing, mlIndirectPing, mlAck, mlNack:
		if _, ok := skipMap(m[1:], nil); ok {
			return nil
		}
	case mlSuspect, mlAlive, mlDead:
		if _, ok := checkWord(m[1:], self); ok {
			return nil
		}
	}
	return errHarmful
}

// checkStream does the same with what came by stream.
func checkStream(m []byte, self *standing) error {
	if len(m) == 0 {
		return errHarmful
	}
	switch m[0] {
	case mlPing, mlAck, mlError:
		if _, ok := skipMap(m[1:], nil); !ok {
			return errHarmful
		}
		return nil
	}
	sizes := map[string]uint64{}
	rest, ok := skipMap(m[1:], sizes)
	if !ok {
		return errHarmful
	}
	size := sizes["UserMsgLen"]
	switch m[0] {
	case mlUser:
	case mlPushPull:
		nodes := sizes["Nodes"]
		if nodes > maxNodes {
			return errHarmful
		}
		for range nodes {
			if rest, ok = checkWord(rest, self); !ok {
				return errHarmful
			}
		}
		size = sizes["UserStateLen"]
	default:
		return errHarmful
	}
	if size != uint64(len(rest)) {
		return errHarmful
	}
	return nil
}

// skipMap takes one MessagePack map off, with strings as keys and nothing that
// contains anything as values. If numbers is not nil, all values are numbers or
// booleans, and those that are not negative are put there.
func skipMap(raw []byte, numbers map[string]uint64) (rest []byte, ok bool) {
	return eachField(raw, func(name []byte, value scalar) bool {
		if numbers == nil {
			return true
		}
		if _, twice := numbers[string(name)]; twice || value.kind != number {
			return false
		}
		numbers[string(name)] = value.number
		return true
	})
}

// eachField does the same, and gives each field to f, which tells whether it may pass.
func eachField(raw []byte, f func(name []byte, value scalar) bool) (rest []byte, ok bool) {
	if len(raw) == 0 {
		return nil, false
	}
	fields, rest := 0, raw[1:]
	switch {
	case raw[0]&0xf0 == 0x80:
		fields = int(raw[0] & 0x0f)
	case raw[0] == 0xde && len(rest) >= 2: // map 16
		fields, rest = int(binary.BigEndian.Uint16(rest)), rest[2:]
	default:
		return nil, false
	}
	if fields > maxFields {
		return nil, false
	}
	for range fields {
		var name, value scalar
		if name, rest, ok = cutScalar(rest); !ok || name.kind != textual {
			return nil, false
		}
		if value, rest, ok = cutScalar(rest); !ok || !f(name.text, value) {
			return nil, false
		}
	}
	return rest, true
}

// scalar is a MessagePack value that contains no other.
type scalar struct {
	kind   kindOfScalar
	number uint64
	text   []byte
}

type kindOfScalar byte

const (
	other   kindOfScalar = iota // nil, negative numbers, floats
	number                      // not negative; of a boolean 0 or 1
	textual                     // strings and bytes
)

// cutScalar takes one off.
func cutScalar(raw []byte) (s scalar, rest []byte, ok bool) {
	if len(raw) == 0 {
		return s, nil, false
	}
	first, rest := raw[0], raw[1:]
	size, long := 0, 0 // of the value, or of the length of text
	switch {
	case first <= 0x7f:
		return scalar{kind: number, number: uint64(first)}, rest, true
	case first&0xe0 == 0xa0:
		return cutText(rest, uint64(first&0x1f))
	case first >= 0xe0, first == 0xc0:
		return s, rest, true
	case first == 0xc2, first == 0xc3:
		return scalar{kind: number, number: uint64(first & 1)}, rest, true
	case first >= 0xc4 && first <= 0xc6: // bytes
		long = 1 << (first - 0xc4)
	case first >= 0xd9 && first <= 0xdb: // strings
		long = 1 << (first - 0xd9)
	case first >= 0xcc && first <= 0xcf: // unsigned
		s.kind, size = number, 1<<(first-0xcc)
	case first >= 0xd0 && first <= 0xd3: // signed
		s.kind, size = number, 1<<(first-0xd0)
	case first == 0xca, first == 0xcb: // floats
		size = 4 << (first - 0xca)
	default:
		return s, nil, false // an array, a map, an extension
	}
	if len(rest) < size+long {
		return s, nil, false
	}
	for _, b := range rest[:size+long] {
		s.number = s.number<<8 | uint64(b)
	}
	rest = rest[size+long:]
	if long > 0 {
		return cutText(rest, s.number)
	}
	if first >= 0xd0 && first <= 0xd3 && s.number>>(8*size-1) != 0 {
		s.kind = other // negative
	}
	return s, rest, true
}

func cutText(raw []byte, n uint64) (s scalar, rest []byte, ok bool) {
	if n > uint64(len(raw)) {
		return s, nil, false
	}
	return scalar{kind: textual, text: raw[:n]}, raw[n:], true
}
