package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"meshd/overlay/attach"
	"meshd/tun/inside"
)

// Whatever a configuration says, it is refused or understood, and an ID has the
// parts that it was made of.
func FuzzConf(f *testing.F) {
	recorded, err := filepath.Glob("testdata/recorded/*.txt")
	if err != nil || len(recorded) == 0 {
		f.Fatal("nothing is recorded", err)
	}
	for _, path := range recorded {
		raw, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if strings.HasPrefix(line, "{") {
				f.Add([]byte(line), "IgnoreUnknown=1;K8S_POD_NAME=cart;IP=10.86.7.2,::")
			}
		}
	}
	f.Add([]byte(`{"name": "m", "ipam": {"type": ""}, "prevResult": {"cniVersion": "1.0.0", "interfaces": [null], "ips": [null], "routes": [null]}}`), "CommonArgs=1")
	f.Fuzz(func(t *testing.T, raw []byte, env string) {
		args := &skel.CmdArgs{ContainerID: "c1", IfName: "eth0", Args: env, StdinData: raw}
		c, err := parse(args)
		if err != nil || c.verify() != nil {
			return
		}
		if a, err := c.ask(args); err == nil && (a.ID != "cni/"+c.Name+"/c1/eth0" || len(a.Container) > 255) {
			t.Errorf("the ask is %+v", a)
		}
		if r, err := c.previous(); err == nil && r != nil {
			want := c.link(args, attach.Attachment{})
			if compare(r, args, &want) == nil && own(r, args) < 0 {
				t.Error("a result without our interface fits")
			}
			_ = compare(r, args, &inside.Link{})
		}
	})
}
