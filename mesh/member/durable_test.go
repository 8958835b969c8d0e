package member

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// fullDisk has room for so many parts, and lists what was saved to it.
type fullDisk struct {
	room  int
	saved []string
}

var errFull = errors.New("no space left on device")

func (d *fullDisk) save(part string, value any) error {
	if d.room--; d.room < 0 {
		return errFull
	}
	d.saved = append(d.saved, fmt.Sprint(part, " ", value))
	return nil
}

func (d *fullDisk) SaveCharter(raw []byte) error     { return d.save("charter", raw[0]) }
func (d *fullDisk) SaveCertificate(raw []byte) error { return d.save("certificate", raw[0]) }
func (d *fullDisk) SaveKeyring(k Keyring) error      { return d.save("keyring", k.Send) }
func (d *fullDisk) SaveTable(table [][]byte) error   { return d.save("table", table[0][0]) }
func (d *fullDisk) SaveState(s State) error          { return d.save("state", s.Epoch) }

// durableParts in any order.
var durableParts = []string{"charter", "certificate", "keyring", "table", "state"}

// durableOf makes some parts of a step, of this version.
func durableOf(version byte, parts ...string) Durable {
	var d Durable
	for _, part := range parts {
		switch part {
		case "charter":
			d.Charter = []byte{version}
		case "certificate":
			d.Certificate = []byte{version}
		case "keyring":
			d.Keyring = &Keyring{Send: uint64(version)}
		case "table":
			d.Table = true
		case "state":
			d.State = &State{Epoch: uint64(version)}
		}
	}
	return d
}

func tableOf(version byte) func() [][]byte { return func() [][]byte { return [][]byte{{version}} } }

// Wherever the daemon dies, no lease is on the disk without what it rests on: the
// charter that has its network, the certificate that allows it, and the admission in
// the table.
func TestDiesWhileItSaves(t *testing.T) {
	for room := range len(durableParts) + 1 {
		d, disk := durableOf(1, durableParts...), fullDisk{room: room}
		if err := d.SaveTo(&disk, tableOf(1)); (err == nil) != (room == len(durableParts)) || len(disk.saved) != room {
			t.Errorf("with room for %d: %v is saved, error %v", room, disk.saved, err)
		}
		if !slices.Contains(disk.saved, "state 1") {
			continue
		}
		for _, part := range []string{"charter", "certificate", "table"} {
			if !slices.Contains(disk.saved, part+" 1") {
				t.Errorf("the state is saved before the %s: %v", part, disk.saved)
			}
		}
	}
}

// What could not be saved is saved when there is room again, whatever later steps bring
// or do not bring, such as the revocation that is in the table: the newest of each part,
// once, and not again what was saved.
func TestFullDiskLosesNothing(t *testing.T) {
	for room := range len(durableParts) {
		for some := range 1 << len(durableParts) {
			var newer []string
			for i, part := range durableParts {
				if some>>i&1 == 1 {
					newer = append(newer, part)
				}
			}
			t.Run(fmt.Sprintf("room for %d, then %v", room, newer), func(t *testing.T) {
				var d Durable
				d.Add(durableOf(1, durableParts...))
				disk := fullDisk{room: room}
				if err := d.SaveTo(&disk, tableOf(1)); !errors.Is(err, errFull) || !d.Any() {
					t.Fatalf("error %v, anything left: %t", err, d.Any())
				}
				var want []string
				for _, part := range durableParts {
					switch {
					case slices.Contains(newer, part), part == "table" && !slices.Contains(disk.saved, "table 1"):
						want = append(want, part+" 2") // the table is that of now
					case !slices.Contains(disk.saved, part+" 1"):
						want = append(want, part+" 1")
					}
				}
				d.Add(durableOf(2, newer...))
				d.Add(Durable{}) // a step that changed nothing
				disk = fullDisk{room: len(durableParts)}
				if err := d.SaveTo(&disk, tableOf(2)); err != nil || d.Any() {
					t.Errorf("error %v, anything left: %t", err, d.Any())
				}
				slices.Sort(disk.saved)
				slices.Sort(want)
				if !slices.Equal(disk.saved, want) {
					t.Errorf("then %v is saved, want %v", disk.saved, want)
				}
			})
		}
	}
}

// Each part alone is something to save.
func TestAnyPart(t *testing.T) {
	if d := (Durable{}); d.Any() {
		t.Error("nothing is something to save")
	}
	for _, part := range durableParts {
		if d := durableOf(1, part); !d.Any() {
			t.Errorf("the %s is nothing to save", part)
		}
	}
}
