//go:build linux

package nft

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// set holds names of interfaces, each with something else unless also is zero.
type set struct {
	name     string
	also     nftables.SetDatatype
	elements []element
}

type element struct {
	name string
	also []byte
}

// maxElements is how many one message takes, whose list of them the kernel counts
// in 16 bits: 48 bytes each.
const maxElements = 1000

func (m set) kernel(table *nftables.Table) *nftables.Set {
	// The byte order is for nft, which would else list names backwards.
	k := &nftables.Set{Table: table, Name: m.name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	if m.also.Name != "" {
		k.KeyType, k.Concatenation = nftables.MustConcatSetType(nftables.TypeIFName, m.also), true
	}
	return k
}

// add puts the set into the batch.
func (m set) add(c *nftables.Conn, table *nftables.Table) error {
	k := m.kernel(table)
	if err := c.AddSet(k, nil); err != nil {
		return err
	}
	return inParts(m.keys(), func(part []nftables.SetElement) error { return c.SetAddElements(k, part) })
}

// keys are the elements as the kernel holds them, in order.
func (m set) keys() []string {
	var all []string
	for _, e := range m.elements {
		key := append(ifname(e.name), e.also...)
		for len(key)%4 != 0 { // the parts of a key fill registers
			key = append(key, 0)
		}
		all = append(all, string(key))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// ifname gives a name as the kernel holds it.
func ifname(name string) []byte {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return data
}

// change lists what makes the elements of the set in the kernel as wanted.
func (m set) change(table *nftables.Table, have, want []string) []op {
	var ops []op
	add := func(verb string, keys []string, do func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) {
		if len(keys) == 0 {
			return
		}
		text := fmt.Sprintf("nft %s element %s %s { %s }", verb, tableName(table), m.name, m.list(keys))
		ops = append(ops, op{text: text, element: true, add: func(c *nftables.Conn) error {
			return inParts(keys, func(part []nftables.SetElement) error { return do(c, m.kernel(table), part) })
		}})
	}
	add("add", without(want, have), (*nftables.Conn).SetAddElements)
	add("delete", without(have, want), (*nftables.Conn).SetDeleteElements)
	return ops
}

// without gives those of all that are not among others; both are in order.
func without(all, others []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool {
		for len(others) > 0 && others[0] < s {
			others = others[1:]
		}
		return len(others) > 0 && others[0] == s
	})
}

func inParts(keys []string, do func([]nftables.SetElement) error) error {
	for part := range slices.Chunk(keys, maxElements) {
		var elements []nftables.SetElement
		for _, key := range part {
			elements = append(elements, nftables.SetElement{Key: []byte(key)})
		}
		if err := do(elements); err != nil {
			return err
		}
	}
	return nil
}

// list prints keys as nft does.
func (m set) list(keys []string) string {
	var all []string
	for _, key := range keys {
		n := min(unix.IFNAMSIZ, len(key))
		text := fmt.Sprintf("%q", bytes.TrimRight([]byte(key[:n]), "\x00"))
		if size := int(m.also.Bytes); size > 0 && len(key) >= n+size {
			text += " . " + m.value([]byte(key[n:n+size]))
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

// value prints what an element holds besides a name.
func (m set) value(b []byte) string {
	if m.also.Name == nftables.TypeEtherAddr.Name {
		return net.HardwareAddr(b).String()
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr.String()
}

func (m set) String() string {
	kind := nftables.TypeIFName.Name
	if m.also.Name != "" {
		kind += " . " + m.also.Name
	}
	if len(m.elements) == 0 {
		return fmt.Sprintf("\tset %s {\n\t\ttype %s\n\t}\n", m.name, kind)
	}
	return fmt.Sprintf("\tset %s {\n\t\ttype %s\n\t\telements = { %s }\n\t}\n", m.name, kind, m.list(m.keys()))
}
