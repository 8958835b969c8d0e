package docker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	"meshd/overlay/unixsock"
)

// newCore gives a core on a node that has the third subnet of two networks.
func newCore(t testing.TB) (*attach.Manager, func() []mesh.Network) {
	t.Helper()
	return newCoreAt(t, 3, 3)
}

// newCoreAt is newCore with other subnets: of default, and of web.
func newCoreAt(t testing.TB, slots ...int) (*attach.Manager, func() []mesh.Network) {
	t.Helper()
	var networks []mesh.Network
	self := mesh.Node{ID: mesh.ID{1}}
	for i, name := range []string{"default", "web"} {
		n := mesh.Network{
			Name: name, IPv4: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 86+i)), IPv4Len: 24,
			IPv6: netip.MustParsePrefix(fmt.Sprintf("fd00:%d::/48", 86+i)), IPv6Len: 64,
		}
		networks = append(networks, n)
		self.Leases = append(self.Leases, mesh.Lease{Network: name, Prefixes: n.Slot(slots[i]), State: mesh.Held})
	}
	core := attach.New(attach.Options{Host: new(attachtest.Host), Store: new(attachtest.Store)})
	if err := core.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	core.Sync(attach.World{MTU: 1420, View: &mesh.View{
		Networks: networks, Self: self.ID, State: mesh.Ready, Nodes: []mesh.Node{self},
	}})
	return core, func() []mesh.Network { return networks }
}

// disk is a store in memory.
type disk struct {
	document []byte
	err      error // of every method
}

func (d *disk) LoadDocker() ([]byte, error) {
	if d.document == nil {
		return nil, cmp.Or(d.err, fs.ErrNotExist)
	}
	return d.document, d.err
}

func (d *disk) SaveDocker(document []byte) error {
	if d.err == nil {
		d.document = document
	}
	return d.err
}

// testDriver gives a driver with its store.
func testDriver(t testing.TB) (*driver, *disk) {
	t.Helper()
	core, networks := newCore(t)
	disk := new(disk)
	return openDriver(t, core, networks, disk), disk
}

func openDriver(t testing.TB, core Core, networks func() []mesh.Network, disk Store) *driver {
	t.Helper()
	store, err := openStore(disk)
	if err != nil {
		t.Fatal(err)
	}
	return newDriver(core, networks, store)
}

// post sends a request to the door and gives the status and the answer.
func post(d *driver, path, body string) (int, string) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	r.URL.Path = path
	newHandler(d, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
	return w.Code, strings.TrimSpace(w.Body.String())
}

// says fails unless the answer is this one.
func says(t *testing.T, d *driver, path, body, want string) {
	t.Helper()
	if code, got := post(d, path, body); code != http.StatusOK || got != want {
		t.Fatalf("%s %s: %d %s, want %s", path, body, code, got, want)
	}
}

// What a real engine has said in the test of package e2e/docker gets the same
// answers again. To record anew:
//
//	go test ./overlay/e2e/docker -run '^TestDocker$' -args -record "$PWD"/overlay/attach/docker/testdata/docker-VERSION.txt
func TestRecorded(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			core, networks := newCoreAt(t, recordedSlot(t, raw, 86), recordedSlot(t, raw, 87))
			d := openDriver(t, core, networks, new(disk))
			const refusal = `{"Err":`
			var renamed []string // names of pools, then and now
			for i, step := range strings.Split(strings.TrimSpace(string(raw)), "\n\n") {
				path, rest, _ := strings.Cut(step, "\n> ")
				ask, want, ok := strings.Cut(rest, "\n< ")
				if !ok {
					t.Fatalf("step %d is no request and answer:\n%s", i, step)
				}
				now := strings.NewReplacer(renamed...)
				_, got := post(d, path, now.Replace(ask))
				if then, isPool := poolName(want); isPool {
					name, _ := poolName(got)
					renamed = append(renamed, then, name)
					now = strings.NewReplacer(renamed...)
				}
				want = now.Replace(want)
				if strings.HasPrefix(want, refusal) && strings.HasPrefix(got, refusal) {
					continue // in other words, perhaps
				}
				if got != want {
					t.Fatalf("step %d: %s %s:\n got %s\nwant %s", i, path, ask, got, want)
				}
			}
		})
	}
}

