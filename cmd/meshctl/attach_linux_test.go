package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	"meshd/overlay/status"
	"meshd/tun/hostnet"
	"meshd/tun/inside"
	"meshd/tun/netns"
)

// attachLab is a host whose daemon attaches containers, and a Docker that knows
// what the test puts into it.
type attachLab struct {
	*attach.Manager
	host   *netns.NS
	socket string

	mu         sync.Mutex // guards what is below
	containers map[string]container
	endpoints  map[string]string // of containers, by name: the one in a network of the mesh
	asked      []string
}

func newAttachLab(t *testing.T) *attachLab {
	t.Helper()
	l := &attachLab{host: netns.ForTest(t), containers: map[string]container{}}
	daemons, err := netns.Open(l.host.Path()) // a thread of its own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(daemons.Close)
	l.Manager = attach.New(attach.Options{
		Host: hostnet.New(hostnet.Options{Namespace: daemons.Do}), Store: new(attachtest.Store), Wait: time.Millisecond,
	})
	if err := l.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.Sync(attach.World{View: attachtest.View(attachtest.Lease("default", 7, mesh.Held), attachtest.Lease("web", 3, mesh.Held)), MTU: 1420})
	l.socket = serveWith(t, status.Options{Daemon: &daemon{doc: healthy()}, Attachments: l.Manager})

	docker := filepath.Join(t.TempDir(), "d")
	listener, err := net.Listen("unix", docker)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(l.docker)}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Close()
		serving.Wait()
	})
	t.Setenv("DOCKER_HOST", "unix://"+docker)
	return l
}

func (l *attachLab) docker(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, r.URL.Path)
	if r.URL.Path == "/containers/json" {
		var all []map[string]any
		for name := range l.containers {
			networks := map[string]any{"bridge": map[string]any{"EndpointID": ""}, "web": map[string]any{"EndpointID": l.endpoints[name]}}
			all = append(all, map[string]any{"Names": []string{"/other/" + name, "/" + name}, "NetworkSettings": map[string]any{"Networks": networks}})
		}
		_ = json.NewEncoder(w).Encode(all)
		return
	}
	name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/containers/"), "/json")
	for _, c := range l.containers {
		if c.Name == "/"+name || strings.HasPrefix(c.ID, name) {
			_ = json.NewEncoder(w).Encode(c)
			return
		}
	}
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintf(w, `{"message":"No such container: %s"}`, name)
}

// run tells Docker of a container in a namespace.
func (l *attachLab) run(name string, pid int, mode, ns string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := container{ID: strings.Repeat("0123456789abcdef", 4), Name: "/" + name}
	c.State.Pid, c.HostConfig.NetworkMode, c.NetworkSettings.SandboxKey = pid, mode, ns
	l.containers[name] = c
}

func (l *attachLab) rm(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.containers, name)
}

