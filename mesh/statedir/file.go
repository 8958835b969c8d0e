package statedir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A file is one header line and then JSON. The checksum covers the header up to
// its own field, and the JSON:
//
//	meshd-state 1 node sha256:4f0c...e1
//	{
//	  "epoch": 7,
const (
	magic   = "meshd-state"
	version = 1
	// maxFile is above the largest table that gossip accepts (4 MiB, a third
	// more in base64).
	maxFile = 16 << 20
	// maxHeader is above magic, a version, the longest kind and a checksum.
	maxHeader = 128
)

// encodeFile gives a file's whole content.
func encodeFile(kind string, body any) ([]byte, error) {
	raw, err := json.MarshalIndent(body, "", "  ")
	if err != nil {
		return nil, err
	}
	raw = append(raw, '\n')
	head := fmt.Sprintf("%s %d %s ", magic, version, kind)
	return append([]byte(head+checksum(head, raw)+"\n"), raw...), nil
}

// decodeFile reads what encodeFile wrote. Errors other than [ErrNewer] say what
// is wrong with the content.
func decodeFile(content []byte, kind string, body any) error {
	end := bytes.IndexByte(content[:min(len(content), maxHeader)], '\n')
	if end < 0 {
		return errors.New("it has no header")
	}
	head, raw := string(content[:end]), content[end+1:]
	fields := strings.Split(head, " ")
	if len(fields) != 4 || fields[0] != magic {
		return errors.New("it is not a meshd state file")
	}
	prefix := strings.Join(fields[:3], " ") + " "
	if fields[3] != checksum(prefix, raw) {
		return errors.New("its checksum is wrong")
	}
	if v, err := strconv.Atoi(fields[1]); err != nil || v < version {
		return fmt.Errorf("its version is %.10q", fields[1]) // there was none before the first
	} else if v > version {
		return ErrNewer
	}
	if fields[2] != kind {
		return fmt.Errorf("it is a %q file", fields[2])
	}
	return json.Unmarshal(raw, body)
}

func checksum(head string, raw []byte) string {
	h := sha256.New()
	h.Write([]byte(head))
	h.Write(raw)
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// readFile reads a file of the kind that its name says.
func readFile(dir, name string, body any) error { return readKind(dir, name, name, body) }

func readKind(dir, name, kind string, body any) error {
	path := filepath.Join(dir, name)
	content, err := readWhole(path)
	switch {
	case errors.Is(err, errUnfit):
		return damaged(dir, name, err)
	case err != nil:
		return err
	}
	switch err := decodeFile(content, kind, body); {
	case errors.Is(err, ErrNewer):
		return fmt.Errorf("%s: %w", path, err)
	case err != nil:
		return damaged(dir, name, err)
	}
	return nil
}

// errUnfit says that something else stands where a file should.
var errUnfit = errors.New("it is no file of ours")

// readWhole reads a file that is a plain one, of a size that we may have written.
func readWhole(path string) ([]byte, error) {
	// A pipe must not keep us waiting. A symbolic link would be replaced by the
	// next save, and what it points to go stale.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, syscall.ELOOP):
		return nil, fmt.Errorf("%w: a symbolic link", errUnfit)
	case errors.Is(err, syscall.ENXIO):
		return nil, fmt.Errorf("%w: a socket", errUnfit)
	case err != nil:
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, fmt.Errorf("%w: a directory", errUnfit)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: mode %s", errUnfit, info.Mode())
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errUnfit, info.Size(), maxFile)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// readNeeded reads a file without which the state is not whole.
func readNeeded(dir, name string, body any) error {
	err := readFile(dir, name, body)
	if errors.Is(err, os.ErrNotExist) {
		return missing(dir, name)
	}
	return err
}

func damaged(dir, name string, err error) error {
	what := "restore it from a backup; without one, move " + dir + " away and join again with a new token"
	if slices.Contains(caches, name) {
		what = "delete it: it is only a cache"
	}
	if name == fileDocker {
		what = "restore it from a backup; or delete it, restart meshd and make the Docker networks of meshd again"
	}
	if network, ok := attachNetwork(name); ok {
		what = "restore it from a backup; or stop the containers of the network " + network + ", delete the file and restart meshd"
	}
	return fmt.Errorf("%w: %s: %w: %s", ErrDamaged, filepath.Join(dir, name), err, what)
}

func missing(dir, name string) error { return damaged(dir, name, errors.New("it is missing")) }

// writeFile writes dir/name durably, in one step.
func writeFile(dir, name, kind string, body any) error {
	content, err := encodeFile(kind, body)
	if err != nil {
		return err
	}
	if len(content) > maxFile {
		return fmt.Errorf("%s: %d bytes, at most %d", filepath.Join(dir, name), len(content), maxFile)
	}
	// One name per file, so what a crash leaves behind is overwritten.
	temp := filepath.Join(dir, ".tmp-"+strings.TrimPrefix(name, ".new-"))
	if err := writeDurably(temp, dir, content); err != nil {
		return err
	}
	if err := rename(temp, filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func writeDurably(path, dir string, content []byte) (err error) {
	f, err := createFile(path)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
	}()
	if err := chownLike(f, dir); err != nil {
		return err
	}
	if err := write(f, content); err != nil {
		return err
	}
	return syncFile(f)
}

// chownLike gives what is open the owner of dir, when they differ: a command that
// root runs must not lock out a daemon that runs as somebody else.
func chownLike(f *os.File, dir string) error {
	d, err := os.Stat(dir)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	want := ownerOf(d)
	if want == ownerOf(info) || os.Geteuid() != 0 { // only root can give files away
		return nil
	}
	return chown(f, want.UID, want.GID)
}