// recordedSlot finds which subnet of 10.RANGE.0.0/16 the node had.
func recordedSlot(t *testing.T, raw []byte, network int) int {
	t.Helper()
	at := regexp.MustCompile(fmt.Sprintf(`"NextHop":"10\.%d\.([0-9]+)\.1"`, network)).FindSubmatch(raw)
	if at == nil {
		t.Fatalf("the recording has no container in 10.%d.0.0/16", network)
	}
	slot, err := strconv.Atoi(string(at[1]))
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

// poolName finds the name of an unnamed pool in an answer.
func poolName(answer string) (string, bool) {
	var pool requestPoolResponse
	_ = json.Unmarshal([]byte(answer), &pool)
	id, err := parsePool(pool.PoolID)
	return id.name, err == nil && id.unnamed()
}

const (
	nid = "7d86d31b1478e7cca9ebed7e73aa0fdeec46c5ca29497431d3007d2d9e15ed99"
	eid = "98a06f3bf2a5c4e8b3e1c7ad1f2b4d6e8f0a1b2c3d4e5f60718293a4b5c6d7e8"
)

func TestRefused(t *testing.T) {
	d, _ := testDriver(t)
	network := func(rest string) string { return `{"NetworkID":"` + nid + `"` + rest + `}` }
	endpoint := func(rest string) string { return network(`,"EndpointID":"` + eid + `"` + rest) }
	says(t, d, "/NetworkDriver.CreateNetwork", network(`,"IPv4Data":[{"AddressSpace":"meshd","Pool":"10.87.0.0/16","Gateway":"10.87.3.1/24"}]`), `{}`)
	for _, tt := range []struct {
		name, path, body string
		code             int
		want             string
	}{
		{"no method", "/NetworkDriver.Explode", `{}`, 404, "has no"},
		{"no path", "/", ``, 404, "has no"},
		{"not JSON", "/NetworkDriver.Join", `{"NetworkID":`, 400, "read request"},
		{"two documents", "/NetworkDriver.Join", endpoint("") + `{}`, 400, "read request"},
		{"another type", "/NetworkDriver.Join", `{"NetworkID":7}`, 400, "read request"},
		{"a list", "/IpamDriver.RequestPool", `[]`, 400, "read request"},
		{"no network", "/NetworkDriver.CreateNetwork", `{}`, 400, "NetworkID is missing"},
		{"no body", "/NetworkDriver.CreateEndpoint", ``, 400, "NetworkID is missing"},
		{"no endpoint", "/NetworkDriver.CreateEndpoint", network(""), 400, "EndpointID is missing"},
		{"a path for an ID", "/NetworkDriver.DeleteNetwork", `{"NetworkID":"../../etc/passwd"}`, 400, "letters and digits"},
		{"a long ID", "/NetworkDriver.DeleteNetwork", `{"NetworkID":"` + strings.Repeat("a", 65) + `"}`, 400, "letters and digits"},
		{"unknown option", "/NetworkDriver.CreateNetwork", network(`,"Options":{"com.docker.network.generic":{"vlan":"7"}}`), 400, `unknown option \"vlan\"`},
		{"unknown gateway", "/NetworkDriver.CreateNetwork", network(`,"Options":{"com.docker.network.generic":{"gateway":"x"}}`), 400, "mesh or docker"},
		{"two pools", "/NetworkDriver.CreateNetwork", network(`,"IPv4Data":[{"Pool":"10.86.0.0/16"},{"Pool":"10.87.0.0/16"}]`), 400, "more than one subnet"},
		{"no pool", "/NetworkDriver.CreateNetwork", network(`,"IPv4Data":[{"Pool":"10.86"}]`), 400, "not a subnet"},
		{"auxiliary addresses", "/NetworkDriver.CreateNetwork", network(`,"IPv4Data":[{"Pool":"10.86.0.0/16","AuxAddresses":{"a":"10.86.0.7/16"}}]`), 400, "auxiliary"},
		{"pool of Docker", "/NetworkDriver.CreateNetwork", network(`,"IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"10.87.0.0/16"}]`), 200, "add --ipam-driver meshd"},
		{"unknown network", "/NetworkDriver.CreateNetwork", network(`,"Options":{"com.docker.network.generic":{"network":"dmz"}}`), 200, "default (10.86.0.0/16, fd00:86::/48), web"},
		{"unknown network, what to do", "/NetworkDriver.CreateNetwork", network(`,"Options":{"com.docker.network.generic":{"network":"dmz"}}`), 200, "see `meshctl network list`"},
		{"two networks", "/NetworkDriver.CreateNetwork", network(`,"IPv4Data":[{"AddressSpace":"meshd","Pool":"10.87.0.0/16"}],"Options":{"com.docker.network.generic":{"network":"default"}}`), 200, "is of network web"},
		{"unknown pool yet", "/NetworkDriver.CreateNetwork", network(`,"IPv4Data":[{"AddressSpace":"meshd","Pool":"0.0.0.0/0","Gateway":"0.0.0.0/0"}]`), 200, "not known any more which pool"},
		{"swarm", "/NetworkDriver.AllocateNetwork", network(""), 200, "no Swarm"},
		{"endpoint of nothing", "/NetworkDriver.CreateEndpoint", strings.ReplaceAll(endpoint(""), nid, "unknown"), 200, "not known here"},
		{"no address", "/NetworkDriver.CreateEndpoint", endpoint(`,"Interface":{"Address":"10.87.3.9"}`), 400, "not an address"},
		{"another family", "/NetworkDriver.CreateEndpoint", endpoint(`,"Interface":{"AddressIPv6":"10.87.3.9/24"}`), 400, "not an address"},
		{"no MAC address", "/NetworkDriver.CreateEndpoint", endpoint(`,"Interface":{"MacAddress":"$(reboot)"}`), 400, "not a MAC address"},
		{"an address of others", "/NetworkDriver.CreateEndpoint", endpoint(`,"Interface":{"Address":"10.87.4.9/24"}`), 200, "not one for containers"},
		{"joins nothing", "/NetworkDriver.Join", endpoint(""), 200, "nothing is attached"},
		{"info of nothing", "/NetworkDriver.EndpointOperInfo", endpoint(""), 200, "nothing is attached"},
		{"ports", "/NetworkDriver.ProgramExternalConnectivity", endpoint(`,"Options":{"com.docker.network.portmap":[{"Port":80}]}`), 200, "connect it again"},
		{"unknown mode", "/NetworkDriver.CreateNetwork", network(`,"Options":{"com.docker.network.generic":{"mode":"x"}}`), 400, "bridge, ptp, macvlan or ipvlan"},
		{"macvlan of nothing", "/NetworkDriver.CreateNetwork", network(`,"Options":{"com.docker.network.generic":{"mode":"macvlan"}}`), 400, "-o parent=LINK"},
		{"parent of a bridge", "/NetworkDriver.CreateNetwork", network(`,"Options":{"com.docker.network.generic":{"parent":"eth0"}}`), 400, "goes with -o mode=macvlan"},
		{"a path for a link", "/NetworkDriver.CreateNetwork", network(`,"Options":{"com.docker.network.generic":{"mode":"ipvlan","parent":"../eth0"}}`), 400, "no name of a network link"},
		{"range", "/IpamDriver.RequestPool", `{"Pool":"10.87.0.0/16","SubPool":"10.87.3.0/28"}`, 400, "--ip-range"},
		{"foreign pool", "/IpamDriver.RequestPool", `{"Pool":"192.0.2.0/24"}`, 200, "`meshctl network create NAME --ipv4 192.0.2.0/24` makes one"},
		{"foreign IPv6 pool", "/IpamDriver.RequestPool", `{"Pool":"2001:db8::/64","V6":true}`, 200, "--ipv6 2001:db8::/64` makes one"},
		{"pool with host bits", "/IpamDriver.RequestPool", `{"Pool":"10.87.3.1/24"}`, 400, "not a subnet"},
		{"pool of another network", "/IpamDriver.RequestPool", `{"Pool":"10.86.0.0/16","Options":{"network":"web"}}`, 200, "of network default"},
		{"pool of no network", "/IpamDriver.RequestPool", `{"Options":{"network":"dmz"}}`, 200, "no such network"},
		{"no such pool", "/IpamDriver.RequestAddress", `{"PoolID":"../x"}`, 400, "not a pool"},
		{"address of a pool without network", "/IpamDriver.RequestAddress", `{"PoolID":"+0123456789abcdef/4"}`, 200, "--ipam-opt network=NAME"},
		{"another gateway", "/IpamDriver.RequestAddress", `{"PoolID":"web/4","Address":"10.87.3.254","Options":{"RequestAddressType":"com.docker.network.gateway"}}`, 200, "leave --gateway out"},
		{"address of another family", "/IpamDriver.RequestAddress", `{"PoolID":"web/4","Address":"fd00::1"}`, 400, "not an address of pool"},
		{"address that is none", "/IpamDriver.ReleaseAddress", `{"PoolID":"web/4"}`, 400, "not an address of pool"},
		{"the host's own address", "/IpamDriver.RequestAddress", `{"PoolID":"web/4","Address":"10.87.3.1"}`, 200, "taken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, got := post(d, tt.path, tt.body)
			var answer errorResponse
			if err := json.Unmarshal([]byte(got), &answer); err != nil {
				t.Fatalf("%d %s: %v", code, got, err)
			}
			if code != tt.code || !strings.Contains(got, tt.want) || answer.Err == "" || answer.Err != answer.Error {
				t.Errorf("%d %s, want %d and %q", code, got, tt.code, tt.want)
			}
		})
	}
	core := d.core.(*attach.Manager)
	if got := core.List(); len(got) != 0 {
		t.Errorf("what was refused has left %v", got)
	}
	if got := core.Networks(); len(got) != 1 || got[0].Name != "web" {
		t.Errorf("networks in use: %v, want web alone", got)
	}
}

