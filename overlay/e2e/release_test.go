//go:build linux

package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/status"
)

// A subnet that was given back is taken again, without a restart, by the container
// that wants an address.
func TestReleaseUntilUsedAgain(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 1)
	alpha := c.Nodes[0]
	_, err := alpha.Meshctl(bounded(t), "network", "create", "web", "--ipv4", "10.87.0.0/16")
	must(t, err)

	// What keeps a subnet while there is no container is a network of Docker.
	engine := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", alpha.DockerSocket())
	}}}
	defer engine.CloseIdleConnections()
	r, err := http.NewRequestWithContext(bounded(t), http.MethodPost, "http://engine/NetworkDriver.CreateNetwork",
		strings.NewReader(`{"NetworkID":"`+strings.Repeat("7d", 32)+`","Options":{"com.docker.network.generic":{"network":"web"}}}`))
	must(t, err)
	answer, err := engine.Do(r)
	must(t, err)
	defer answer.Body.Close()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		t.Fatalf("a network of Docker: %s: %s", answer.Status, text)
	}

	inWeb := func(l status.Lease) bool { return l.Network == "web" && l.State == mesh.Held.String() }
	one := byPath(t, alpha, "one")
	for range 2 {
		out, err := alpha.Meshctl(bounded(t), "lease", "release", "web")
		must(t, err)
		if !strings.Contains(out, "given its subnet back") {
			t.Errorf("release says %q", out)
		}
		must(t, alpha.WaitFor(bounded(t), "to have no subnet in web", func(d *status.Document) bool { return !slices.ContainsFunc(d.Node.Leases, inWeb) }))
		if at := one.attach(t, "--network", "web"); at.State != attach.Live {
			t.Errorf("the container is %s", at.State)
		}
		if out, err := alpha.Meshctl(bounded(t), "lease", "release", "web"); exitCode(err) == 0 {
			t.Errorf("release under a container: %q", out)
		}
		one.detach(t, "--network", "web")
	}
}
