//go:build linux

package docker

import (
	"context"
	"strings"
	"testing"
	"time"
)

// The example: an API gateway on one host asks its backend on another by name.
func testCompose(t *testing.T, alpha, beta *site) {
	const folder = "../../../examples/docker/"
	compose := func(s *site, file, backend string, args ...string) (container string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := s.Compose(ctx, []string{"BACKEND=" + backend}, append([]string{"--project-name", "docker", "--file", folder + file}, args...)...)
		must(t, err)
		return s.run("ps", "--quiet", "--no-trunc", "--filter", "label=com.docker.compose.project=docker")
	}
	const gateway, service, hello = "compose-gateway.yaml", "compose-backend.yaml", "hello from the backend"
	address := func(container string) string {
		return beta.run("inspect", "--format", "{{.NetworkSettings.Networks.docker_web.IPAddress}}", container)
	}

	first := compose(beta, service, "", "up", "--detach")
	backend := address(first)
	inside := compose(alpha, gateway, backend, "up", "--detach")
	get(t, alpha.Host, "127.0.0.1:8080", hello)
	get(t, beta.Host, alpha.Host.IPv4.String()+":8080", hello)
	alpha.reaches(inside, "backend", backend)
	alpha.fetches(inside, backend, hello)

	// Now it is to have the address for good.
	second := compose(beta, service, backend, "up", "--detach")
	if got := address(second); got != backend || second == first {
		t.Errorf("the backend that was %.12s at %s is %.12s at %s", first, backend, second, got)
	}
	get(t, beta.Host, alpha.Host.IPv4.String()+":8080", hello)

	if left := compose(alpha, gateway, backend, "down", "--timeout", "1") + compose(beta, service, backend, "down", "--timeout", "1"); left != "" {
		t.Errorf("compose down leaves containers:\n%s", left)
	}
	if out := alpha.run("network", "ls", "--format", "{{.Name}}"); strings.Contains(out, "docker_web") {
		t.Errorf("compose down leaves a network:\n%s", out)
	}
}