// A network without IPv6 says so, and what to do, however late Docker asks.
func TestNoIPv6(t *testing.T) {
	core := attach.New(attach.Options{Host: new(attachtest.Host), Store: new(attachtest.Store)})
	if err := core.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	view := attachtest.View(attachtest.Lease("web", 3, mesh.Held))
	core.Sync(attach.World{MTU: 1420, View: view})
	d := openDriver(t, core, func() []mesh.Network { return view.Networks }, new(disk))
	if !d.lacks("web", true) || d.lacks("web", false) {
		t.Fatalf("web is %v, want one without IPv6", view.Networks)
	}
	for path, body := range map[string]string{
		"/IpamDriver.RequestPool":    `{"V6":true,"Options":{"network":"web"}}`,
		"/IpamDriver.RequestAddress": `{"PoolID":"web/6"}`,
	} {
		code, got := post(d, path, body)
		if code != http.StatusOK || !strings.Contains(got, "network web") || !strings.Contains(got, "has no IPv6") || !strings.Contains(got, "without --ipv6") {
			t.Errorf("%s: %d %s", path, code, got)
		}
	}
}

func TestOtherMethodsOfHTTP(t *testing.T) {
	d, _ := testDriver(t)
	w := httptest.NewRecorder()
	newHandler(d, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/Plugin.Activate", nil))
	if w.Code != http.StatusMethodNotAllowed || !strings.Contains(w.Body.String(), `"Err"`) {
		t.Errorf("GET: %d %s", w.Code, w.Body)
	}
}

// Of a request that is too large hardly more is read than what a real one has.
func TestLargeRequest(t *testing.T) {
	d, _ := testDriver(t)
	body := bytes.NewReader(make([]byte, 10<<20))
	w := httptest.NewRecorder()
	newHandler(d, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/NetworkDriver.Join", body))
	if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), `"Err"`) {
		t.Errorf("10 MB: %d %s", w.Code, w.Body)
	}
	if read := body.Size() - int64(body.Len()); read > maxBody+1 {
		t.Errorf("%d bytes of 10 MB were read, want at most %d", read, maxBody+1)
	}
}

