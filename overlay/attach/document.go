package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"meshd/mesh"
	"meshd/tun"
)

// document is what is kept of a network.
type document struct {
	Network     string         `json:"network"`
	Attachments []*entry       `json:"attachments,omitempty"` // by ID
	Reserved    []*reservation `json:"reserved,omitempty"`    // by address
	Uses        []string       `json:"uses,omitempty"`        // IDs, sorted
	Pools       []poolState    `json:"pools,omitempty"`
}

// entry is an attachment.
//
//	address held ─► link made ─► saved ─► the door is told ─► link moved into the container
//	                                                   link removed ─► saved, address free
//
// A crash on the way leaves a link that no document knows, or one that was never
// moved, or a document's entry without its link; the kernel's list tells all
// three. See [Manager.Load] and [Manager.Collect].
type entry struct {
	ID        string         `json:"id"`
	Mode      Mode           `json:"mode"`
	Parent    string         `json:"parent,omitempty"`
	Container string         `json:"container,omitempty"`
	Internal  bool           `json:"internal,omitempty"`
	MAC       string         `json:"mac"`
	MTU       int            `json:"mtu"`
	Addresses []netip.Prefix `json:"addresses"` // with the subnet's length
	// Of a link on a physical one the host sees nothing once it is in its container:
	// it counts as there from when it was moved until the host starts again.
	Moved bool   `json:"moved,omitempty"`
	Boot  string `json:"boot,omitempty"` // when its link was made

	making bool      // it is not saved, and nobody was told of it
	made   *tun.Port // how its link was made last; nil: not since the start
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

func (e *entry) check() error {
	mode := e.Mode
	if mode == IPVLAN {
		mode = MACVLAN // an entry has a MAC address that only of those may be asked for
	}
	_, err := Ask{ID: e.ID, Mode: mode, Parent: e.Parent, Container: e.Container, MAC: e.MAC}.normal()
	if _, bad := net.ParseMAC(e.MAC); err == nil {
		err = bad
	}
	switch {
	case err != nil:
		return err
	case e.Mode == "":
		return fmt.Errorf("%s has no mode", e.ID)
	case len(e.Addresses) == 0 || len(e.Addresses) > 2:
		return fmt.Errorf("%s has %d addresses", e.ID, len(e.Addresses))
	case len(e.Addresses) == 2 && family(e.Addresses[0].Addr()) == family(e.Addresses[1].Addr()):
		return fmt.Errorf("%s has two addresses of one family", e.ID)
	}
	for _, a := range e.Addresses {
		if err := checkHeld(a); err != nil {
			return err
		}
	}
	return nil
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
