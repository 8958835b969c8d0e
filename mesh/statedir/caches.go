package statedir

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
)

// LoadTable reads the objects that the last daemon knew; none if there are none.
// The table is a cache: on an error go on without it.
func (d *Dir) LoadTable() ([][]byte, error) {
	var f tableFile
	if err := readFile(d.path, fileTable, &f); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read table: %w", err)
	}
	return f.Objects, nil
}

// SaveTable replaces the known objects.
func (d *Dir) SaveTable(objects [][]byte) error {
	return d.save(fileTable, "table", tableFile{objects})
}

// LoadPeers reads the gossip addresses that the last daemon knew. They are a
// cache: on an error go on without them.
func (d *Dir) LoadPeers() ([]netip.AddrPort, error) {
	var f peersFile
	if err := readFile(d.path, filePeers, &f); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	return f.Addresses, nil
}

// SavePeers replaces the gossip addresses.
func (d *Dir) SavePeers(peers []netip.AddrPort) error {
	return d.save(filePeers, "peers", peersFile{peers})
}

// LoadStamp reads the newest time that a handshake of this node was dated; zero if
// nothing is known. On an error go on without it.
func (d *Dir) LoadStamp() (time.Time, error) {
	var f stampFile
	if err := readFile(d.path, fileStamp, &f); err != nil && !errors.Is(err, os.ErrNotExist) {
		return time.Time{}, fmt.Errorf("read time of the last handshake: %w", err)
	}
	return f.Newest, nil
}

// SaveStamp replaces that time.
func (d *Dir) SaveStamp(newest time.Time) error {
	return d.save(fileStamp, "time of the last handshake", stampFile{newest})
}