// Deleting what is not there is no error: Docker repeats itself.
func TestRepeated(t *testing.T) {
	d, disk := testDriver(t)
	create := `{"NetworkID":"` + nid + `","Options":{"com.docker.network.generic":{"network":"web"}}}`
	endpoint := `{"NetworkID":"` + nid + `","EndpointID":"` + eid + `"}`
	for range 2 {
		says(t, d, "/NetworkDriver.CreateNetwork", create, `{}`)
	}
	made := `{"Interface":{"Address":"10.87.3.2/24","MacAddress":"` // as the null IPAM driver has it
	for range 2 {
		if _, got := post(d, "/NetworkDriver.CreateEndpoint", endpoint); !strings.HasPrefix(got, made) {
			t.Fatalf("endpoint: %s, want %s...", got, made)
		}
	}
	// Our restart: the core is another process's memory here, the networks are ours.
	d = openDriver(t, d.core, d.networks, disk)
	_, joined := post(d, "/NetworkDriver.Join", endpoint)
	if !strings.Contains(joined, `"Gateway":"10.87.3.1"`) || !strings.Contains(joined, `"SrcName":"mc-`) {
		t.Errorf("join after a restart: %s", joined)
	}
	for range 2 {
		says(t, d, "/NetworkDriver.Leave", endpoint, `{}`)
		says(t, d, "/NetworkDriver.DeleteEndpoint", endpoint, `{}`)
		says(t, d, "/IpamDriver.ReleaseAddress", `{"PoolID":"web/4","Address":"10.87.3.2"}`, `{}`)
		says(t, d, "/NetworkDriver.DeleteNetwork", `{"NetworkID":"`+nid+`"}`, `{}`)
		says(t, d, "/IpamDriver.ReleasePool", `{"PoolID":"web/4"}`, `{}`)
	}
	if got := d.core.(*attach.Manager).Networks(); len(got) != 0 {
		t.Errorf("still in use: %v", got)
	}
}

