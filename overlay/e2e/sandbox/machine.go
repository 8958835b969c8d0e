//go:build linux

package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrImpossible says why this host cannot boot a machine.
var ErrImpossible = errors.New("no machine can be booted here")

// Machine is a small machine: this host's systemd as the first process of its
// own namespaces for processes, mounts, names and control groups. The network
// is that of whoever starts it.
//
// Its files are those below Root, and for /usr also this host's, read-only.
// Below Root, the unit check.service is what it runs; when that ends, the
// machine does, with exit code 0.
type Machine struct {
	Root   string // a directory that is left over afterwards
	cgroup string
}

const systemd = "/usr/lib/systemd/systemd"

// NewMachine makes the machine's place in the host's control groups.
func NewMachine(root string) (*Machine, error) {
	if _, err := os.Stat(systemd); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrImpossible, err)
	}
	parent, err := ownCgroup()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrImpossible, err)
	}
	m := &Machine{root, filepath.Join(parent, fmt.Sprintf("meshd-e2e-%d", os.Getpid()))}
	if err := os.Mkdir(m.cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrImpossible, err)
	}
	return m, nil
}

// ownCgroup is our own group in the unified hierarchy.
func ownCgroup() (string, error) {
	raw, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	own := "/"
	for line := range strings.Lines(string(raw)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = path
		}
	}
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return filepath.Join(fields[1], own), nil
		}
	}
	return "", errors.Join(errors.New("no cgroup2 is mounted"), lines.Err())
}

// Command is what boots the machine, as a process that its starter waits for.
func (m *Machine) Command() (*exec.Cmd, func() error, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	group, err := os.Open(m.cgroup)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = []string{machineVariable + "=" + m.Root, "container=other", "PATH=/usr/bin:/usr/sbin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroupFD: true, CgroupFD: int(group.Fd()),
	}
	return cmd, group.Close, nil
}

// Close removes the machine's control groups. All its processes have ended.
func (m *Machine) Close() error {
	var dirs []string
	err := filepath.WalkDir(m.cgroup, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}

// boot makes the machine's file systems and becomes its systemd.
func boot(root string) error {
	runtime.LockOSThread()
	os.Unsetenv(machineVariable)
	if err := errors.Join(
		unix.Unshare(unix.CLONE_NEWCGROUP), // only now: its root is where this process is
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(root, root, "", unix.MS_BIND, ""),
		os.Chdir(root),
	); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	for _, m := range []struct{ kind, at, options string }{
		{"overlay", "usr", "lowerdir=" + filepath.Join(root, "usr") + ":/usr"},
		{"proc", "proc", ""},
		{"sysfs", "sys", ""},
		{"cgroup2", "sys/fs/cgroup", ""},
		{"tmpfs", "dev", "mode=0755"},
		{"tmpfs", "run", "mode=0755"},
		{"tmpfs", "tmp", "mode=1777"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.at, err)
		}
	}
	for _, d := range []struct {
		path         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}, {"net/tun", 10, 200}} {
		path := filepath.Join("dev", d.path)
		if err := errors.Join(
			os.MkdirAll(filepath.Dir(path), 0o755),
			unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(d.major, d.minor))),
			os.Chmod(path, 0o666),
		); err != nil {
			return err
		}
	}
	if err := errors.Join(
		unix.PivotRoot(".", "."), // puts the old root on top of the new one
		unix.Unmount(".", unix.MNT_DETACH),
		os.Chdir("/"),
	); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return unix.Exec(systemd, []string{systemd, "--system", "--unit=check.service", "--log-target=kmsg", "--log-level=warning", "--show-status=no"}, os.Environ())
}
