package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"mesh-cni": main})
}

// The program as runtimes call it: in the environment and on standard input what
// they say, on standard output the answer. No daemon runs.
//
//	long FILE BYTES    write a configuration of that length
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Vars = append(env.Vars, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/proc/self/ns/uts", "CNI_PATH=/opt/cni/bin")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"long": long},
	})
}

func long(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: long FILE BYTES")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	conf := fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": "mesh", "type": "mesh-cni", "socket": %q, "dns": {"domain": "`, ts.MkAbs("none"))
	conf = append(conf, bytes.Repeat([]byte("a"), n-len(conf)-len(`"}}`))...)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), append(conf, `"}}`...), 0o600))
}
