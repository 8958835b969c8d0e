//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// usual is what the kernel begins with.
var usual = [3]int{128, 512, 1024}

var raised = [3]int{enough, enough, enough}

// rooms makes rooms of several programs on one machine, in files of their own.
func rooms(t *testing.T) (another func() *room) {
	dir := t.TempDir()
	machine := room{bounds: dir, notes: filepath.Join(dir, "notes")}
	if err := machine.write(usual); err != nil {
		t.Fatal(err)
	}
	for i := range usual {
		if err := os.Chmod(machine.bound(i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func() *room { r := machine; return &r }
}

func (r *room) mustMake(t *testing.T) {
	t.Helper()
	if err := r.make(); err != nil {
		t.Fatal(err)
	}
	r.mustBe(t, raised)
}

func (r *room) mustGiveBack(t *testing.T, want [3]int) {
	t.Helper()
	if err := r.giveBack(); err != nil {
		t.Fatal(err)
	}
	r.mustBe(t, want)
}

func (r *room) mustBe(t *testing.T, want [3]int) {
	t.Helper()
	if got, err := r.read(); got != want || err != nil {
		t.Fatalf("the bounds are %v, %v, want %v", got, err, want)
	}
}

// The bounds of the kernel's table of neighbours are what they were once the last of
// several large labs is gone, in whichever order.
func TestRoomIsGivenBack(t *testing.T) {
	another := rooms(t)
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		labs := []*room{another(), another()}
		labs[0].mustMake(t)
		labs[1].mustMake(t)
		labs[order[0]].mustGiveBack(t, raised)
		labs[order[0]].mustGiveBack(t, raised) // changes nothing
		labs[order[1]].mustGiveBack(t, usual)
	}
}

// A program that dies leaves its locks, and its room to the next lab.
func TestRoomOfACrashIsGivenBack(t *testing.T) {
	another := rooms(t)
	dead, living := another(), another()
	dead.mustMake(t)
	if err := dead.user.Close(); err != nil {
		t.Fatal(err)
	}
	living.mustMake(t)
	living.mustGiveBack(t, usual)
}

// What somebody else has raised is not lowered.
func TestRoomThatIsThere(t *testing.T) {
	another := rooms(t)
	r := another()
	large := [3]int{128, 512, 2 * enough}
	if err := r.write(large); err != nil {
		t.Fatal(err)
	}
	if err := r.make(); err != nil {
		t.Fatal(err)
	}
	r.mustBe(t, [3]int{enough, enough, 2 * enough})
	r.mustGiveBack(t, large)
}

// Bounds that cannot be changed are no failure.
func TestRoomIsDenied(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to mount")
	}
	another := rooms(t)
	r := another()
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its mounts
		made <- errors.Join(readOnly(r.bounds), r.make())
	}()
	if err := <-made; err != nil {
		t.Error(err)
	}
	r.mustGiveBack(t, usual)
}

// readOnly keeps this thread, and no other, from changing the bounds in a directory.
func readOnly(dir string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for i := range usual {
		file := (&room{bounds: dir}).bound(i)
		if err := unix.Mount(file, file, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("", file, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	return nil
}

// A large lab has the room, and leaves it.
func TestLargeLabHasRoom(t *testing.T) {
	var names []string
	for i := range fewHosts + 1 {
		names = append(names, fmt.Sprintf("host%d", i))
	}
	l := build(t, names...)
	bounds, err := (&room{bounds: boundsDir}).read()
	if os.IsNotExist(err) {
		t.Skip("the kernel shows these bounds in its first namespace only")
	}
	if err != nil || slices.Min(bounds[:]) < enough {
		t.Errorf("the bounds are %v, %v, want %v", bounds, err, raised)
	}
	if err := l.Close(); err != nil || l.room.user != nil {
		t.Errorf("the room is kept, %v", err)
	}
}
