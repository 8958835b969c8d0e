package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"meshd/mesh"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshctl": main})
}

// Scripts have, besides those of testscript, these commands:
//
//	exits CODE COMMAND...   run COMMAND, which must end with CODE
//	config DIR [LINE...]    write DIR/config.yaml with paths inside DIR
//	token FILE KIND         write a token of another mesh: valid, expired, early
//	left DIR                mark the node in DIR/state as having left
//	hold DIR                hold the lock of DIR/state, as a daemon does
//	copied DIR              bind the state in DIR/state to another machine
//	member DIR NAME SUBNET [TOKEN]  let the node in DIR/state know of another member,
//	                        which joined with the token in a file, or has its
//	                        certificate from DIR/ca.key; it ends in ten days
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("SSH_CONNECTION", "")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // or each command sleeps for a second
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "config": writeTestConfig, "token": writeTestToken, "left": markLeft, "hold": hold, "copied": markCopied, "member": addMember,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			if cond == "machine-id" {
				id, err := os.ReadFile("/etc/machine-id")
				return err == nil && len(id) >= 32, nil
			}
			return false, fmt.Errorf("no condition %s", cond)
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		coded, ok := err.(interface{ ExitCode() int })
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = coded.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	// One line on standard error says what is wrong; what goes wrong in code
	// would print more.
	if stderr := ts.ReadFile("stderr"); want >= 64 && !oneComplaint(stderr) {
		ts.Fatalf("standard error is %q, want one line from meshctl", stderr)
	}
}

func oneComplaint(stderr string) bool {
	complaints := 0
	for line := range strings.Lines(stderr) {
		switch {
		case strings.HasPrefix(line, "meshctl: "):
			complaints++
		case strings.HasPrefix(line, "Note: "), strings.HasPrefix(line, "Warning: "):
		default:
			return false
		}
	}
	return complaints == 1
}

func writeTestConfig(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: config DIR [LINE...]")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	lines := append([]string{"state_dir: " + dir + "/state", "control: " + dir + "/meshd.sock", `http: ""`}, args[1:]...)
	ts.Check(os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(strings.Join(lines, "\n")+"\n"), 0o644))
}

func writeTestToken(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: token FILE valid|expired|early")
	}
	begin := time.Now()
	switch args[1] {
	case "expired":
		begin = begin.Add(-2 * time.Hour)
	case "early":
		begin = begin.Add(2 * time.Hour)
	}
	_, ca, err := ed25519.GenerateKey(nil)
	ts.Check(err)
	public, key, err := ed25519.GenerateKey(nil)
	ts.Check(err)
	charter := trust.Charter{Name: "other", Version: 1, Networks: []mesh.Network{{Name: "default", IPv6: mesh.DefaultIPv6(mesh.ID{1}), IPv6Len: 64}}, Created: begin}
	rawCharter, err := charter.Sign(ca)
	ts.Check(err)
	signedCharter, err := trust.ParseCharter(rawCharter, mesh.ID{})
	ts.Check(err)
	credential := trust.Credential{Serial: trust.NewSerial(), Key: public, NotBefore: begin, NotAfter: begin.Add(time.Hour), MaxCertLife: time.Hour, Uses: 1}
	rawCredential, err := credential.Sign(ca)
	ts.Check(err)
	signedCredential, err := trust.ParseCredential(rawCredential, signedCharter.CA)
	ts.Check(err)
	gossipKey := make([]byte, trust.GossipKeySize)
	_, _ = rand.Read(gossipKey)
	token := trust.Token{Charter: signedCharter, Credential: signedCredential, Key: key, GossipKey: gossipKey, Seeds: []string{"203.0.113.7:51881"}}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(token.String()+"\n"), 0o600))
}

func markLeft(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: left DIR")
	}
	dir, err := statedir.Open(filepath.Join(ts.MkAbs(args[0]), "state"))
	ts.Check(err)
	state, err := dir.State()
	ts.Check(err)
	state.Left = true
	ts.Check(dir.SaveState(state))
}

func hold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hold DIR")
	}
	release, err := statedir.Lock(filepath.Join(ts.MkAbs(args[0]), "state"))
	ts.Check(err)
	ts.Defer(release)
}

// addMember writes what gossip would have brought.
func addMember(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: member DIR NAME SUBNET [TOKEN]")
	}
	dir, err := statedir.Open(filepath.Join(ts.MkAbs(args[0]), "state"))
	ts.Check(err)
	charter, err := trust.ParseCharter(dir.Membership().Charter, mesh.ID{})
	ts.Check(err)
	table, err := dir.LoadTable()
	ts.Check(err)
	keys, now := statedir.NewKeys(), time.Now()
	public := keys.Identity.Public().(ed25519.PublicKey)
	var cert *trust.Certificate
	if len(args) > 3 {
		token, err := trust.ParseToken(ts.ReadFile(args[3]))
		ts.Check(err)
		cert, err = token.Certify(public, keys.Seal.Public(), args[1], now)
		ts.Check(err)
		own, err := trust.ParseCertificate(dir.Membership().Certificate, charter.CA)
		ts.Check(err)
		a := trust.Admission{Certificate: cert.Hash, Admitter: own.Hash, Seen: now}
		table = append(table, own.Raw, a.Sign(dir.Keys().Identity))
	} else {
		ca, err := statedir.LoadCAKey(filepath.Join(ts.MkAbs(args[0]), "ca.key"))
		ts.Check(err)
		raw, err := (&trust.Certificate{
			Serial: trust.NewSerial(), Identity: public, Name: args[1], SealKey: keys.Seal.Public(),
			NotBefore: now, NotAfter: now.Add(10*24*time.Hour + time.Hour), Admitted: now,
		}).Sign(ca)
		ts.Check(err)
		cert, err = trust.ParseCertificate(raw, charter.CA)
		ts.Check(err)
	}
	rec := trust.Record{
		Version: mesh.Version{Epoch: 3, Seq: 5}, Certificate: cert.Hash, Key: mesh.Key{1},
		Leases: []mesh.Lease{{Network: "default", Prefixes: []netip.Prefix{netip.MustParsePrefix(args[2])}, State: mesh.Held, Since: now, ClaimEpoch: 3}},
	}
	raw, err := rec.Sign(keys.Identity)
	ts.Check(err)
	ts.Check(dir.SaveTable(append(table, cert.Raw, raw)))
}

// markCopied changes the state as if it had been made elsewhere; docs/operations.md
// tells of the files' header.
func markCopied(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: copied DIR")
	}
	path := filepath.Join(ts.MkAbs(args[0]), "state", "node")
	raw, err := os.ReadFile(path)
	ts.Check(err)
	_, text, _ := strings.Cut(string(raw), "\n")
	var node map[string]any
	ts.Check(json.Unmarshal([]byte(text), &node))
	node["machine"] = strings.Repeat("ab", 16)
	body, err := json.Marshal(node)
	ts.Check(err)
	const head = "meshd-state 1 node "
	sum := sha256.Sum256(append([]byte(head), body...))
	ts.Check(os.WriteFile(path, fmt.Appendf(nil, "%ssha256:%x\n%s", head, sum, body), 0o600))
}
