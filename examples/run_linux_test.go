package examples

import (
	"bufio"
	"context"
	"flag"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// Most of the tests wait for timers most of the time.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	cluster.Main(m)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestEmbed has the program that embeds a node and a real daemon reach each other.
func TestEmbed(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, []string{"alpha", "worker"})
	alpha, worker := c.Nodes[0], c.Nodes[1]
	must(t, c.Init(t.Context()))
	must(t, alpha.Start())

	program := filepath.Join(t.TempDir(), "embed")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./embed").CombinedOutput(); err != nil {
		t.Fatalf("build the example: %v\n%s", err, out)
	}
	cmd := exec.Command(program, "--state", worker.StateDir())
	stdout, theirs, err := os.Pipe()
	must(t, err)
	defer stdout.Close()
	log, err := os.Create(filepath.Join(worker.Dir, "meshd.log")) // where the cluster looks for it
	must(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = theirs, log
	process, err := worker.Host.Start(cmd)
	theirs.Close()
	must(t, err)

	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- text
	}()
	var own []netip.Addr
	select {
	case text := <-line:
		for field := range strings.FieldsSeq(strings.Trim(strings.TrimPrefix(strings.TrimSpace(text), "ready: "), "[]")) {
			a, err := netip.ParseAddr(field)
			if err != nil {
				t.Fatalf("it printed %q: %v", text, err)
			}
			own = append(own, a)
		}
	case <-cluster.Bounded(t).Done():
		t.Fatal("the program did not say that it is ready")
	}
	if len(own) != 2 {
		t.Fatalf("the program has the addresses %v, want one of each family", own)
	}
	must(t, alpha.WaitReady(cluster.Bounded(t)))
	others, err := alpha.Addresses(cluster.Bounded(t))
	must(t, err)
	for i := range own {
		_, err := alpha.Host.Await(cluster.Bounded(t), own[i])
		must(t, err)
		_, err = worker.Host.Await(cluster.Bounded(t), others[i])
		must(t, err)
	}
	if err := process.Stop(cluster.Bounded(t)); err != nil {
		t.Errorf("after SIGTERM it ends with %v", err)
	}
	if _, err := worker.Host.Ping(t.Context(), others[0]); err == nil {
		t.Error("the mesh is still reached: somebody else carried that ping")
	}
}

// machine is a host of a lab with directories of its own where the configuration
// files of the example look for them.
type machine struct {
	*lab.Host
	dir string
	bin string
}

// command runs a line of shell there.
func (m machine) command(ctx context.Context, line string) *exec.Cmd {
	const private = `mount --bind "$0/lib" /var/lib && mount --bind "$0/run" /run && cd "$0" && exec sh -c "$1"`
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-c", private, m.dir, "exec "+line)
	cmd.Env = append(os.Environ(), "PATH="+m.bin+":"+os.Getenv("PATH"))
	return cmd
}

// commands are those that a configuration file says in its comment.
func commands(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^#   (meshctl .*?)(?:  .*)?$`).FindAllStringSubmatch(string(text), -1) {
		out = append(out, m[1])
	}
	return out
}

// TestTwoHosts types what the files say, on two hosts with the addresses that they
// name. The router that forwards to beta is left out: beta itself has its address.
func TestTwoHosts(t *testing.T) {
	t.Parallel()
	bin := cluster.Programs(t)
	l, err := lab.New(t.Context(), "alpha", "beta")
	must(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	var machines []machine
	for i, address := range []string{"203.0.113.7/4", "198.51.100.20/4"} { // so wide that each finds the other on the link
		h := l.Hosts()[i]
		must(t, h.ReplaceAddress(netip.PrefixFrom(h.IPv4, 24), netip.MustParsePrefix(address)))
		must(t, h.RemoveAddress(netip.PrefixFrom(h.IPv6, 64)))
		m := machine{h, t.TempDir(), filepath.Dir(bin.Meshd)}
		for _, dir := range []string{"lib", "run"} {
			must(t, os.Mkdir(filepath.Join(m.dir, dir), 0o755))
		}
		must(t, os.CopyFS(m.dir, os.DirFS("two-hosts")))
		machines = append(machines, m)
	}
	alpha, beta := machines[0], machines[1]

	first, second := commands(t, "two-hosts/alpha.yaml"), commands(t, "two-hosts/beta.yaml")
	if len(first) != 2 || len(second) != 1 {
		t.Fatalf("the files say %q and %q", first, second)
	}
	_, err = alpha.Run(alpha.command(cluster.Bounded(t), first[0]))
	must(t, err)
	token, err := alpha.Run(alpha.command(cluster.Bounded(t), first[1]))
	must(t, err)
	join := beta.command(cluster.Bounded(t), second[0])
	join.Stdin = strings.NewReader(string(token))
	_, err = beta.Run(join)
	must(t, err)

	for i, name := range []string{"alpha", "beta"} {
		m := machines[i]
		cmd := m.command(context.Background(), "meshd --config "+name+".yaml") //nolint:usetesting // the lab ends it
		log, err := os.Create(filepath.Join(m.dir, "log"))
		must(t, err)
		defer log.Close()
		cmd.Stdout, cmd.Stderr = io.Discard, log
		p, err := m.Start(cmd)
		must(t, err)
		t.Cleanup(func() {
			if err := p.Stop(context.Background()); err != nil { //nolint:usetesting // the test's own is done
				t.Errorf("%s ends with %v", name, err)
			}
			text, _ := os.ReadFile(log.Name())
			cluster.CheckLog(t, name, string(text))
			if t.Failed() {
				t.Logf("log of %s:\n%s", name, text)
			}
		})
	}
	ask := func(m machine) *status.Document {
		d, err := status.NewClient(filepath.Join(m.dir, "run/meshd/meshd.sock")).Status(cluster.Bounded(t))
		if err != nil {
			return nil
		}
		return d
	}
	must(t, cluster.Poll(cluster.Bounded(t), func() (bool, error) {
		a, b := ask(alpha), ask(beta)
		return a != nil && b != nil && a.Healthy() && b.Healthy() && len(a.Peers) == 1 && a.Peers[0].State == status.PeerUp, nil
	}))
	peer := ask(alpha).Peers[0]
	if got, want := peer.Endpoint.String(), "198.51.100.20:51880"; got != want {
		t.Errorf("alpha reaches beta at %s, want %s, as it advertises", got, want)
	}
	if alpha := ask(beta).Peers[0]; alpha.Labels["site"] != "fra" {
		t.Errorf("beta sees alpha as %+v", alpha)
	}
	_, err = alpha.Await(cluster.Bounded(t), peer.Leases[0].Addresses[0])
	must(t, err)
}
