package attach_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"meshd/mesh"
	"meshd/mesh/meshtest"
	"meshd/mesh/statedir"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
)

// BenchmarkAttach is one attach and one detach beside 200 containers, without the
// kernel.
func BenchmarkAttach(b *testing.B) {
	path := filepath.Join(b.TempDir(), "state")
	keys, membership := meshtest.NewMesh(b).Founder(b, "alpha")
	if err := statedir.Create(path, keys, membership); err != nil {
		b.Fatal(err)
	}
	dir, err := statedir.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	m := attach.New(attach.Options{Host: new(attachtest.Host), Store: dir})
	if err := m.Load(b.Context()); err != nil {
		b.Fatal(err)
	}
	m.Sync(attach.World{View: attachtest.View(attachtest.Lease("default", 7, mesh.Held)), MTU: 1420})
	one := func(id string) {
		if _, err := m.Attach(b.Context(), attach.Ask{ID: id}); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 200 {
		one(fmt.Sprint("ctl/", i))
	}
	for b.Loop() {
		one("ctl/one")
		if err := m.Detach(b.Context(), "ctl/one"); err != nil {
			b.Fatal(err)
		}
	}
}
