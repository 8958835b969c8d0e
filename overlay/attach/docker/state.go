package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"sync"

	"meshd/mesh"
	"meshd/overlay/attach"
)

// network is what Docker told us of one of its networks when it made it. It does
// so once, so this has to survive our restarts.
type network struct {
	Network  string      `json:"network"`           // of the mesh
	Gateway  string      `json:"gateway,omitempty"` // [gatewayDocker] or none
	Internal bool        `json:"internal,omitempty"`
	Mode     attach.Mode `json:"mode,omitempty"`
	Parent   string      `json:"parent,omitempty"` // of macvlan and ipvlan
}

// memory is the document that [Store] keeps.
type memory struct {
	Version  int                `json:"version"`
	Networks map[string]network `json:"networks"` // by Docker's network ID
	Pools    map[string]string  `json:"pools"`    // network of the mesh, by the name of an unnamed pool
}

const stateVersion = 1

// store is what is remembered. Its methods may be called from any goroutine.
type store struct {
	disk Store // fixed at construction

	mu  sync.Mutex
	mem memory // guarded by mu; as on disk
}

// openStore reads what was saved; nothing is no networks.
func openStore(disk Store) (*store, error) {
	s := &store{disk: disk, mem: memory{Version: stateVersion, Networks: map[string]network{}, Pools: map[string]string{}}}
	raw, err := disk.LoadDocker()
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	if s.mem, err = decodeMemory(raw); err != nil {
		return nil, fmt.Errorf("the file docker in the state directory is damaged: %w: restore it, or remove it and make the Docker networks of meshd again", err)
	}
	return s, nil
}

func decodeMemory(raw []byte) (memory, error) {
	var m memory
	if err := json.Unmarshal(raw, &m); err != nil {
		return memory{}, err
	}
	if m.Version != stateVersion {
		return memory{}, fmt.Errorf("version %d, want %d", m.Version, stateVersion)
	}
	for id, n := range m.Networks {
		err := errors.Join(checkID("network", id), mesh.CheckName(n.Network), checkMode(n.Mode, n.Parent))
		if err == nil && n.Gateway != "" && n.Gateway != gatewayDocker {
			err = fmt.Errorf("gateway %.40q", n.Gateway)
		}
		if err != nil {
			return memory{}, err
		}
	}
	for name, n := range m.Pools {
		id, err := parsePool(name + "/4")
		if err == nil && !id.unnamed() {
			err = fmt.Errorf("pool %.70q has a name", name)
		}
		if err := errors.Join(err, mesh.CheckName(n)); err != nil {
			return memory{}, err
		}
	}
	if m.Networks == nil {
		m.Networks = map[string]network{}
	}
	if m.Pools == nil {
		m.Pools = map[string]string{}
	}
	return m, nil
}

func (s *store) network(id string) (network, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.mem.Networks[id]
	return n, ok
}

// pool gives the network of the mesh that an unnamed pool was found to be of.
func (s *store) pool(name string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.mem.Pools[name]
	return n, ok
}

// update changes what is known, on disk first.
func (s *store) update(change func(*memory)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := memory{Version: stateVersion, Networks: map[string]network{}, Pools: map[string]string{}}
	maps.Copy(next.Networks, s.mem.Networks)
	maps.Copy(next.Pools, s.mem.Pools)
	change(&next)
	raw, err := json.Marshal(next)
	if err == nil {
		err = s.disk.SaveDocker(raw)
	}
	if err != nil {
		return fmt.Errorf("remember networks of Docker: %w", err)
	}
	s.mem = next
	return nil
}