// meshctl runs the command on the host.
func (l *attachLab) meshctl(t *testing.T, args ...string) (got result) {
	t.Helper()
	err := l.host.Do(func() error {
		got = meshctl(t.Context(), append([]string{"--socket", l.socket}, args...)...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// must runs it and demands success.
func (l *attachLab) must(t *testing.T, args ...string) string {
	t.Helper()
	got := l.meshctl(t, args...)
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("%s: %+v", args, got)
	}
	return got.stdout
}

// links lists those of a container but for its loopback.
func (l *attachLab) links(t *testing.T, ns *netns.NS) (names []string) {
	t.Helper()
	err := l.host.Do(func() error {
		all, err := inside.List(t.Context(), ns.Path())
		for _, i := range all {
			if i.Name != "lo" {
				names = append(names, i.Name)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// card gives the host something like a network card.
func (l *attachLab) card(t *testing.T, name string) {
	t.Helper()
	err := l.host.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-wire"})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// process starts one in a namespace.
func process(t *testing.T, ns *netns.NS) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "3600")
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func (l *attachLab) ids() (ids []string) {
	for _, a := range l.List() {
		ids = append(ids, a.ID)
	}
	return ids
}

func TestAttachTargets(t *testing.T) {
	l := newAttachLab(t)
	ns := netns.ForTest(t)
	pid := process(t, ns).Process.Pid
	l.run("web1", pid, "bridge", ns.Path())
	key := map[string]string{
		"web1": "docker:0123456789ab", "0123456789ab": "docker:0123456789ab", "docker:web1": "docker:0123456789ab",
		fmt.Sprint(pid): fmt.Sprintf("pid:%d", pid), fmt.Sprintf("pid:%d", pid): fmt.Sprintf("pid:%d", pid),
		fmt.Sprintf("/proc/%d/ns/net", pid): fmt.Sprintf("netns:/proc/%d/ns/net", pid),
		"netns:" + ns.Path():                "netns:" + ns.Path(),
	}
	for arg, key := range key {
		t.Run(arg, func(t *testing.T) {
			for range 2 { // the same again changes nothing
				out := l.must(t, "attach", arg)
				if !strings.HasPrefix(out, "Attached ") || !strings.Contains(out, " to the network default: 10.86.7.") || !strings.HasSuffix(out, " on eth0.\n") {
					t.Errorf("says %q", out)
				}
				if got := l.ids(); !slices.Equal(got, []string{"ctl/" + key + "/default"}) {
					t.Errorf("attached %v", got)
				}
				if got := l.links(t, ns); !slices.Equal(got, []string{"eth0"}) {
					t.Errorf("the container has %v", got)
				}
			}
			if out := l.must(t, "detach", arg); !strings.HasPrefix(out, "Detached ") {
				t.Errorf("says %q", out)
			}
			if out := l.must(t, "detach", arg); !strings.HasSuffix(out, " is not attached.\n") {
				t.Errorf("says %q", out)
			}
			if got, links := l.ids(), l.links(t, ns); len(got)+len(links) > 0 {
				t.Errorf("in the end attached %v, the container has %v", got, links)
			}
		})
	}
	// Whichever way it is named, it is the same container.
	t.Run("two names", func(t *testing.T) {
		l.must(t, "attach", "web1")
		l.must(t, "attach", fmt.Sprint(pid))
		l.must(t, "attach", ns.Path())
		if got := l.ids(); !slices.Equal(got, []string{"ctl/docker:0123456789ab/default"}) {
			t.Errorf("attached %v", got)
		}
		if out := l.must(t, "detach", ns.Path()); !strings.HasPrefix(out, "Detached web1 (10.86.7.") {
			t.Errorf("says %q", out)
		}
	})
}

func TestAttachNetworks(t *testing.T) {
	l := newAttachLab(t)
	ns := netns.ForTest(t)
	target := ns.Path()
	l.must(t, "attach", target)
	out := l.must(t, "attach", target, "-n", "web", "--ip", "10.87.3.40", "--mac", "02:00:00:00:00:09", "-o", "json")
	var got struct {
		Network, MAC, Interface string
		Addresses               []netip.Prefix
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Network != "web" || got.MAC != "02:00:00:00:00:09" || got.Interface != "eth1" ||
		fmt.Sprint(got.Addresses) != "[10.87.3.40/24]" {
		t.Errorf("%s: %+v, %v", out, got, err)
	}
	list := l.must(t, "attach", "list")
	for _, want := range []string{"NETWORK ", "\ndefault  netns:", "10.87.3.40/24 ", " live ", " ctl/netns:" + target + "/web\n"} {
		if !strings.Contains(list, want) {
			t.Errorf("%q is missing:\n%s", want, list)
		}
	}
	if wide := l.must(t, "attach", "list", "-o", "wide"); !strings.Contains(wide, " 02:00:00:00:00:09  1420  mv-") {
		t.Errorf("wide:\n%s", wide)
	}
	if out := l.must(t, "attach", "list", "-f", "{{range .}}{{.network}} {{end}}"); out != "default web \n" {
		t.Errorf("list: %q", out)
	}
	if got := l.meshctl(t, "__complete", "detach", ""); !strings.HasPrefix(got.stdout, "netns:") {
		t.Errorf("completion: %+v", got)
	}
	if out := l.must(t, "detach", target, "--network", "web"); out != "Detached netns:"+target+" (10.87.3.40/24) from the network web.\n" {
		t.Errorf("says %q", out)
	}
	if got := l.links(t, ns); !slices.Equal(got, []string{"eth0"}) {
		t.Errorf("the container has %v", got)
	}
	l.must(t, "attach", target, "-n", "web", "--mode", "ptp", "--interface", "mesh")
	if got := l.links(t, ns); !slices.Equal(got, []string{"eth0", "mesh"}) {
		t.Errorf("the container has %v", got)
	}
	if out := l.must(t, "detach", target); strings.Count(out, "Detached ") != 2 {
		t.Errorf("says %q", out)
	}
	if out := l.must(t, "attach", "list", "-o", "json"); out != "[]\n" {
		t.Errorf("list %q", out)
	}
}

// What Docker has attached is shown by the name that Docker knows.
func TestAttachListNamesWhatDockerAttached(t *testing.T) {
	l := newAttachLab(t)
	endpoint, gone := strings.Repeat("e", 64), strings.Repeat("f", 64)
	for _, id := range []string{"docker/" + endpoint, "docker/" + gone, "cni/x/eth0"} {
		if _, err := l.Attach(t.Context(), attach.Ask{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	l.run("web1", 1, "web", "")
	l.run("web2", 1, "bridge", "")
	l.endpoints = map[string]string{"web1": endpoint}
	var got []attach.Attachment
	out := l.must(t, "attach", "list", "-o", "json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 3 {
		t.Fatalf("list %s: %v", out, err)
	}
	for i, want := range []string{" cni/x/eth0", " docker/" + gone, "web1 docker/" + endpoint} {
		if line := got[i].Container + " " + got[i].ID; line != want {
			t.Errorf("line %d is %q, want %q", i, line, want)
		}
	}
	if got := l.must(t, "attach", "list"); !strings.Contains(got, "\ndefault  web1 ") {
		t.Errorf("as text:\n%s", got)
	}
	for _, host := range []string{"unix:///nowhere/docker.sock", "tcp://203.0.113.7:2375"} {
		t.Setenv("DOCKER_HOST", host)
		if got := l.must(t, "attach", "list"); strings.Contains(got, "web1") || strings.Count(got, "\n") != 4 {
			t.Errorf("without Docker:\n%s", got)
		}
	}
}

func TestAttachListOrder(t *testing.T) {
	l := newAttachLab(t)
	for _, ask := range []attach.Ask{
		{ID: "cni/d/eth0", Network: "web", Container: "one"}, {ID: "cni/c/eth0", Network: "web"}, {ID: "cni/b/eth0", Container: "two"},
		{ID: "cni/e/eth0", Container: "one"}, {ID: "cni/a/eth0", Network: "web", Container: "one"},
	} {
		if _, err := l.Attach(t.Context(), ask); err != nil {
			t.Fatal(err)
		}
	}
	const want = "cni/e/eth0 cni/b/eth0 cni/c/eth0 cni/a/eth0 cni/d/eth0 \n"
	if got := l.must(t, "attach", "list", "-f", "{{range .}}{{.id}} {{end}}"); got != want {
		t.Errorf("order %q, want %q", got, want)
	}
}

// The template that the help offers is one that works there.
func TestTemplateOfHelp(t *testing.T) {
	l := newAttachLab(t)
	ns := netns.ForTest(t)
	for _, args := range [][]string{{"attach", ns.Path()}, {"attach", "list"}, {"status"}, {"version"}} {
		_, help, _ := strings.Cut(l.must(t, append(slices.Clone(args), "--help")...), "such as '")
		example, _, ok := strings.Cut(help, "'")
		if !ok {
			t.Fatalf("%s: the help has no example", args)
		}
		if got := l.must(t, append(args, "-f", example)...); strings.TrimSpace(got) == "" {
			t.Errorf("%s -f %q prints nothing", args, example)
		}
	}
}

// A container that has ended is detached by what it was called.
func TestDetachWhatHasEnded(t *testing.T) {
	l := newAttachLab(t)
	for name, how := range map[string]func(ns *netns.NS, pid int) (target, detach string){
		"by pid":  func(_ *netns.NS, pid int) (string, string) { return fmt.Sprint(pid), fmt.Sprint(pid) },
		"by path": func(ns *netns.NS, _ int) (string, string) { return ns.Path(), ns.Path() },
		"by Docker's name": func(ns *netns.NS, pid int) (string, string) {
			l.run("web1", pid, "bridge", ns.Path())
			return "web1", "web1"
		},
		"by Docker's name with a prefix": func(ns *netns.NS, pid int) (string, string) {
			l.run("web1", pid, "bridge", ns.Path())
			return "web1", "docker:web1"
		},
		"by ID": func(_ *netns.NS, pid int) (string, string) {
			return fmt.Sprint(pid), fmt.Sprintf("ctl/pid:%d/default", pid)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns, err := netns.New()
			if err != nil {
				t.Fatal(err)
			}
			cmd := process(t, ns)
			target, detach := how(ns, cmd.Process.Pid)
			l.must(t, "attach", target)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			ns.Close()
			l.rm("web1")
			if out := l.must(t, "detach", detach); !strings.HasPrefix(out, "Detached ") {
				t.Errorf("says %q", out)
			}
			if got := l.ids(); len(got) > 0 {
				t.Errorf("attached %v", got)
			}
			if got := l.meshctl(t, "detach", detach); got.code != 66 {
				t.Errorf("again: %+v", got)
			}
		})
	}
}

func TestAttachErrors(t *testing.T) {
	l := newAttachLab(t)
	ns, other := netns.ForTest(t), netns.ForTest(t)
	l.run("halted", 0, "bridge", "")
	l.run("hosts", 1, "host", "/proc/1/ns/net")
	l.run("elsewhere", os.Getpid(), "bridge", filepath.Join(t.TempDir(), "key")) // with a number that another process has here
	l.must(t, "attach", other.Path(), "--ip", "10.86.7.9")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Attach(t.Context(), attach.Ask{ID: "cni/one/eth0", Container: "pod"}); err != nil {
		t.Fatal(err)
	}
	before := l.ids()
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"attach " + ns.Path() + " -n nothing", 65, "the mesh has no such network: nothing: see `meshctl network list`"},
		{"attach " + ns.Path() + " --ip 10.86.7.9", 69, "the address is taken"},
		{"attach " + ns.Path() + " --ip 10.86.8.9", 64, "not one for containers of this node"},
		{"attach " + ns.Path() + " --ip 10.86.7.8 --ip 10.86.7.10", 64, "two addresses of one family"},
		{"attach " + ns.Path() + " --mac 01:00:5e:00:00:01", 64, "no MAC address of a host"},
		{"attach " + ns.Path() + " --mode macvlan --parent nothing0", 1, "to default: make a macvlan on nothing0: Link not found"},
		{"attach " + ns.Path() + " -n web --ip fd00::9", 64, "the network web has no IPv6"},
		{"attach " + ns.Path() + " --interface lo", 69, "the name is taken in the namespace: lo"},
		{"attach " + ns.Path() + " --interface ../x", 1, "no name of a network link"},
		{"attach " + other.Path() + " --mode ptp", 69, "it is attached already, in another way: detach it first"},
		{"attach " + l.host.Path(), 64, "this host's own"},
		{"attach " + file, 66, "no such network namespace"},
		{"attach /run/netns/nothing", 66, `there is no network namespace "/run/netns/nothing"`},
		{"attach netns:nothing", 66, `there is no network namespace "/run/netns/nothing"`},
		{"attach nothing", 66, `nothing is named "nothing": docker knows no such container: "No such container: nothing", and there is no such name in /run/netns`},
		{"attach docker:a/../../b", 66, "docker knows no such container"},
		{"attach docker:", 66, "docker knows no such container"},
		{"attach pid:0", 64, "no process ID"},
		{"attach 99999999999", 64, "no process ID"},
		{"attach 2147483647", 66, "there is no process 2147483647"},
		{"attach halted", 1, "the container halted does not run"},
		{"attach hosts", 64, "the container hosts has the host's network"},
		{"attach elsewhere", 66, "of the container elsewhere is not here: Docker runs in another machine or namespace"},
		{"detach hosts", 64, "has the host's network"},
		{"detach nothing", 66, "docker knows no such container"},
		{"detach ctl/pid:2147483647/web", 66, "there is no process"},
		{"detach cni/one/eth0", 69, "whoever attached it"},
		{"detach " + other.Path() + " -n We_b", 64, "a-z, 0-9 and -"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got := l.meshctl(t, strings.Fields(tt.args)...)
			if got.code != tt.code || !strings.Contains(got.stderr, tt.says) || strings.Count(got.stderr, "\n") != 1 || got.stdout != "" {
				t.Errorf("got %+v, want code %d and %q", got, tt.code, tt.says)
			}
			if got := l.ids(); !slices.Equal(got, before) {
				t.Errorf("attached %v, before %v", got, before)
			}
			if got := l.links(t, ns); len(got) > 0 {
				t.Errorf("the container has %v", got)
			}
		})
	}
	t.Run("detach what has ended and is not attached", func(t *testing.T) {
		if out := l.must(t, "detach", "halted"); out != "halted is not attached.\n" {
			t.Errorf("says %q", out)
		}
	})
	for _, path := range l.asked {
		if strings.Contains(path, "..") {
			t.Errorf("Docker was asked for %s", path)
		}
	}
	t.Run("Docker is elsewhere", func(t *testing.T) {
		t.Setenv("DOCKER_HOST", "tcp://203.0.113.7:2375")
		if got := l.meshctl(t, "attach", "web1"); got.code != 64 || !strings.Contains(got.stderr, "unix://") {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("no Docker", func(t *testing.T) {
		t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
		if got := l.meshctl(t, "attach", "web1"); got.code != 66 || !strings.Contains(got.stderr, "docker does not answer on /nowhere/docker.sock") {
			t.Errorf("got %+v", got)
		}
		l.must(t, "attach", other.Path(), "--ip", "10.86.7.9")
	})
	t.Run("no daemon", func(t *testing.T) {
		l := &attachLab{host: l.host, socket: filepath.Join(t.TempDir(), "nobody")}
		for _, args := range [][]string{{"attach", ns.Path()}, {"detach", ns.Path()}, {"attach", "list"}} {
			if got := l.meshctl(t, args...); got.code != 3 || !strings.Contains(got.stderr, "start it with") {
				t.Errorf("%s: %+v", args, got)
			}
		}
	})
}

// What another door has attached to the network is not attached twice.
func TestAttachLeavesOtherDoorsAlone(t *testing.T) {
	l := newAttachLab(t)
	ns := netns.ForTest(t)
	a, err := l.Attach(t.Context(), attach.Ask{ID: "cni/one/eth0"})
	if err != nil {
		t.Fatal(err)
	}
	err = l.host.Do(func() error {
		return inside.Put(t.Context(), ns.Path(), inside.Link{Peer: a.Peer, Name: "eth0", MAC: a.MAC, MTU: a.MTU, Addresses: a.Addresses, Gateways: a.Gateways, Routes: a.Routes})
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.meshctl(t, "attach", ns.Path()); got.code != 69 || !strings.Contains(got.stderr, "attached to the network default already, as cni/one/eth0") {
		t.Errorf("attach: %+v", got)
	}
	if got := l.meshctl(t, "detach", ns.Path(), "-n", "default"); got.code != 69 || !strings.Contains(got.stderr, "cni/one/eth0") {
		t.Errorf("detach: %+v", got)
	}
	l.must(t, "attach", ns.Path(), "-n", "web")
	l.must(t, "detach", ns.Path())
	if got := l.ids(); !slices.Equal(got, []string{"cni/one/eth0"}) {
		t.Errorf("attached %v", got)
	}
}

// The link of a macvlan has no end on the host by which the daemon could take it
// back.
func TestDetachMACVLAN(t *testing.T) {
	l := newAttachLab(t)
	ns := netns.ForTest(t)
	l.card(t, "lan0")
	l.must(t, "attach", ns.Path())
	cmd := process(t, ns)
	for _, by := range []string{fmt.Sprint(cmd.Process.Pid), fmt.Sprintf("ctl/pid:%d/web", cmd.Process.Pid)} {
		l.must(t, "attach", fmt.Sprint(cmd.Process.Pid), "-n", "web", "--mode", "macvlan", "--parent", "lan0")
		if got := l.links(t, ns); !slices.Equal(got, []string{"eth0", "eth1"}) {
			t.Errorf("the container has %v", got)
		}
		l.must(t, "detach", by, "-n", "web")
		if got := l.links(t, ns); !slices.Equal(got, []string{"eth0"}) {
			t.Errorf("detached by %s the container has %v", by, got)
		}
	}
}

// Root in a container has no say on what becomes of others, however its links are
// named and numbered.
func TestFalseLinks(t *testing.T) {
	l := newAttachLab(t)
	l.card(t, "lan0")
	victim, other, evil := netns.ForTest(t), netns.ForTest(t), netns.ForTest(t)
	l.must(t, "attach", victim.Path(), "-n", "web")
	l.must(t, "attach", other.Path(), "-n", "web", "--mode", "macvlan", "--parent", "lan0")
	if _, err := l.Attach(t.Context(), attach.Ask{ID: "cni/one/eth0"}); err != nil {
		t.Fatal(err)
	}
	var index int
	err := victim.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			index = link.Attrs().Index
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	before := l.ids()
	claim := func(id string, index int) {
		t.Helper()
		err := evil.Do(func() error {
			link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: attach.PeerName(id), Index: index}, PeerName: attach.PeerName(id + "-")}
			if err := netlink.LinkAdd(link); err != nil {
				return err
			}
			return netlink.LinkSetAlias(link, attach.PeerName(id))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(args string, code int, says string) {
		t.Helper()
		if got := l.meshctl(t, strings.Fields(args)...); got.code != code || !strings.Contains(got.stdout+got.stderr, says) {
			t.Errorf("%s: %+v, want code %d and %q", args, got, code, says)
		}
		if got := l.ids(); !slices.Equal(got, before) {
			t.Errorf("%s: attached %v, before %v", args, got, before)
		}
	}
	claim("ctl/netns:"+victim.Path()+"/web", index)
	claim("cni/one/eth0", 0)
	check("detach "+evil.Path(), 0, " is not attached.")
	check("detach "+evil.Path()+" -n default", 0, " is not attached.")
	// What is on a physical link has no end on the host that would tell.
	claim("ctl/netns:"+other.Path()+"/web", 0)
	check("detach "+evil.Path()+" -n default", 0, " is not attached.")
	for _, args := range []string{"attach " + evil.Path() + " -n web", "detach " + evil.Path() + " -n web", "detach " + evil.Path()} {
		check(args, 69, "says that it is ctl/netns:"+other.Path()+"/web, and so could any")
	}
	check("detach ctl/netns:"+evil.Path()+"/web", 0, " is not attached.")
	// It is attached as itself.
	l.must(t, "attach", evil.Path())
	if got := l.ids(); len(got) != len(before)+1 {
		t.Errorf("attached %v, before %v", got, before)
	}
	l.must(t, "detach", evil.Path(), "-n", "default")
	// By its own name what is on a physical link is known for sure.
	l.must(t, "detach", other.Path())
}

// Several who do the same at once all get the same.
func TestAttachAtOnce(t *testing.T) {
	l := newAttachLab(t)
	ns := netns.ForTest(t)
	each := func(args ...string) {
		t.Helper()
		var callers sync.WaitGroup
		for range 6 {
			callers.Go(func() {
				err := netns.Run(l.host.Path(), func() error {
					if got := meshctl(t.Context(), append([]string{"--socket", l.socket}, args...)...); got.code != 0 {
						return fmt.Errorf("%s: %+v", args, got)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
	}
	each("attach", ns.Path())
	if got, links := l.ids(), l.links(t, ns); len(got) != 1 || !slices.Equal(links, []string{"eth0"}) {
		t.Errorf("attached %v, the container has %v", got, links)
	}
	each("detach", ns.Path())
	if got, links := l.ids(), l.links(t, ns); len(got)+len(links) > 0 {
		t.Errorf("attached %v, the container has %v", got, links)
	}
}

// An attach that is interrupted leaves nothing.
func TestAttachInterrupted(t *testing.T) {
	l := newAttachLab(t)
	ns := netns.ForTest(t)
	for after := range 12 {
		ctx := &counted{Context: t.Context(), left: after}
		err := l.host.Do(func() error {
			cli := &cli{stdout: new(strings.Builder), stderr: new(strings.Builder), socket: l.socket}
			return cli.runAttach(ctx, ns.Path(), attachFlags{network: "default", mode: "bridge"}, &output{format: "table"})
		})
		if err == nil {
			l.must(t, "detach", ns.Path())
		}
		if got, links := l.ids(), l.links(t, ns); len(got)+len(links) > 0 {
			t.Fatalf("ended at step %d with %v: attached %v, the container has %v", after, err, got, links)
		}
	}
}

// counted is a context that ends at its n-th question.
type counted struct {
	context.Context
	left int
}

func (c *counted) Err() error {
	if c.left--; c.left >= 0 {
		return nil
	}
	return errors.New("interrupted")
}
