// Package device opens the TUN device.
//
// There are two drivers. The offload driver asks the kernel for a vnet header
// on each packet, so that TCP and UDP cross the device in units of up to 64 KiB;
// whoever uses it takes over [Device.File] and has to understand that header.
// The plain driver hands out one IP packet per Read and takes one per Write.
//
// The link belongs to the process: it disappears when the device is closed or
// the process ends. Opening neither sets the link up nor gives it an address.
package device

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"unicode"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// Reasons for which [Open] fails, besides a bad name.
var (
	ErrNoTUN      = errors.New("no TUN support")
	ErrPermission = errors.New("no permission to open a TUN device")
	ErrBusy       = errors.New("link name is in use")
)

// Mode says whether to use the kernel's offloads.
type Mode string

// The modes; the zero value means Auto.
const (
	Auto Mode = "auto" // offloads if the kernel has them, otherwise plain
	On   Mode = "on"   // offloads or an error
	Off  Mode = "off"  // plain
)

// Options say which device to open.
type Options struct {
	Name    string // of the link: 1 to 15 bytes
	Offload Mode
}

// Device is an open TUN device.
type Device struct {
	name  string
	index int                // of the link
	file  *os.File           // offload driver, else nil
	plain io.ReadWriteCloser // plain driver, else nil
}

const path = "/dev/net/tun"

// What every kernel that knows the vnet header can do. UDP segmentation (6.2) is
// left to whoever takes over the file.
const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6

// Open opens the TUN device and creates its link in the network namespace of
// the calling thread. It fails with [ErrNoTUN], [ErrPermission] or [ErrBusy]
// where one of them is the reason.
func Open(o Options) (*Device, error) {
	return open(o, openOffload)
}

func open(o Options, openOffload func(name string) (*os.File, error)) (*Device, error) {
	d, err := openDriver(o, openOffload)
	if err != nil {
		return nil, err
	}
	if d.index, err = ask(d.name, unix.SIOCGIFINDEX); err != nil {
		return nil, errors.Join(fmt.Errorf("open TUN device %s: %w", d.name, err), d.Close())
	}
	return d, nil
}

func openDriver(o Options, openOffload func(name string) (*os.File, error)) (*Device, error) {
	if err := checkName(o.Name); err != nil {
		return nil, err
	}
	switch o.Offload {
	case Auto, On, "":
		file, err := openOffload(o.Name)
		if err == nil {
			return &Device{name: o.Name, file: file}, nil
		}
		// No driver gets past these three; any other error may be a kernel
		// that lacks offloads.
		if o.Offload == On || errors.Is(err, ErrNoTUN) || errors.Is(err, ErrPermission) || errors.Is(err, ErrBusy) {
			return nil, fmt.Errorf("open TUN device %s: %w", o.Name, err)
		}
	case Off:
	default:
		return nil, fmt.Errorf("open TUN device %s: unknown offload mode %q (auto, on or off)", o.Name, o.Offload)
	}
	plain, err := openPlain(o.Name)
	if err != nil {
		return nil, fmt.Errorf("open TUN device %s: %w", o.Name, err)
	}
	return &Device{name: o.Name, plain: plain}, nil
}

// Name gives the link's name, as it was opened.
func (d *Device) Name() string { return d.name }

// File is the descriptor of the offload driver, non-blocking, on which packets
// carry a vnet header; nil for the plain driver.
func (d *Device) File() *os.File { return d.file }

var errOffload = errors.New("the offload driver has no single packets, use File")

// Read reads one packet. Only for the plain driver.
func (d *Device) Read(p []byte) (int, error) {
	if d.plain == nil {
		return 0, errOffload
	}
	return d.plain.Read(p)
}

// Write writes one packet. Only for the plain driver.
func (d *Device) Write(p []byte) (int, error) {
	if d.plain == nil {
		return 0, errOffload
	}
	return d.plain.Write(p)
}