// What a container hears of its way out, and of its neighbours.
func TestJoin(t *testing.T) {
	const ports = `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080,"HostPortEnd":8080}]}`
	const byMesh = `{"Destination":"10.86.0.0/16","RouteType":0,"NextHop":"10.86.3.1"}]`
	for name, tt := range map[string]struct{ options, join, want, not string }{
		"mesh":           {`{}`, ``, `"Gateway":"10.86.3.1","StaticRoutes":[` + byMesh + `}`, "Disable"},
		"no ports":       {`{}`, `,"Options":{"com.docker.network.portmap":[]}`, `"Gateway":"10.86.3.1","StaticRoutes":[` + byMesh + `}`, "Disable"},
		"ports":          {`{}`, ports, `"StaticRoutes":[` + byMesh + `}`, `"Gateway"`},
		"docker":         {`{"com.docker.network.generic":{"gateway":"docker"}}`, ``, `"StaticRoutes":[` + byMesh + `}`, `"Gateway"`},
		"internal":       {`{"com.docker.network.internal":true}`, ``, byMesh + `,"DisableGatewayService":true}`, `"Gateway"`},
		"internal ports": {`{"com.docker.network.internal":true}`, ports, byMesh + `,"DisableGatewayService":true}`, `"Gateway"`},
		"ptp": {
			`{"com.docker.network.generic":{"mode":"ptp"}}`, ``,
			`"Gateway":"10.86.3.1","StaticRoutes":[{"Destination":"10.86.3.1/32","RouteType":1},` +
				`{"Destination":"10.86.3.0/25","RouteType":0,"NextHop":"10.86.3.1"},{"Destination":"10.86.3.128/25","RouteType":0,"NextHop":"10.86.3.1"},` +
				byMesh + `}`, "Disable",
		},
		"macvlan": {`{"com.docker.network.generic":{"mode":"macvlan","parent":"eth0"}}`, ``, byMesh + `}`, "/25"},
		"ipvlan":  {`{"com.docker.network.generic":{"mode":"ipvlan","parent":"eth0"}}`, ``, byMesh + `}`, "/25"},
	} {
		t.Run(name, func(t *testing.T) {
			d, disk := testDriver(t)
			endpoint := func(rest string) string {
				return `{"NetworkID":"` + nid + `","EndpointID":"` + eid + `"` + rest + `}`
			}
			says(t, d, "/NetworkDriver.CreateNetwork", `{"NetworkID":"`+nid+`","Options":`+tt.options+`}`, `{}`)
			d = openDriver(t, d.core, d.networks, disk) // it is remembered
			// Docker sets the MAC address that it is told, which an ipvlan refuses.
			if _, got := post(d, "/NetworkDriver.CreateEndpoint", endpoint("")); strings.Contains(got, "MacAddress") != (name != "ipvlan") {
				t.Errorf("create endpoint: %s", got)
			}
			if _, got := post(d, "/NetworkDriver.Join", endpoint(tt.join)); !strings.HasSuffix(got, tt.want) || strings.Contains(got, tt.not) {
				t.Errorf("join: %s, want ...%s without %s", got, tt.want, tt.not)
			}
			says(t, d, "/NetworkDriver.ProgramExternalConnectivity", endpoint(""), `{}`)
			mode := attach.Mode("bridge")
			if name == "ptp" || name == "macvlan" || name == "ipvlan" {
				mode = attach.Mode(name)
			}
			if got := d.core.(*attach.Manager).List(); len(got) != 1 || got[0].Mode != mode {
				t.Errorf("attached: %+v, want mode %s", got, mode)
			}
			used := d.core.(*attach.Manager).Networks()
			if internal := strings.HasPrefix(name, "internal"); len(used) != 1 || len(used[0].Ports) != 1 || used[0].Ports[0].Internal != internal {
				t.Errorf("the rules are for %+v, want internal %t", used, internal)
			}
		})
	}
}

