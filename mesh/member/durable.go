package member

// Durable is what must be on disk before more is said. The zero value is nothing.
type Durable struct {
	Charter     []byte   // not nil: newer than the one before
	Certificate []byte   // not nil: this node's own was renewed
	Keyring     *Keyring // not nil: changed; must not be used before it is durable
	Table       bool     // that of now
	State       *State   // not nil: changed
}

// Disk keeps what must be durable.
type Disk interface {
	SaveCharter([]byte) error
	SaveCertificate([]byte) error
	SaveKeyring(Keyring) error
	SaveTable([][]byte) error
	SaveState(State) error
}

// Any tells whether there is anything to save.
func (d *Durable) Any() bool {
	return d.Charter != nil || d.Certificate != nil || d.Keyring != nil || d.Table || d.State != nil
}

// Add takes in what is newer, in place of what it had of that.
func (d *Durable) Add(newer Durable) {
	if newer.Charter != nil {
		d.Charter = newer.Charter
	}
	if newer.Certificate != nil {
		d.Certificate = newer.Certificate
	}
	if newer.Keyring != nil {
		d.Keyring = newer.Keyring
	}
	if newer.State != nil {
		d.State = newer.State
	}
	d.Table = d.Table || newer.Table
}

// SaveTo saves all and forgets it, as far as it comes: what is left after an error is
// for the next time. The daemon may die after any part, so what others rest on goes
// first: the state may have a lease in a network that no charter before it has, or that
// no certificate before it allows, and a lease counts for nothing without the admission
// that is in the table.
func (d *Durable) SaveTo(disk Disk, table func() [][]byte) error {
	if d.Charter != nil {
		if err := disk.SaveCharter(d.Charter); err != nil {
			return err
		}
		d.Charter = nil
	}
	if d.Certificate != nil {
		if err := disk.SaveCertificate(d.Certificate); err != nil {
			return err
		}
		d.Certificate = nil
	}
	if d.Keyring != nil {
		if err := disk.SaveKeyring(*d.Keyring); err != nil {
			return err
		}
		d.Keyring = nil
	}
	if d.Table {
		if err := disk.SaveTable(table()); err != nil {
			return err
		}
		d.Table = false
	}
	if d.State != nil {
		if err := disk.SaveState(*d.State); err != nil {
			return err
		}
		d.State = nil
	}
	return nil
}
