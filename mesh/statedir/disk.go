package statedir

import (
	"errors"
	"os"
	"path/filepath"
)

// change is one system call that changes the disk.
type change struct {
	op   string // as the functions below are called
	path string
	to   string // of rename and link
	data []byte // of write
}

// before is asked before every change. Tests let it fail, or stop there for good.
var before = func(change) error { return nil }

// createFile makes a file of our own. What is there under its name is left over, or
// was put there to have root write somewhere else: it goes.
func createFile(path string) (*os.File, error) {
	if _, err := os.Lstat(path); err == nil {
		if err := remove(path); err != nil {
			return nil, err
		}
	}
	if err := before(change{op: "createFile", path: path}); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func write(f *os.File, content []byte) error {
	if err := before(change{op: "write", path: f.Name(), data: content}); err != nil {
		return err
	}
	_, err := f.Write(content)
	return err
}

func syncFile(f *os.File) error {
	if err := before(change{op: "syncFile", path: f.Name()}); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(path string) error {
	if err := before(change{op: "syncDir", path: path}); err != nil {
		return err
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func rename(from, to string) error {
	if err := before(change{op: "rename", path: from, to: to}); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// link gives a file in a directory another name there, and nowhere else.
func link(dir, from, to string) error {
	if err := before(change{op: "link", path: filepath.Join(dir, from), to: filepath.Join(dir, to)}); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	return errors.Join(root.Link(from, to), root.Close())
}

func remove(path string) error {
	if err := before(change{op: "remove", path: path}); err != nil {
		return err
	}
	return os.Remove(path)
}

func mkdir(path string) error {
	if err := before(change{op: "mkdir", path: path}); err != nil {
		return err
	}
	return os.Mkdir(path, 0o700)
}

func chown(f *os.File, uid, gid int) error {
	if err := before(change{op: "chown", path: f.Name()}); err != nil {
		return err
	}
	return f.Chown(uid, gid)
}
