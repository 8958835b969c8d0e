package exchange

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"meshd/mesh/trust"
)

const (
	// maxKeys bounds one list: 2000 members with 4 objects each, and as many again.
	maxKeys = 16 << 10
	// maxObjects is the same of objects, which bring with them what they rest on.
	maxObjects = 2 * maxKeys
	// maxBytes bounds the objects that one exchange brings each way: those of 2000
	// members weigh 1.5 MB. What does not fit is for the next one.
	maxBytes = 2 << 20
)

const (
	magic   = "mshX"
	version = 1

	same   = 0
	differ = 1
)

var errMalformed = errors.New("malformed exchange")

// hello is what is asked first.
type hello struct {
	salt   salt
	digest Digest
}

const helloSize = len(magic) + 1 + len(salt{}) + len(Digest{})

func (h hello) encode() []byte {
	out := append([]byte(magic), version)
	return append(append(out, h.salt[:]...), h.digest[:]...)
}

func readHello(r io.Reader) (hello, error) {
	var raw [helloSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return hello{}, err
	}
	head, rest := raw[:len(magic)+1], raw[len(magic)+1:]
	if string(head[:len(magic)]) != magic || head[len(magic)] != version {
		return hello{}, fmt.Errorf("%w: hello %x", errMalformed, head)
	}
	return hello{salt(rest), Digest(rest[len(salt{}):])}, nil
}

// outcome is what an exchange has brought.
type outcome struct {
	got   [][]byte
	by    salt     // of the keys
	named []uint64 // keys of those that were to come, without what they rest on
	sent  int      // objects
	whole bool     // nothing that the other has is lacking here, but for what was refused before
}

// getter gives objects by their hashes, each after what it rests on.
type getter func(hashes []trust.Hash) ([][]byte, error)

// ask is the asking side of an exchange.
func ask(conn io.ReadWriter, own *Set, get getter, past *memory) (outcome, error) {
	by := newSalt()
	if _, err := conn.Write(hello{by, own.digest}.encode()); err != nil {
		return outcome{}, err
	}
	r := bufio.NewReader(conn)
	verdict, err := r.ReadByte()
	switch {
	case err != nil:
		return outcome{}, err
	case verdict == same:
		return outcome{whole: true}, nil
	case verdict != differ:
		return outcome{}, fmt.Errorf("%w: answer %d", errMalformed, verdict)
	}
	theirs, err := readKeys(r)
	if err != nil {
		return outcome{}, err
	}
	refused, err := readKeys(r)
	if err != nil {
		return outcome{}, err
	}
	has := own.keyed(by)
	wants, gives := except(has.lacking(theirs), by.keys(past.refused(own))), has.without(theirs, refused)
	objects, err := get(has.named(gives))
	if err != nil {
		return outcome{}, err
	}
	out, sent := appendObjects(appendKeys(appendKeys(nil, wants), gives), objects, maxBytes)
	if _, err := conn.Write(out); err != nil {
		return outcome{}, err
	}
	got, whole, err := readObjects(r)
	return outcome{got, by, wants, sent, whole}, err
}

// answer is the other side. One that is refused is not answered.
func answer(conn io.ReadWriter, own *Set, get getter, past *memory) (outcome, error) {
	r := bufio.NewReader(conn)
	said, err := readHello(r)
	if err != nil {
		return outcome{}, err
	}
	if said.digest == own.digest {
		_, err := conn.Write([]byte{same})
		return outcome{whole: true}, err
	}
	by, has := said.salt, own.keyed(said.salt)
	if _, err := conn.Write(appendKeys(appendKeys([]byte{differ}, has.keys), by.keys(past.refused(own)))); err != nil {
		return outcome{}, err
	}
	wanted, err := readKeys(r)
	if err != nil {
		return outcome{}, err
	}
	given, err := readKeys(r)
	if err != nil {
		return outcome{}, err
	}
	got, whole, err := readObjects(r)
	if err != nil {
		return outcome{}, err
	}
	objects, err := get(has.named(wanted))
	if err != nil {
		return outcome{}, err
	}
	out, sent := appendObjects(nil, objects, maxBytes)
	_, err = conn.Write(out)
	return outcome{got, by, given, sent, whole}, err
}

// appendKeys writes a list of keys, as many as a list may have.
func appendKeys(out []byte, keys []uint64) []byte {
	keys = keys[:min(len(keys), maxKeys)]
	out = binary.BigEndian.AppendUint32(out, uint32(len(keys)))
	for _, k := range keys {
		out = binary.BigEndian.AppendUint64(out, k)
	}
	return out
}

// readKeys reads a list of keys. It grows with what comes, not with what was
// announced.
func readKeys(r io.Reader) ([]uint64, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxKeys {
		return nil, fmt.Errorf("%w: %d keys", errMalformed, n)
	}
	var keys []uint64
	var one [8]byte
	for range n {
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return nil, err
		}
		keys = append(keys, binary.BigEndian.Uint64(one[:]))
	}
	return keys, nil
}

// appendObjects writes as many of the objects, from the first on, as fit, then
// whether that is all of them, and tells how many.
func appendObjects(out []byte, objects [][]byte, most int) (_ []byte, sent int) {
	for _, o := range objects {
		if most -= 2 + len(o); most < 0 || sent == maxObjects {
			break
		}
		out = binary.BigEndian.AppendUint16(out, uint16(len(o)))
		out = append(out, o...)
		sent++
	}
	out = binary.BigEndian.AppendUint16(out, 0)
	if sent == len(objects) {
		return append(out, 1), sent
	}
	return append(out, 0), sent
}

// readObjects reads what appendObjects has written.
func readObjects(r io.Reader) (objects [][]byte, all bool, err error) {
	var head [2]byte
	for room := maxBytes; ; {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, false, err
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if n == 0 {
			break
		}
		if room -= 2 + n; n > trust.MaxObject || room < 0 || len(objects) == maxObjects {
			return nil, false, fmt.Errorf("%w: object %d has %d bytes", errMalformed, len(objects), n)
		}
		object := make([]byte, n)
		if _, err := io.ReadFull(r, object); err != nil {
			return nil, false, err
		}
		objects = append(objects, object)
	}
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return nil, false, err
	}
	return objects, head[0] == 1, nil
}
