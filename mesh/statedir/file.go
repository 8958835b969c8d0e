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
	version = "1"
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
	head := magic + " " + version + " " + kind + " "
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
	if fields[1] != version {
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
func readFile(dir, name string, body any) error {
	path := filepath.Join(dir, name)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return err
	}
	if len(content) > maxFile {
		return damaged(dir, name, fmt.Errorf("it is larger than %d bytes", maxFile))
	}
	switch err := decodeFile(content, name, body); {
	case errors.Is(err, ErrNewer):
		return fmt.Errorf("%s: %w", path, err)
	case err != nil:
		return damaged(dir, name, err)
	}
	return nil
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
	if name == fileTable || name == filePeers {
		what = "delete it: it is only a cache"
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
	if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func writeDurably(path, dir string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
	}()
	if err := chownLike(path, dir); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

// chownLike gives path the owner of dir, when they differ: a command that root
// runs must not lock out a daemon that runs as somebody else.
func chownLike(path, dir string) error {
	d, err := os.Stat(dir)
	if err != nil {
		return err
	}
	p, err := os.Lstat(path)
	if err != nil {
		return err
	}
	want, have := d.Sys().(*syscall.Stat_t), p.Sys().(*syscall.Stat_t)
	if want.Uid == have.Uid && want.Gid == have.Gid {
		return nil
	}
	if os.Geteuid() != 0 {
		return nil // only root can give files away
	}
	return os.Lchown(path, int(want.Uid), int(want.Gid))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
