// Package device opens the TUN device.
//
// There are two drivers. The offload driver asks the kernel for a vnet header
// on each packet, so that TCP and UDP cross the device in units of up to 64 KiB;
// whoever uses it has to understand that header. It is used either by
// [Device.File], which Go's poller knows, or by one [Queue] or several.
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
	"os"
	"strings"
	"unicode"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"meshd/tun/rawio"
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
	// Queues of the offload driver: 0 opens a File, 1 or more that many Queues,
	// among which the kernel spreads the flows. The plain driver has none.
	Queues int
	// USO asks for super-packets of UDP, too, where the kernel has them (6.2).
	USO bool
}

// maxQueues of a device, the kernel's MAX_TAP_QUEUES.
const maxQueues = 256

// Device is an open TUN device.
type Device struct {
	name  string
	index int                // of the link
	plain io.ReadWriteCloser // plain driver, else nil

	// Offload driver: one of the two.
	file   *os.File
	queues []*Queue
	uso    bool
}

const path = "/dev/net/tun"

const (
	// What every kernel that knows the vnet header can do.
	offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	// The kernel takes both or none.
	usoOffloads = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// Open opens the TUN device and creates its link in the network namespace of
// the calling thread. It fails with [ErrNoTUN], [ErrPermission] or [ErrBusy]
// where one of them is the reason.
func Open(o Options) (*Device, error) {
	return open(o, openOffload)
}

func open(o Options, openOffload func(Options) (*Device, error)) (*Device, error) {
	d, err := openDriver(o, openOffload)
	if err != nil {
		return nil, err
	}
	if d.index, err = ask(d.name, unix.SIOCGIFINDEX); err != nil {
		return nil, errors.Join(fmt.Errorf("open TUN device %s: %w", d.name, err), d.Close())
	}
	return d, nil
}

func openDriver(o Options, openOffload func(Options) (*Device, error)) (*Device, error) {
	if err := checkName(o.Name); err != nil {
		return nil, err
	}
	if o.Queues < 0 || o.Queues > maxQueues {
		return nil, fmt.Errorf("open TUN device %s: %d queues, want 0 to %d", o.Name, o.Queues, maxQueues)
	}
	switch o.Offload {
	case Auto, On, "":
		d, err := openOffload(o)
		if err == nil {
			return d, nil
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
// carry a vnet header; nil for the plain driver, and where there are Queues.
// Whoever uses it takes it over.
func (d *Device) File() *os.File { return d.file }

// Queues gives the queues of the offload driver, as many as were asked for.
// They are closed with the device.
func (d *Device) Queues() []*Queue { return d.queues }

// USO tells whether the kernel hands out and takes super-packets of UDP.
func (d *Device) USO() bool { return d.uso }

var errOffload = errors.New("the offload driver has no single packets, use File or Queues")

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

// Close closes the device, which removes the link and ends a blocked Read and
// every Wait on a queue.
func (d *Device) Close() error {
	switch {
	case d.plain != nil:
		return d.plain.Close()
	case d.file != nil:
		return d.file.Close()
	}
	return d.closeQueues()
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

func openOffload(o Options) (*Device, error) {
	flags := uint16(unix.IFF_VNET_HDR)
	if o.Queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	d := &Device{name: o.Name, uso: o.USO}
	for i := range max(o.Queues, 1) {
		// A link with many queues takes further ones from anybody with our user
		// id. So the first refuses a link that exists.
		var exclusive uint16
		if i == 0 {
			exclusive = unix.IFF_TUN_EXCL
		}
		fd, err := attach(o.Name, flags|exclusive)
		if err != nil {
			return nil, errors.Join(err, d.closeQueues())
		}
		if err := d.take(fd, o.Queues > 0); err != nil {
			return nil, errors.Join(err, unix.Close(fd), d.closeQueues())
		}
	}
	return d, nil
}

// take adds an attached descriptor to the device, as a queue or as its file.
// When it fails the descriptor is the caller's.
func (d *Device) take(fd int, queue bool) error {
	if d.uso && unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads|usoOffloads) != nil {
		d.uso = false
	}
	if !d.uso {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
			return fmt.Errorf("enable offloads: %w", err)
		}
	}
	if !queue {
		// Non-blocking and attached: only now will the poller take it.
		d.file = os.NewFile(uintptr(fd), path)
		return nil
	}
	file, err := rawio.NewFile(fd)
	if err != nil {
		return err
	}
	d.queues = append(d.queues, NewQueue(file))
	return nil
}

func (d *Device) closeQueues() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.file.Close())
	}
	return errors.Join(errs...)
}

func openPlain(name string) (io.ReadWriteCloser, error) {
	// water never closes its descriptor when the kernel refuses, so the kernel
	// is asked with one of ours first.
	fd, err := attach(name, unix.IFF_TUN_EXCL)
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
		return nil, explain(err)
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
		return -1, explain(&fs.PathError{Op: "open", Path: path, Err: err})
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return -1, errors.Join(explain(err), unix.Close(fd))
	}
	return fd, nil
}

// explain adds the reason and the way out to an error of the kernel.
func explain(err error) error {
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
		return fmt.Errorf("%w: there is a link of that name, maybe of another meshd: %w", ErrBusy, err)
	}
	return err
}
