package device

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/netns"
)

// openIn opens a device in the namespace and closes it with the test.
func openIn(t *testing.T, ns *netns.NS, o Options) (*Device, error) {
	t.Helper()
	var d *Device
	err := ns.Do(func() (err error) { d, err = Open(o); return err })
	if err == nil {
		t.Cleanup(func() { _ = d.Close() }) // may be closed by the test
	}
	return d, err
}

func exists(t *testing.T, ns *netns.NS) bool {
	t.Helper()
	return ns.Do(func() error { _, err := net.InterfaceByName("mesh0"); return err }) == nil
}

func TestOpen(t *testing.T) {
	for _, c := range []struct {
		mode    Mode
		offload bool
	}{{Auto, true}, {"", true}, {On, true}, {Off, false}} {
		t.Run("offload="+string(c.mode), func(t *testing.T) {
			ns := netns.ForTest(t)
			d, err := openIn(t, ns, Options{Name: "mesh0", Offload: c.mode})
			if err != nil {
				t.Fatal(err)
			}
			if (d.File() != nil) != c.offload || d.Name() != "mesh0" {
				t.Errorf("got %q, File() %v; want offload %v", d.Name(), d.File(), c.offload)
			}
			var mtu int
			if err := ns.Do(func() (err error) { mtu, err = d.MTU(); return err }); err != nil || mtu != 1500 {
				t.Errorf("MTU %d, %v; want the kernel's 1500", mtu, err)
			}
			if !exists(t, ns) {
				t.Error("there is no link")
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if exists(t, ns) {
				t.Error("the link outlives the device")
			}
		})
	}
}

func TestMTUNoticesThatTheLinkIsGone(t *testing.T) {
	ns := netns.ForTest(t)
	d, err := openIn(t, ns, Options{Name: "mesh0"})
	if err != nil {
		t.Fatal(err)
	}
	gone := func(what string) {
		t.Helper()
		if err := ns.Do(func() error { _, err := d.MTU(); return err }); !errors.Is(err, unix.ENODEV) {
			t.Errorf("%s: MTU gives %v, want %v", what, err, unix.ENODEV)
		}
	}
	if err := ns.Do(func() error {
		link, err := netlink.LinkByName("mesh0")
		if err != nil {
			return err
		}
		return netlink.LinkSetName(link, "foo0")
	}); err != nil {
		t.Fatal(err)
	}
	gone("renamed")
	if _, err := openIn(t, ns, Options{Name: "mesh0"}); err != nil {
		t.Fatal(err)
	}
	gone("replaced")
}

func TestAutoFallsBackToPlain(t *testing.T) {
	ns := netns.ForTest(t)
	refuse := func(Options) (*Device, error) { return nil, unix.EINVAL }
	var d *Device
	err := ns.Do(func() (err error) { d, err = open(Options{Name: "mesh0", Offload: Auto}, refuse); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if d.File() != nil {
		t.Error("offloads without the kernel's consent")
	}
	if err := ns.Do(func() error { _, err := open(Options{Name: "mesh1", Offload: On}, refuse); return err }); !errors.Is(err, unix.EINVAL) {
		t.Errorf("offload on: %v, want the kernel's error", err)
	}
}

func TestOpenBusy(t *testing.T) {
	for _, mode := range []Mode{Auto, On, Off} {
		t.Run(string(mode), func(t *testing.T) {
			ns := netns.ForTest(t)
			if _, err := openIn(t, ns, Options{Name: "mesh0", Offload: mode}); err != nil {
				t.Fatal(err)
			}
			before := descriptors(t)
			_, err := openIn(t, ns, Options{Name: "mesh0", Offload: mode})
			if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "mesh0") {
				t.Errorf("name of another device: %v, want %v with the name", err, ErrBusy)
			}
			// lo is a link of another kind.
			if _, err := openIn(t, ns, Options{Name: "lo", Offload: mode}); !errors.Is(err, ErrBusy) {
				t.Errorf("name of another link: %v, want %v", err, ErrBusy)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d open descriptors after failures, %d before", after, before)
			}
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNoDescriptorIsInherited(t *testing.T) {
	for _, mode := range []Mode{On, Off} {
		ns := netns.ForTest(t)
		d, err := openIn(t, ns, Options{Name: "mesh0", Offload: mode})
		if err != nil {
			t.Fatal(err)
		}
		file := d.File()
		if file == nil {
			file = plainFile(d.plain)
		}
		raw, err := file.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("offload %s: flags %#x, %v; want close-on-exec", mode, flags, err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseEndsRead(t *testing.T) {
	ns := netns.ForTest(t)
	d, err := openIn(t, ns, Options{Name: "mesh0", Offload: Off})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := d.Read(make([]byte, 2000))
		ended <- err
	}()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read: %v, want %v", err, os.ErrClosed)
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{
		{Name: ""},
		{Name: "sixteen-bytes-xx"},
		{Name: "a/b"},
		{Name: "a b"},
		{Name: "a\x00b"},
		{Name: ".."},
		{Name: "tun%d"},
		{Name: "mesh0", Offload: "maybe"},
	} {
		d, err := Open(o)
		if err == nil {
			_ = d.Close()
			t.Errorf("%+v was accepted", o)
		}
		if errors.Is(err, ErrNoTUN) || errors.Is(err, ErrPermission) || errors.Is(err, ErrBusy) {
			t.Errorf("%+v: %v, want a plain error", o, err)
		}
	}
}

func TestDeviceNodeIsNoTUN(t *testing.T) {
	for _, mode := range []Mode{Auto, On, Off} {
		ns := netns.ForTest(t)
		err := ns.Do(func() error { // its thread ends with the namespace
			return errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
				unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
				unix.Mount("/dev/null", path, "", unix.MS_BIND, ""))
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := openIn(t, ns, Options{Name: "mesh0", Offload: mode}); !errors.Is(err, ErrNoTUN) || !strings.Contains(err.Error(), "modprobe tun") {
			t.Errorf("offload %s, %s is /dev/null: %v, want %v with advice", mode, path, err, ErrNoTUN)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want error
		hint string
	}{
		{"no device node", &os.PathError{Op: "open", Path: path, Err: unix.ENOENT}, ErrNoTUN, "modprobe tun"},
		{"no driver", &os.PathError{Op: "open", Path: path, Err: unix.ENODEV}, ErrNoTUN, "modprobe tun"},
		{"directory", &os.PathError{Op: "open", Path: path, Err: unix.EISDIR}, ErrNoTUN, "modprobe tun"},
		{"another device", unix.ENOTTY, ErrNoTUN, path},
		{"mode of the node", &os.PathError{Op: "open", Path: path, Err: unix.EACCES}, ErrPermission, "root"},
		{"container's device list", &os.PathError{Op: "open", Path: path, Err: unix.EPERM}, ErrPermission, "container"},
		{"no capability", unix.EPERM, ErrPermission, "CAP_NET_ADMIN"},
		{"taken", unix.EBUSY, ErrBusy, "meshd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := explain(c.err)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.hint) {
				t.Errorf("got %q, want %q and a hint at %q", err, c.want, c.hint)
			}
		})
	}
}
