//go:build linux

package cni

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// Image is what every runtime has: busybox, statically linked.
const Image = "docker.io/library/busybox:latest"

// archive collects the files of a tar.
type archive struct {
	out  bytes.Buffer
	tar  *tar.Writer
	errs []error
}

func newArchive() *archive {
	a := new(archive)
	a.tar = tar.NewWriter(&a.out)
	return a
}

func (a *archive) add(h tar.Header, content []byte) {
	h.Size = int64(len(content))
	a.errs = append(a.errs, a.tar.WriteHeader(&h))
	_, err := a.tar.Write(content)
	a.errs = append(a.errs, err)
}

func (a *archive) close() ([]byte, error) {
	err := errors.Join(append(a.errs, a.tar.Close())...)
	return a.out.Bytes(), err
}

// layer is a root file system with busybox and its names.
func layer() ([]byte, error) {
	program, err := os.ReadFile(tool("busybox"))
	if err != nil {
		return nil, err
	}
	names, err := exec.Command(tool("busybox"), "--list").Output()
	if err != nil {
		return nil, err
	}
	a := newArchive()
	for _, dir := range []string{"bin/", "etc/", "tmp/", "root/"} {
		a.add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	a.add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for name := range strings.FieldsSeq(string(names)) {
		if name != "busybox" {
			a.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	return a.close()
}

// object is anything in an OCI image (opencontainers/image-spec).
type object map[string]any

// image is an archive in the layout of OCI images.
//
//	index.json ──► manifest ──┬─► configuration
//	                          └─► layer
func image() ([]byte, error) {
	root, err := layer()
	if err != nil {
		return nil, err
	}
	a := newArchive()
	blob := func(mediaType string, content []byte) object {
		digest := fmt.Sprintf("%x", sha256.Sum256(content))
		a.add(tar.Header{Typeflag: tar.TypeReg, Name: "blobs/sha256/" + digest, Mode: 0o644}, content)
		return object{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(content)}
	}
	text := func(o object) []byte {
		raw, err := json.Marshal(o)
		a.errs = append(a.errs, err)
		return raw
	}
	const kind = "application/vnd.oci.image."
	rootLayer := blob(kind+"layer.v1.tar", root)
	config := blob(kind+"config.v1+json", text(object{
		"architecture": runtime.GOARCH, "os": "linux", "config": object{"Env": []string{"PATH=/bin"}},
		"rootfs": object{"type": "layers", "diff_ids": []any{rootLayer["digest"]}},
	}))
	manifest := blob(kind+"manifest.v1+json", text(object{
		"schemaVersion": 2, "mediaType": kind + "manifest.v1+json", "config": config, "layers": []object{rootLayer},
	}))
	manifest["annotations"] = object{"io.containerd.image.name": Image}
	a.add(tar.Header{Typeflag: tar.TypeReg, Name: "index.json", Mode: 0o644},
		text(object{"schemaVersion": 2, "manifests": []object{manifest}}))
	a.add(tar.Header{Typeflag: tar.TypeReg, Name: "oci-layout", Mode: 0o644}, text(object{"imageLayoutVersion": "1.0.0"}))
	return a.close()
}
