package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"meshd/cmd/internal/exit"
	"meshd/mesh/statedir"
	"meshd/overlay/config"
	"meshd/tun/hostnet"
)

// preflight does what takes more rights than the daemon has, and refuses where
// the daemon would. It changes nothing that is right already, and says what it
// changed; until it has found all else good it changes nothing at all.
func preflight(cfg *config.Config, configPath string, stdout io.Writer) error {
	if os.Geteuid() != 0 {
		return exit.With(exit.NoPerm, errors.New("--preflight sets sysctls and owners of files: run it as root, as the systemd unit does"))
	}
	if err := checkState(cfg); err != nil {
		return err
	}
	owner, err := statedir.OwnerOf(cfg.StateDir, statedir.ServiceUser)
	if err != nil {
		return err
	}
	f := flight{stdout: stdout, owner: owner, tun: tunPath}
	for _, step := range []func() error{
		f.haveTUN,
		func() error { return f.haveState(cfg.StateDir) },
		func() error { return f.haveDirectory(filepath.Dir(cfg.Control)) },
		func() error { return f.mayUse(configPath, cfg) },
		f.haveForwarding,
	} {
		if err := step(); err != nil {
			return withCode(err)
		}
	}
	if f.changes == 0 {
		fmt.Fprintln(stdout, "nothing to change")
	}
	return nil
}

// checkState refuses what the daemon would refuse.
func checkState(cfg *config.Config) error {
	_, err := dryMember(cfg)
	return err
}

const tunPath = "/dev/net/tun"

// flight is one run of preflight.
type flight struct {
	stdout  io.Writer
	owner   statedir.Owner // that the daemon runs as
	tun     string         // path of the device
	changes int
}

func (f *flight) did(format string, args ...any) {
	f.changes++
	fmt.Fprintf(f.stdout, format+"\n", args...)
}

// haveTUN makes sure that there is a TUN device, for us at least.
func (f *flight) haveTUN() error {
	err := tryOpen(f.tun, os.O_RDWR)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		if load := exec.Command("modprobe", "tun").Run(); load == nil {
			f.did("modprobe tun")
			err = tryOpen(f.tun, os.O_RDWR)
		}
	}
	if err != nil {
		return exit.With(exit.OSError, fmt.Errorf("%w: load the module (modprobe tun), or pass the device into the container", err))
	}
	return nil
}

// haveState gives the state to the daemon's user.
func (f *flight) haveState(dir string) error {
	changed, err := statedir.Give(dir, f.owner)
	for _, path := range changed {
		f.did("chown %d:%d %s", f.owner.UID, f.owner.GID, path)
	}
	return err
}

// haveDirectory makes the directory of the control socket. One that is there may
// be shared with others, so it stays as it is.
func (f *flight) haveDirectory(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	f.did("mkdir %s", path)
	return os.Chown(path, f.owner.UID, f.owner.GID)
}

// mayUse tries what the daemon needs with its user's rights.
func (f *flight) mayUse(configPath string, cfg *config.Config) error {
	return as(f.owner, func() error {
		may := func(err error, advice string) error {
			if err == nil {
				return nil
			}
			return exit.With(exit.NoPerm, fmt.Errorf("the daemon's user %d has no access: %w: %s", f.owner.UID, err, advice))
		}
		_, stateErr := statedir.Open(cfg.StateDir)
		dir := filepath.Dir(cfg.Control)
		for _, err := range []error{
			may(tryOpen(f.tun, os.O_RDWR), "chmod 0666 "+f.tun+", as udev does; it lets nobody in, since making a link takes CAP_NET_ADMIN"),
			may(tryOpen(configPath, os.O_RDONLY), "chmod a+r it; it holds no secret"),
			may(stateErr, fmt.Sprintf("chown -R %d:%d %s, and let its parents be passed", f.owner.UID, f.owner.GID, cfg.StateDir)),
			may(wrapPath(dir, unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)), "let the user write there, or choose another path under `control`"),
		} {
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// haveForwarding has the kernel forward packets.
func (f *flight) haveForwarding() error {
	changes, err := hostnet.New(hostnet.Options{}).EnableForwarding()
	for _, c := range changes {
		if strings.Contains(c, "accept_ra") {
			c += " (a host that forwards ignores router advertisements otherwise)"
		}
		f.did("%s", c)
	}
	if err != nil {
		return fmt.Errorf("enable forwarding: %w", err)
	}
	return nil
}

func tryOpen(path string, flag int) error {
	file, err := os.OpenFile(path, flag|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return file.Close()
}

func wrapPath(path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: "write to", Path: path, Err: err}
}

// as runs fn with a user's access to files: what the kernel says is true also
// where lists of access rights, parents or mounts decide.
func as(o statedir.Owner, fn func() error) error {
	if o.UID == 0 {
		return fn()
	}
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		done <- func() error {
			// For this thread alone, unlike [unix.Setgroups].
			if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
				return fmt.Errorf("drop groups: %w", errno)
			}
			if err := errors.Join(unix.Setfsgid(o.GID), unix.Setfsuid(o.UID)); err != nil {
				return fmt.Errorf("become user %d: %w", o.UID, err)
			}
			return fn()
		}()
	}()
	return <-done
}
