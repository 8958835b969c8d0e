//go:build linux

package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/mesh/statedir"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// ownMounts gives the programs that are started on a host mounts of their own.
// What [lab.Host.Do] runs sees the same.
func ownMounts(t *testing.T, h *lab.Host) {
	t.Helper()
	must(t, h.Do(func() error {
		return errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	}))
}

// checkRefuses looks that a daemon does not start, and why, and that it leaves the
// state as it is.
func checkRefuses(t *testing.T, n *cluster.Node, want int, says ...string) {
	t.Helper()
	before := hashFiles(t, n.StateDir())
	out, code := runDaemon(t, n)
	if code != want {
		t.Errorf("meshd exits %d, want %d: %s", code, want, out)
	}
	last := lastLine(out)
	for _, s := range says {
		if !strings.Contains(last, s) {
			t.Errorf("meshd says %q, want %q in it", last, s)
		}
	}
	if after := hashFiles(t, n.StateDir()); !maps.Equal(after, before) {
		t.Errorf("the state was %v and is %v", before, after)
	}
}

func lastLine(text string) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return all[len(all)-1]
}

// The real daemon on states that are not whole: it starts as the same node or
// not at all, and says what is wrong.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	c := hosts(t, 2)
	alpha, other := c.Nodes[0], c.Nodes[1]
	for _, n := range c.Nodes {
		_, err := n.Meshctl(t.Context(), "init", "--name", "lab")
		must(t, err)
	}
	must(t, alpha.Start())
	must(t, alpha.WaitReady(bounded(t)))
	id, was := document(t, alpha).Node.ID, leasesOf(document(t, alpha))
	must(t, alpha.Stop(bounded(t)))
	good := alpha.StateDir() + ".good"
	must(t, os.CopyFS(good, os.DirFS(alpha.StateDir())))

	reset := func(t *testing.T) {
		t.Helper()
		must(t, os.RemoveAll(alpha.StateDir()))
		must(t, os.CopyFS(alpha.StateDir(), os.DirFS(good)))
		must(t, os.Chmod(alpha.StateDir(), 0o700))
	}
	change := func(file string, do func([]byte) []byte) func(*testing.T) string {
		return func(t *testing.T) string {
			t.Helper()
			path := filepath.Join(alpha.StateDir(), file)
			raw, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path, do(raw), 0o600))
			return path
		}
	}
	replace := func(file string, put func(path string) error) func(*testing.T) string {
		return func(t *testing.T) string {
			t.Helper()
			path := filepath.Join(alpha.StateDir(), file)
			must(t, errors.Join(os.RemoveAll(path), put(path)))
			return path
		}
	}
	cut := func(raw []byte) []byte { return raw[:len(raw)/2] }
	flip := func(raw []byte) []byte { raw[len(raw)*2/3] ^= 4; return raw }
	fromOther := func(file string) func(*testing.T) string {
		return replace(file, func(path string) error {
			raw, err := os.ReadFile(filepath.Join(other.StateDir(), file))
			return errors.Join(err, os.WriteFile(path, raw, 0o600))
		})
	}
	for _, file := range []string{"keys", "mesh", "node"} {
		for name, damage := range map[string]func(*testing.T) string{
			"truncated":     change(file, cut),
			"bit flipped":   change(file, flip),
			"empty":         change(file, func([]byte) []byte { return nil }),
			"missing":       replace(file, func(string) error { return nil }),
			"directory":     replace(file, func(p string) error { return os.Mkdir(p, 0o700) }),
			"symbolic link": replace(file, func(p string) error { return os.Symlink(filepath.Join(good, file), p) }),
			"pipe":          replace(file, func(p string) error { return syscall.Mkfifo(p, 0o600) }),
			"huge": replace(file, func(p string) error {
				return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 1<<30))
			}),
			"of another node": fromOther(file),
		} {
			t.Run(file+" "+name, func(t *testing.T) {
				reset(t)
				named := damage(t)
				if named == filepath.Join(alpha.StateDir(), "keys") && name == "of another node" {
					named = filepath.Join(alpha.StateDir(), "mesh") // does not go with them
				}
				checkRefuses(t, alpha, 65, "state is damaged", named)
			})
		}
	}
	t.Run("newer version", func(t *testing.T) {
		reset(t)
		const head, body = "meshd-state 2 node ", "{}\n"
		at := change("node", func([]byte) []byte {
			return fmt.Appendf(nil, "%ssha256:%x\n%s", head, sha256.Sum256([]byte(head+body)), body)
		})(t)
		checkRefuses(t, alpha, 65, at, "written by a newer meshd")
	})

	// From here on it starts, as the same node.
	for _, file := range []string{"table", "peers", "stamp"} {
		for name, damage := range map[string]func(*testing.T) string{
			"truncated":       change(file, cut),
			"bit flipped":     change(file, flip),
			"missing":         replace(file, func(string) error { return nil }),
			"directory":       replace(file, func(p string) error { return os.Mkdir(p, 0o700) }),
			"pipe":            replace(file, func(p string) error { return syscall.Mkfifo(p, 0o600) }),
			"of another node": replace(file, func(p string) error { return os.WriteFile(p, []byte("meshd-state 1 "), 0o600) }),
		} {
			t.Run(file+" "+name, func(t *testing.T) {
				reset(t)
				if file != "table" { // there was none
					must(t, os.WriteFile(filepath.Join(alpha.StateDir(), file), []byte("x"), 0o600))
				}
				damage(t)
				checkStarts(t, alpha, id.String(), was)
			})
		}
	}
	t.Run("open to others", func(t *testing.T) {
		reset(t)
		must(t, os.Chmod(alpha.StateDir(), 0o755))
		must(t, os.Chmod(filepath.Join(alpha.StateDir(), "node"), 0o644))
		checkStarts(t, alpha, id.String(), was)
		for path, want := range map[string]os.FileMode{alpha.StateDir(): 0o700, filepath.Join(alpha.StateDir(), "node"): 0o600} {
			info, err := os.Stat(path)
			must(t, err)
			if info.Mode().Perm() != want {
				t.Errorf("%s has mode %s, want %s", path, info.Mode(), want)
			}
		}
	})
	t.Run("somebody else's", func(t *testing.T) {
		reset(t)
		openToAll(t, c.Dir)
		cmd := alpha.DaemonCommand(bounded(t), "--check")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: serviceUID, Gid: serviceGID}}
		if out, code := runToEnd(t, alpha, cmd); code != 77 || !strings.Contains(out, alpha.StateDir()) {
			t.Errorf("for a stranger it exits %d: %s", code, out)
		}
	})
	t.Run("in use", func(t *testing.T) {
		reset(t)
		must(t, alpha.Start())
		must(t, alpha.WaitReady(bounded(t)))
		checkRefuses(t, alpha, 69, "in use", fmt.Sprint("process ", pidOf(alpha)))
		if d := document(t, alpha); d.Node.ID != id || leasesOf(d) != was {
			t.Errorf("the first one is %s with %s now", d.Node.ID, leasesOf(d))
		}
		must(t, alpha.Stop(bounded(t)))
	})
}

