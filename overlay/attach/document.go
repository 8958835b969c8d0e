package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"meshd/mesh"
)

// document is what is kept of a network.
type document struct {
	Network     string         `json:"network"`
	Attachments []*entry       `json:"attachments,omitempty"` // by ID
	Reserved    []*reservation `json:"reserved,omitempty"`    // by address
	Uses        []string       `json:"uses,omitempty"`        // IDs, sorted
	Pools       []poolState    `json:"pools,omitempty"`
}

// reservation is an address that a door has asked for by itself.
type reservation struct {
	Door    string       `json:"door"`
	Address netip.Prefix `json:"address"` // with the subnet's length
	Keep    bool         `json:"keep,omitempty"`
}

func (d *document) encode() ([]byte, error) {
	slices.SortFunc(d.Attachments, func(a, b *entry) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(d.Reserved, func(a, b *reservation) int { return a.Address.Compare(b.Address) })
	slices.Sort(d.Uses)
	return json.Marshal(d)
}

// parseDocument reads what encode wrote for the network, and believes nothing
// that no manager could have written.
func parseDocument(network string, raw []byte) (*document, error) {
	var d document
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, err
	}
	if d.Network != network {
		return nil, fmt.Errorf("it is for the network %.70q", d.Network)
	}
	ids := map[string]bool{}
	once := func(id string) error {
		if ids[id] {
			return fmt.Errorf("%s is there twice", id)
		}
		ids[id] = true
		return checkID(id)
	}
	holders := map[netip.Addr]string{} // doors
	for _, e := range d.Attachments {
		if e == nil {
			return nil, errors.New("an attachment is null")
		}
		if err := errors.Join(once(e.ID), e.check()); err != nil {
			return nil, err
		}
		for _, a := range e.Addresses {
			if holders[a.Addr()] != "" {
				return nil, fmt.Errorf("%s has two holders", a.Addr())
			}
			holders[a.Addr()] = door(e.ID)
		}
	}
	reserved := map[netip.Addr]bool{}
	for _, r := range d.Reserved {
		if r == nil {
			return nil, errors.New("a reservation is null")
		}
		a := r.Address.Addr()
		holder := holders[a]
		if err := errors.Join(checkDoor(r.Door), checkHeld(r.Address)); err != nil {
			return nil, err
		}
		if reserved[a] || holder != "" && holder != r.Door {
			return nil, fmt.Errorf("%s has two holders", a)
		}
		reserved[a] = true
	}
	for _, id := range d.Uses {
		if err := once(id); err != nil {
			return nil, err
		}
	}
	for _, p := range d.Pools {
		if !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() {
			return nil, fmt.Errorf("%s is no subnet", p.Prefix)
		}
	}
	return &d, nil
}

// checkHeld verifies an address that a pool has given.
func checkHeld(a netip.Prefix) error {
	if !a.IsValid() || a.Addr().Is4In6() || !newPool(a.Masked(), nil, poolState{}).usable(a.Addr()) {
		return fmt.Errorf("%s is no address for a container", a)
	}
	return nil
}

// checkDoor verifies the name of a door.
func checkDoor(name string) error {
	if len(name) > 32 || mesh.CheckName(name) != nil {
		return fmt.Errorf("%w: door %.40q", ErrBadAsk, name)
	}
	return nil
}

// fill takes what a document says.
func (n *network) fill(d *document) {
	n.kept = d.Pools
	for _, e := range d.Attachments {
		n.add(e)
	}
	for _, r := range d.Reserved {
		n.reserved[r.Address.Addr()] = r
	}
	for _, id := range d.Uses {
		n.uses[id] = true
	}
}

// document is what is to be kept.
func (n *network) document() *document {
	d := &document{Network: n.name, Pools: n.poolStates()}
	for _, e := range n.entries {
		if !e.making {
			d.Attachments = append(d.Attachments, e)
		}
	}
	for _, r := range n.reserved {
		d.Reserved = append(d.Reserved, r)
	}
	for id := range n.uses {
		d.Uses = append(d.Uses, id)
	}
	return d
}

// ids are those of attachments and uses.
func (d *document) ids() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, e := range d.Attachments {
			if !yield(e.ID) {
				return
			}
		}
		for _, id := range d.Uses {
			if !yield(id) {
				return
			}
		}
	}
}