// Two networks that are made in one moment are told apart; a pool that was asked
// for and forgotten is in nobody's way for long.
func TestUnnamedPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := testDriver(t)
		ask := func() string {
			_, got := post(d, "/IpamDriver.RequestPool", `{}`)
			name, ok := poolName(got)
			if !ok {
				t.Errorf("pool: %s", got)
			}
			says(t, d, "/IpamDriver.RequestAddress", `{"PoolID":"`+name+`/4","Options":{"RequestAddressType":"com.docker.network.gateway"}}`, `{"Address":"0.0.0.0/0","Data":null}`)
			return name
		}
		create := func(id, network string) {
			says(t, d, "/NetworkDriver.CreateNetwork", `{"NetworkID":"`+id+`","IPv4Data":[{"AddressSpace":"meshd","Pool":"0.0.0.0/0","Gateway":"0.0.0.0/0"}],`+
				`"Options":{"com.docker.network.generic":{"network":"`+network+`"}}}`, `{}`)
		}
		first, start := ask(), time.Now()
		var second string
		var wait sync.WaitGroup
		wait.Go(func() { second = ask() })
		synctest.Wait()
		if second != "" {
			t.Fatal("two pools without a name at once")
		}
		create("a", "web")
		wait.Wait()
		create("b", "default")
		says(t, d, "/IpamDriver.RequestAddress", `{"PoolID":"`+first+`/4"}`, `{"Address":"10.87.3.2/24","Data":null}`)
		says(t, d, "/IpamDriver.RequestAddress", `{"PoolID":"`+second+`/4"}`, `{"Address":"10.86.3.2/24","Data":null}`)

		released := ask()
		says(t, d, "/IpamDriver.ReleasePool", `{"PoolID":"`+released+`/4"}`, `{}`)
		ask() // and never more of it
		if took := time.Since(start); took != 0 {
			t.Errorf("that took %s", took)
		}
		last := ask()
		if took := time.Since(start); took != openFor {
			t.Errorf("a forgotten pool was in the way for %s, want %s", took, openFor)
		}
		create("c", "web")
		says(t, d, "/IpamDriver.RequestAddress", `{"PoolID":"`+last+`/4"}`, `{"Address":"10.87.3.3/24","Data":null}`)
	})
}

// An engine that does not take the pool asks again without end, unless it is told
// to stop.
func TestPoolAgainAndAgain(t *testing.T) {
	d, _ := testDriver(t)
	for _, v6 := range []string{"false", "true"} {
		ask := `{"V6":` + v6 + `,"Options":{"network":"web"}}`
		if code, got := post(d, "/IpamDriver.RequestPool", ask); code != 200 || strings.Contains(got, "Err") {
			t.Fatalf("first: %d %s", code, got)
		}
		if _, got := post(d, "/IpamDriver.RequestPool", ask); !strings.Contains(got, "add --subnet") {
			t.Errorf("again: %s", got)
		}
		family := map[string]string{"false": "4", "true": "6"}[v6]
		post(d, "/IpamDriver.RequestAddress", `{"PoolID":"web/`+family+`","Options":{"RequestAddressType":"com.docker.network.gateway"}}`)
		if _, got := post(d, "/IpamDriver.RequestPool", ask); strings.Contains(got, "Err") {
			t.Errorf("for another network: %s", got)
		}
	}
}