// checkStarts runs a daemon until it is ready, and looks who it is.
func checkStarts(t *testing.T, n *cluster.Node, id, leases string) {
	t.Helper()
	must(t, n.Start())
	must(t, n.WaitReady(bounded(t)))
	if d := document(t, n); d.Node.ID.String() != id || leasesOf(d) != leases {
		t.Errorf("it is %s with %s, and was %s with %s", d.Node.ID, leasesOf(d), id, leases)
	}
	must(t, n.Stop(bounded(t)))
}

// A state that comes from another machine is not used before somebody says so.
func TestCopiedState(t *testing.T) {
	t.Parallel()
	if id, err := os.ReadFile("/etc/machine-id"); err != nil || len(id) < 32 {
		t.Skip("this machine has no ID to replace")
	}
	c := hosts(t, 1)
	alpha := c.Nodes[0]
	ownMounts(t, alpha.Host)
	becomeMachine(t, alpha, "0123456789abcdef0123456789abcdef")
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	must(t, alpha.Start())
	must(t, alpha.WaitReady(bounded(t)))
	id, was := document(t, alpha).Node.ID.String(), leasesOf(document(t, alpha))
	if _, err := alpha.Meshctl(t.Context(), "adopt"); exitCode(err) != 69 {
		t.Errorf("adopt beside a daemon: %v", err)
	}
	must(t, alpha.Stop(bounded(t)))

	becomeMachine(t, alpha, "fedcba9876543210fedcba9876543210")
	checkRefuses(t, alpha, 65, "copied from another machine", "meshctl adopt", "join anew")
	if _, code := runDaemon(t, alpha, "--check"); code != 65 {
		t.Errorf("meshd --check exits %d", code)
	}
	if out, err := alpha.Meshctl(t.Context(), "token", "create"); exitCode(err) != 65 || out != "" {
		t.Errorf("token create: %q, %v", out, err)
	}
	d, code, err := alpha.Status(t.Context())
	must(t, err)
	if code != 3 || len(d.Health) != 1 || d.Health[0].Code != "state_copied" {
		t.Errorf("status exits %d and finds %+v", code, d.Health)
	}
	out, err := alpha.Meshctl(t.Context(), "adopt")
	must(t, err)
	if !strings.Contains(out, id) {
		t.Errorf("adopt says %q", out)
	}
	checkStarts(t, alpha, id, was)

	becomeMachine(t, alpha, "uninitialized")
	checkStarts(t, alpha, id, was)
}

