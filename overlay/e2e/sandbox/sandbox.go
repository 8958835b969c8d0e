//go:build linux

// Package sandbox starts programs the way the systemd unit does, without
// systemd: as a user with CAP_NET_ADMIN and no other capability, no new
// privileges, every file system read-only but for one directory, and a TUN device
// that this user may open.
//
// The test binary does it: [Box.Wrap] has a command start this binary again,
// and [Main], called before anything else, makes the sandbox and becomes the
// program. What systemd does with seccomp and cgroups is not imitated; [Machine]
// runs the unit under a real one, where that can be.
package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Box is a sandbox.
type Box struct {
	UID, GID int    // 0: root, with all its rights; then only the TUN device is the sandbox's
	Writable string // the one directory that is not read-only; not for root
	TUN      uint32 // mode of /dev/net/tun; 0: 0666, as udev sets it
}

// What carries a box, or the root of a machine, to the process that makes it.
const (
	variable        = "MESHD_E2E_SANDBOX"
	machineVariable = "MESHD_E2E_MACHINE"
)

// Wrap has a command run in the sandbox.
func (b Box) Wrap(cmd *exec.Cmd) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the sandbox: %w", err)
	}
	if b.TUN == 0 {
		b.TUN = 0o666
	}
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Environ(), variable+"="+string(text))
	cmd.Args = append([]string{self, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = self
	return nil
}

// Main becomes the program if the process was started by a wrapped command, and
// does nothing otherwise. It returns an error if it should and cannot.
func Main() error {
	if root, ok := os.LookupEnv(machineVariable); ok {
		return fmt.Errorf("boot machine: %w", boot(root))
	}
	text, ok := os.LookupEnv(variable)
	if !ok {
		return nil
	}
	runtime.LockOSThread() // what follows is this thread's until it becomes the program
	os.Unsetenv(variable)
	var b Box
	if err := json.Unmarshal([]byte(text), &b); err != nil {
		return fmt.Errorf("make sandbox: %w", err)
	}
	return fmt.Errorf("make sandbox: %w", b.become(os.Args[1:]))
}

// become runs the program in place of this process.
func (b Box) become(args []string) error {
	program := filepath.Join("/dev/net", filepath.Base(args[0])) // the user may not reach the real one
	if err := b.mounts(args[0], program); err != nil {
		return err
	}
	if err := b.rights(); err != nil {
		return err
	}
	return unix.Exec(program, args, os.Environ())
}

// mounts makes the file systems, in a mount namespace that ends with the program.
func (b Box) mounts(program, at string) error {
	const tun, sysctls = "/dev/net/tun", "/proc/sys/net/ipv6/conf"
	if err := errors.Join(
		unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/dev/net", "tmpfs", unix.MS_NOSUID, "mode=0755,size=64k"),
		unix.Mknod(tun, unix.S_IFCHR, int(unix.Mkdev(10, 200))),
		unix.Chmod(tun, b.TUN),
		os.WriteFile(at, nil, 0o644),
		unix.Mount(program, at, "", unix.MS_BIND, ""),
	); err != nil {
		return fmt.Errorf("make device and program: %w", err)
	}
	if b.UID == 0 {
		return nil
	}
	writable := []string{b.Writable, sysctls}
	for _, path := range writable {
		if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", path, err)
		}
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make file systems read-only: %w", err)
	}
	for _, path := range writable {
		if err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make %s writable: %w", path, err)
		}
	}
	return nil
}

// rights gives up all rights of this thread but CAP_NET_ADMIN.
func (b Box) rights() error {
	if b.UID == 0 {
		return nil
	}
	for c := range unix.CAP_LAST_CAP + 1 {
		if c == unix.CAP_NET_ADMIN {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	// For this thread alone, unlike the functions of these names.
	for _, call := range [][3]uintptr{
		{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, uintptr(b.GID)}, {unix.SYS_SETRESUID, uintptr(b.UID)},
	} {
		id := call[1]
		if _, _, errno := unix.RawSyscall(call[0], id, id, id); errno != 0 {
			return fmt.Errorf("become user %d: %w", b.UID, errno)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	only := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_ADMIN, Permitted: 1 << unix.CAP_NET_ADMIN, Inheritable: 1 << unix.CAP_NET_ADMIN}}
	if err := errors.Join(
		unix.Capset(&header, &only[0]),
		unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_ADMIN, 0, 0),
		unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0), // a change of user clears it
	); err != nil {
		return fmt.Errorf("keep CAP_NET_ADMIN: %w", err)
	}
	unix.Umask(0o077)
	return nil
}
