package statedir

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrCopied says that a state belongs to another machine.
var ErrCopied = errors.New("this state was copied from another machine")

// machineFile has the machine's ID, see machine-id(5).
var machineFile = "/etc/machine-id"

// application makes our name for a machine one that nobody else uses.
const application = "meshd state directory"

// thisMachine is our name for this machine. The ID itself is confidential, so it
// is hashed as sd_id128_get_machine_app_specific(3) does. Empty: the machine has
// no ID, or not yet.
//
// Containers of one image often share their ID: then a copy between them is not
// noticed. A container that gets a new ID with each start looks like another
// machine; give it a fixed one.
func thisMachine() string {
	f, err := os.Open(machineFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return ""
	}
	id, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(id) != 16 || bytes.Equal(id, make([]byte, 16)) { // "uninitialized" among them
		return ""
	}
	mac := hmac.New(sha256.New, id)
	mac.Write([]byte(application))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// checkMachine refuses a state that is bound to another machine.
func checkMachine(path, machine string) error {
	if here := thisMachine(); machine == "" || here == "" || machine == here {
		return nil
	}
	return fmt.Errorf("%s: %w: two nodes of one identity harm each other: if that machine is gone for good, run `meshctl adopt`; otherwise delete this directory and join anew", path, ErrCopied)
}

// Adopt binds a state to this machine, which from now on may use it, and tells
// whether that changed anything. Where the machine has no ID it binds it to none.
// The caller holds [Lock].
func Adopt(path string) (d *Dir, changed bool, err error) {
	if d, changed, err = adopt(path); err != nil {
		return nil, false, fmt.Errorf("adopt state: %w", err)
	}
	return d, changed, nil
}

func adopt(path string) (d *Dir, changed bool, err error) {
	if err := complete(path); err != nil {
		return nil, false, err
	}
	if d, err = load(path); err != nil {
		return nil, false, err
	}
	state, err := d.State()
	if err == nil && d.machine != thisMachine() {
		d.machine, changed = thisMachine(), true
		err = d.SaveState(state)
	}
	return d, changed, err
}
