//go:build linux

package cni

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	"meshd/overlay/e2e/debian"
)

// Image is what every runtime has: busybox, statically linked.
const Image = "docker.io/library/busybox:latest"

// object is anything in an OCI image (opencontainers/image-spec).
type object map[string]any

// image is an archive in the layout of OCI images.
//
//	index.json ──► manifest ──┬─► configuration
//	                          └─► layer
func image() ([]byte, error) {
	root, err := debian.RootFS()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	var errs []error
	add := func(name string, content []byte) {
		errs = append(errs, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}))
		_, err := w.Write(content)
		errs = append(errs, err)
	}
	blob := func(mediaType string, content []byte) object {
		digest := fmt.Sprintf("%x", sha256.Sum256(content))
		add("blobs/sha256/"+digest, content)
		return object{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(content)}
	}
	text := func(o object) []byte {
		raw, err := json.Marshal(o)
		errs = append(errs, err)
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
	add("index.json", text(object{"schemaVersion": 2, "manifests": []object{manifest}}))
	add("oci-layout", text(object{"imageLayoutVersion": "1.0.0"}))
	err = errors.Join(append(errs, w.Close())...)
	return out.Bytes(), err
}