// Close closes the device, which removes the link and ends a blocked Read.
func (d *Device) Close() error {
	if d.plain != nil {
		return d.plain.Close()
	}
	return d.file.Close()
}

// MTU asks the kernel for the link's MTU. It fails with ENODEV when no link has
// its name any more, or another link has it. The calling thread must be in the
// link's network namespace.
func (d *Device) MTU() (int, error) {
	index, err := ask(d.name, unix.SIOCGIFINDEX)
	if err == nil && index != d.index {
		err = fmt.Errorf("another link has its name: %w", unix.ENODEV)
	}
	mtu := 0
	if err == nil {
		mtu, err = ask(d.name, unix.SIOCGIFMTU)
	}
	if err != nil {
		return 0, fmt.Errorf("get MTU of %s: %w", d.name, err)
	}
	return mtu, nil
}

// ask asks the kernel for a number of a link.
func ask(name string, request uint) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }() // was only asked
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, request, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

// checkName refuses what the kernel would refuse with a bare EINVAL, and the
// patterns ("tun%d") that it would replace.
func checkName(name string) error {
	bad := func(r rune) bool { return strings.ContainsRune("/:%", r) || unicode.IsSpace(r) || unicode.IsControl(r) }
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%q is not a link name (1 to %d bytes without /, :, %% or white space)", name, unix.IFNAMSIZ-1)
	}
	return nil
}

func openOffload(name string) (*os.File, error) {
	fd, err := attach(name, unix.IFF_VNET_HDR)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		return nil, errors.Join(fmt.Errorf("enable offloads: %w", err), unix.Close(fd))
	}
	// Non-blocking and attached: only now will the poller take it.
	return os.NewFile(uintptr(fd), path), nil
}

func openPlain(name string) (io.ReadWriteCloser, error) {
	// water never closes its descriptor when the kernel refuses, so the kernel
	// is asked with one of ours first.
	fd, err := attach(name, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Close(fd); err != nil {
		return nil, err
	}
	iface, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name},
	})
	if err != nil {
		return nil, explain(name, err)
	}
	// water opens it without O_CLOEXEC; a child would keep the link alive.
	if file := plainFile(iface); file != nil {
		raw, err := file.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { unix.CloseOnExec(int(fd)) })
		}
		if err != nil {
			return nil, errors.Join(err, iface.Close())
		}
	}
	return iface, nil
}

// plainFile finds the file below water's wrapper, nil if it is not one.
func plainFile(plain io.ReadWriteCloser) *os.File {
	iface, ok := plain.(*water.Interface)
	if !ok {
		return nil
	}
	file, _ := iface.ReadWriteCloser.(*os.File)
	return file
}

// attach opens the TUN device without packet information and attaches it to
// the link.
func attach(name string, flags uint16) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, explain(name, &fs.PathError{Op: "open", Path: path, Err: err})
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return -1, errors.Join(explain(name, err), unix.Close(fd))
	}
	return fd, nil
}

// explain adds the reason and the way out to an error of the kernel.
func explain(name string, err error) error {
	var onOpen *fs.PathError
	opening := errors.As(err, &onOpen)
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EISDIR):
		// Containers get a directory where the host has no device.
		return fmt.Errorf("%w: %s is something else: %w; load the module (modprobe tun) or pass %s into the container", ErrNoTUN, path, err, path)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %w; load the module (modprobe tun) or pass %s into the container", ErrNoTUN, err, path)
	case opening && errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w; run as root, or allow the device %s in the container", ErrPermission, err, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w; run as root or with CAP_NET_ADMIN", ErrPermission, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: another program holds it, maybe another meshd: %w", ErrBusy, err)
	case errors.Is(err, unix.EINVAL):
		if _, lookup := net.InterfaceByName(name); lookup == nil {
			return fmt.Errorf("%w: a link that is not a TUN device of ours has it: %w", ErrBusy, err)
		}
	}
	return err
}