func TestServer(t *testing.T) {
	dir := t.TempDir()
	core, networks := newCore(t)
	opt := Options{
		Socket: filepath.Join(dir, "run", "docker.sock"), Store: new(disk),
		Core: core, Networks: networks,
	}
	run := func(t *testing.T) (stop func() error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		s, ended := New(opt), make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		select {
		case <-s.Ready():
		case err := <-ended:
			t.Fatal(err)
		}
		return func() error { cancel(); return <-ended }
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", opt.Socket)
	}}}

	// A dead one is there.
	if err := os.MkdirAll(filepath.Dir(opt.Socket), 0o755); err != nil {
		t.Fatal(err)
	}
	dead, err := net.Listen("unix", opt.Socket)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()

	stop := run(t)
	if info, err := os.Stat(opt.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", info, err)
	}
	answer, err := client.Post("http://meshd/Plugin.Activate", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	if !strings.Contains(string(text), "NetworkDriver") || !strings.HasPrefix(answer.Header.Get("Content-Type"), "application/vnd.docker.plugins.v1") {
		t.Errorf("activate: %s %v", text, answer.Header)
	}
	// Nobody takes a living one's place.
	if err := New(opt).Run(t.Context()); !errors.Is(err, unixsock.ErrInUse) {
		t.Errorf("a second server: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(opt.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", opt.Socket, err)
	}

	// A file in the socket's place stays.
	if err := os.WriteFile(opt.Socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := New(opt).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file in the socket's place: %v", err)
	}
}

// Who connects and says nothing is no burden for long, and locks nobody out.
func TestIdleConnections(t *testing.T) {
	dir := t.TempDir()
	core, networks := newCore(t)
	s := New(Options{Socket: filepath.Join(dir, "s"), Store: new(disk), Core: core, Networks: networks})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-s.Ready()
	dial := func() net.Conn {
		conn, err := net.Dial("unix", s.opt.Socket)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	first := dial()
	defer first.Close()
	for range maxConns {
		defer dial().Close()
	}
	if err := first.SetReadDeadline(time.Now().Add(readTimeout / 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading from the oldest connection: %v, want it closed", err)
	}
	last := dial()
	defer last.Close()
	_, _ = io.WriteString(last, "POST /Plugin.Activate HTTP/1.0\r\n\r\n")
	if answer, err := io.ReadAll(last); err != nil || !strings.Contains(string(answer), "NetworkDriver") {
		t.Errorf("the last one hears %q, %v", answer, err)
	}
}

func TestDamagedState(t *testing.T) {
	for _, text := range []string{
		"", "{", "null", `{"version":2}`, `{"version":1,"networks":{"a/b":{"network":"web"}}}`,
		`{"version":1,"networks":{"a":{"network":"../web"}}}`, `{"version":1,"networks":{"a":{"network":"web","gateway":"x"}}}`,
		`{"version":1,"networks":{"a":{"network":"web","mode":"x"}}}`, `{"version":1,"networks":{"a":{"network":"web","parent":"eth0"}}}`,
		`{"version":1,"pools":{"named":"web"}}`, `{"version":1,"pools":{"+1":"We b"}}`,
	} {
		disk := &disk{document: []byte(text)}
		core, networks := newCore(t)
		err := New(Options{Socket: filepath.Join(t.TempDir(), "s"), Store: disk, Core: core, Networks: networks}).Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), "make the Docker networks of meshd again") {
			t.Errorf("%q: %v", text, err)
		}
		if string(disk.document) != text {
			t.Errorf("%q became %q", text, disk.document)
		}
	}
	broken := errors.New("the disk says no")
	if err := New(Options{Store: &disk{err: broken}}).Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("a disk that cannot be read: %v", err)
	}
}

// What cannot be remembered is not done.
func TestUnwritableState(t *testing.T) {
	d, disk := testDriver(t)
	disk.err = errors.New("the disk is full")
	if _, got := post(d, "/NetworkDriver.CreateNetwork", `{"NetworkID":"`+nid+`"}`); !strings.Contains(got, "remember networks of Docker") {
		t.Errorf("create: %s", got)
	}
	if got := d.core.(*attach.Manager).Networks(); len(got) != 0 {
		t.Errorf("in use: %v", got)
	}
}

