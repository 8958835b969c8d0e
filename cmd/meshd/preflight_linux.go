package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"meshd/cmd/internal/exit"
	"meshd/mesh/statedir"
	"meshd/overlay/config"
	"meshd/tun/hostnet"
)

// preflight does what takes more rights than the daemon has, and refuses where
// the daemon would. It changes nothing that is right already, and says what it
// changed. While a daemon runs it does no harm.
func preflight(ctx context.Context, cfg *config.Config, configPath string, stdout io.Writer) error {
	if os.Geteuid() != 0 {
		return exit.With(exit.NoPerm, errors.New("--preflight sets sysctls and owners of files: run it as root, as the systemd unit does"))
	}
	if _, err := dryStart(ctx, cfg); err != nil {
		return err
	}
	owner, err := statedir.OwnerOf(cfg.StateDir, statedir.ServiceUser)
	if err != nil {
		return err
	}
	f := flight{stdout: stdout, owner: owner, tun: tunPath, run: filepath.Dir(config.Default().Control)}
	for _, step := range []func() error{
		f.haveTUN,
		func() error { return f.mayRead(configPath) },
		func() error { return f.haveState(cfg.StateDir) },
		func() error { return f.haveFolder("control", cfg.Control) },
		func() error { return f.haveDockerSocket(cfg.Docker) },
		func() error { return f.haveFolder("subnet_env", cfg.SubnetEnv) },
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

const tunPath = "/dev/net/tun"

// flight is one run of preflight.
type flight struct {
	stdout  io.Writer
	owner   statedir.Owner // that the daemon runs as
	tun     string         // path of the device
	run     string         // directory of the sockets that is the daemon's alone
	changes int
}

func (f *flight) did(format string, args ...any) {
	f.changes++
	fmt.Fprintf(f.stdout, format+"\n", args...)
}

// haveTUN makes sure that there is a TUN device, which the daemon may open.
func (f *flight) haveTUN() error {
	err := tryOpen(f.tun, os.O_RDWR)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENXIO) {
		if load := exec.Command("modprobe", "tun").Run(); load == nil {
			f.did("modprobe tun")
			err = tryOpen(f.tun, os.O_RDWR)
		}
	}
	if err != nil {
		return exit.With(exit.OSError, fmt.Errorf("%w: load the module (modprobe tun), or pass the device into the container", err))
	}
	return f.may(func() error { return tryOpen(f.tun, os.O_RDWR) },
		"chmod 0666 "+f.tun+", as udev does; it lets nobody in, since making a link takes CAP_NET_ADMIN")
}

func (f *flight) mayRead(configPath string) error {
	return f.may(func() error { return tryOpen(configPath, os.O_RDONLY) }, "chmod a+r it, it holds no secret")
}

// haveState gives the state to the daemon's user.
func (f *flight) haveState(dir string) error {
	changed, err := statedir.Give(dir, f.owner)
	for _, path := range changed {
		f.did("chown %d:%d %s", f.owner.UID, f.owner.GID, path)
	}
	if err != nil {
		return err
	}
	return f.may(func() error {
		_, err := statedir.Open(dir)
		return err
	}, fmt.Sprintf("chown -R %d:%d %s, and let the directories above it be passed", f.owner.UID, f.owner.GID, dir))
}

// haveDockerSocket makes the directory of Docker's socket, if the daemon insists on
// it.
func (f *flight) haveDockerSocket(d config.Docker) error {
	if !d.Required() {
		return nil
	}
	return f.haveFolder("docker.socket", d.Socket)
}

// haveFolder makes the directory of a file that the daemon makes. One that is there
// may be shared with others, so it stays as it is, but for the usual one that a
// daemon of root's has left. No path is off.
func (f *flight) haveFolder(key, path string) error {
	if path == "" {
		return nil
	}
	dir := filepath.Dir(path)
	advice := fmt.Sprintf("let the user write there, or choose another path under `%s`", key)
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err := f.owner.Do(func() error { return os.MkdirAll(dir, 0o755) })
		if errors.Is(err, fs.ErrPermission) && rootsAlone(dir) {
			err = makeFor(f.owner, dir)
		}
		if err != nil {
			return exit.With(exit.NoPerm, fmt.Errorf("make directory for %s: %w: %s", key, err, advice))
		}
		f.did("mkdir %s", dir)
	case err == nil && dir == f.run && f.owner.UID != 0 && ownedByRoot(info) && rootsAlone(filepath.Dir(dir)):
		if err := makeFor(f.owner, dir); err != nil {
			return exit.With(exit.NoPerm, fmt.Errorf("hand over directory for %s: %w: %s", key, err, advice))
		}
		f.did("chown %d:%d %s", f.owner.UID, f.owner.GID, dir)
	}
	return f.may(func() error {
		file, err := os.CreateTemp(dir, ".preflight-")
		if err != nil {
			return err
		}
		return errors.Join(file.Close(), os.Remove(file.Name()))
	}, advice)
}

// rootsAlone tells whether all that there is of a path was made by root. Else
// the daemon's user may have put links there that lead root astray.
func rootsAlone(path string) bool {
	for {
		for _, look := range []func(string) (fs.FileInfo, error){os.Lstat, os.Stat} {
			info, err := look(path)
			if err == nil && !ownedByRoot(info) || err != nil && !errors.Is(err, fs.ErrNotExist) {
				return false
			}
		}
		if path == filepath.Dir(path) {
			return true
		}
		path = filepath.Dir(path)
	}
}

func ownedByRoot(info fs.FileInfo) bool { return info.Sys().(*syscall.Stat_t).Uid == 0 }

// makeFor makes a directory, as root, if there is none, and gives it away.
func makeFor(owner statedir.Owner, path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	d, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(d.Chown(owner.UID, owner.GID), d.Close())
}

// may tries something with the rights of the daemon's user.
func (f *flight) may(try func() error, advice string) error {
	if err := f.owner.Do(try); err != nil {
		return exit.With(exit.NoPerm, fmt.Errorf("for the daemon's user %d: %w: %s", f.owner.UID, err, advice))
	}
	return nil
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
	file, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return file.Close()
}