// The disk fills up, or turns read-only, under a daemon that runs: traffic goes
// on, the node says what is wrong, nothing that must be kept is promised, and
// all is well when there is room again.
func TestStateUnsaved(t *testing.T) {
	t.Parallel()
	for name, disk := range map[string]struct {
		fail, mend func(dir string) error
		why        error
	}{
		"full": {
			func(dir string) error {
				err := os.WriteFile(filepath.Join(dir, "left-filler"), make([]byte, 2<<20), 0o600)
				if errors.Is(err, unix.ENOSPC) {
					return nil
				}
				return fmt.Errorf("the disk is not full: %v", err)
			},
			func(dir string) error { return os.Remove(filepath.Join(dir, "left-filler")) },
			unix.ENOSPC,
		},
		"read-only": {
			func(dir string) error {
				return errors.Join(unix.Mount(dir, dir, "", unix.MS_BIND, ""), unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			},
			func(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) },
			unix.EROFS,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := hosts(t, 2)
			alpha, beta := c.Nodes[0], c.Nodes[1]
			ownMounts(t, alpha.Host)
			must(t, os.Mkdir(alpha.StateDir(), 0o700))
			must(t, alpha.Host.Do(func() error { return unix.Mount("tmpfs", alpha.StateDir(), "tmpfs", 0, "size=512k,mode=700") }))
			formMesh(t, c)
			flow, err := beta.Host.Pings(t.Context(), addresses(t, alpha)[0], 50*time.Millisecond)
			must(t, err)
			defer flow.Stop()

			must(t, alpha.Host.Do(func() error { return disk.fail(alpha.StateDir()) }))
			begin := time.Now()
			must(t, alpha.WaitFor(bounded(t), "to notice", func(d *status.Document) bool { return unsaved(d) != "" }))
			t.Logf("noticed after %s", time.Since(begin).Round(time.Millisecond))
			d, code, err := alpha.Status(t.Context())
			must(t, err)
			if code != 1 || !strings.Contains(unsaved(d), disk.why.Error()) {
				t.Errorf("status exits %d and finds %+v", code, d.Health)
			}

			// It cannot leave, since it could not remember that, and all goes on.
			if _, err := alpha.Meshctl(bounded(t), "leave"); exitCode(err) != 1 || !strings.Contains(err.Error(), disk.why.Error()) {
				t.Errorf("leave: %v", err)
			}
			pause(t.Context(), 2*time.Second)
			if p := peerNamed(document(t, beta), "alpha"); p == nil || p.State != status.PeerUp {
				t.Errorf("beta sees %+v", p)
			}
			must(t, cluster.Poll(bounded(t), func() (bool, error) {
				_, sent := flow.Lost(time.Now())
				return sent >= 10, fmt.Errorf("only %d pings were sent", sent)
			}))
			end := time.Now()
			_, err = flow.Flows(bounded(t), end)
			must(t, err)
			if lost, sent := flow.Lost(end); lost > 1 {
				t.Errorf("%d of %d pings lost meanwhile", lost, sent)
			}
			if out, code := runDaemon(t, alpha, "--check"); code != 0 {
				t.Errorf("meshd --check exits %d: %s", code, out)
			}

			must(t, alpha.Host.Do(func() error { return disk.mend(alpha.StateDir()) }))
			begin = time.Now()
			must(t, alpha.WaitFor(bounded(t), "to be well", func(d *status.Document) bool { return len(d.Health) == 0 }))
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it notices %s after it could write again", took)
			}
			_, err = alpha.Meshctl(bounded(t), "leave")
			must(t, err)
			must(t, beta.WaitFor(bounded(t), "to hear of it", func(d *status.Document) bool {
				p := peerNamed(d, "alpha")
				return p != nil && p.State == status.PeerLeft
			}))
			<-alpha.Process().Done()
			must(t, alpha.Host.Do(func() error {
				dir, err := statedir.Open(alpha.StateDir())
				if err != nil {
					return err
				}
				if s, err := dir.State(); err != nil || !s.Left {
					return fmt.Errorf("the state does not say that it left: %+v, %w", s, err)
				}
				return nil
			}))
			if lines := bytes.Count([]byte(alpha.Log()), []byte("saved")); lines > 4 {
				t.Errorf("it is logged %d times", lines)
			}
		})
	}
}

// A start needs a disk to write on.
func TestStateReadOnly(t *testing.T) {
	t.Parallel()
	c := hosts(t, 1)
	alpha := c.Nodes[0]
	ownMounts(t, alpha.Host)
	formMesh(t, c)
	dir := alpha.StateDir()
	must(t, alpha.Stop(bounded(t)))
	must(t, alpha.Host.Do(func() error {
		return errors.Join(unix.Mount(dir, dir, "", unix.MS_BIND, ""), unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	}))
	checkRefuses(t, alpha, 1, dir, unix.EROFS.Error())
	_, err := alpha.Token(t.Context()) // only reads
	must(t, err)
	must(t, alpha.Host.Do(func() error { return unix.Unmount(dir, unix.MNT_DETACH) }))
	must(t, alpha.Start())
	must(t, alpha.WaitReady(bounded(t)))
}

// unsaved is what a node says of a state that it cannot save.
func unsaved(d *status.Document) string {
	for _, f := range d.Health {
		if f.Code == "state_unsaved" {
			return f.Message
		}
	}
	return ""
}