// A network that could not be made uses nothing, and one that was made before what it
// did.
func TestFailedCreateUsesNothing(t *testing.T) {
	d, disk := testDriver(t)
	core := &failing{Core: d.core}
	d.core = core
	used := func(want bool) {
		t.Helper()
		if got := core.Core.(*attach.Manager).Networks(); (len(got) > 0) != want {
			t.Errorf("in use: %v, want %t", got, want)
		}
	}
	create := `{"NetworkID":"` + nid + `","Options":{"com.docker.network.generic":{"network":"web"}}}`
	core.use = errors.New("the firewall says no")
	if _, got := post(d, "/NetworkDriver.CreateNetwork", create); !strings.Contains(got, "says no") {
		t.Errorf("create: %s", got)
	}
	used(false)
	core.use = nil
	says(t, d, "/NetworkDriver.CreateNetwork", create, `{}`)
	core.use = errors.New("the firewall says no")
	if _, got := post(d, "/NetworkDriver.CreateNetwork", create); !strings.Contains(got, "says no") {
		t.Errorf("create again: %s", got)
	}
	used(true)
	core.use = nil
	disk.err = errors.New("the disk is full")
	if _, got := post(d, "/NetworkDriver.CreateNetwork", create); !strings.Contains(got, "remember networks") {
		t.Errorf("create again: %s", got)
	}
	used(true)
}

// failing is a core whose Use fails when all has been done, as it does when the host
// does not follow.
type failing struct {
	Core
	use error
}

func (f *failing) Use(ctx context.Context, id, network string) (attach.Subnet, error) {
	s, err := f.Core.Use(ctx, id, network)
	return s, errors.Join(err, f.use)
}

// An engine that dies between its question for a gateway and CreateNetwork does not
// keep a network in use for ever, nor does our own restart in between.
func TestForgottenGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, disk := testDriver(t)
		core := d.core.(*attach.Manager)
		ask := func() {
			t.Helper()
			says(t, d, "/IpamDriver.RequestAddress", `{"PoolID":"web/4","Options":{"RequestAddressType":"com.docker.network.gateway"}}`,
				`{"Address":"10.87.3.1/24","Data":null}`)
		}
		lapsed := func(want bool) {
			t.Helper()
			if err := d.lapse(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := core.Networks(); (len(got) == 0) != want {
				t.Errorf("in use: %v, want lapsed: %t", got, want)
			}
		}
		ask()
		time.Sleep(poolUse - time.Second)
		lapsed(false)
		ask()
		time.Sleep(poolUse - time.Second)
		lapsed(false)
		time.Sleep(time.Second)
		lapsed(true)
		ask()
		d = openDriver(t, core, d.networks, disk)
		lapsed(true)
	})
}

// The server looks after them by itself.
func TestServerGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := testDriver(t)
		core := d.core.(*attach.Manager)
		if _, err := core.Use(t.Context(), useOfPool("web"), "web"); err != nil {
			t.Fatal(err)
		}
		go New(Options{}).tend(t.Context(), d)
		time.Sleep(poolUse)
		synctest.Wait()
		if got := core.Networks(); len(got) != 0 {
			t.Errorf("in use: %v", got)
		}
	})
}

func FuzzRequests(f *testing.F) {
	known, _ := testDriver(f)
	for path := range known.methods() {
		f.Add(path, `{"NetworkID":"a","EndpointID":"b","PoolID":"web/4","Address":"10.87.3.9"}`)
		f.Add(path, `{"NetworkID":"a","EndpointID":"b","Interface":{"Address":"10.86.3.9/24","AddressIPv6":"fd00:86:0:3::9/64","MacAddress":"02:00:00:00:00:01"}}`)
		f.Add(path, `{"NetworkID":"a","IPv4Data":[{"AddressSpace":"meshd","Pool":"10.86.0.0/16","Gateway":"10.86.3.1/24"}],"Options":{"com.docker.network.generic":{"network":"default"}}}`)
		f.Add(path, `{"AddressSpace":"meshd","Pool":"fd00:87::/48","V6":true,"Options":{"network":"web"}}`)
	}
	f.Fuzz(func(t *testing.T, path, body string) {
		d, _ := testDriver(t)
		code, answer := post(d, path, body)
		if !json.Valid([]byte(answer)) || code >= 500 {
			t.Errorf("%s %q: %d %s", path, body, code, answer)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"networks":{"7d86":{"network":"web","gateway":"docker","internal":true}},"pools":{"+9f86":"web"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := decodeMemory(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeMemory(again); err != nil {
			t.Errorf("%s: %v", again, err)
		}
	})
}
