package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"meshd/cmd/internal/exit"
	"meshd/tun/inside"
)

var (
	errNoDocker    = errors.New("docker does not answer")
	errNoContainer = errors.New("docker knows no such container")
)

// dockerName is how Docker writes names and IDs. Nothing else goes into a URL.
var dockerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,252}$`)

const (
	dockerTimeout = 10 * time.Second // a busy engine takes its time
	maxDocker     = 16 << 20         // of one answer
)

// container is what Docker says of one, as far as it matters here.
type container struct {
	ID         string `json:"Id"`
	Name       string
	State      struct{ Pid int }
	HostConfig struct{ NetworkMode string }
	// NetworkSettings.SandboxKey is the path of its network namespace, where Docker
	// sees it; empty: it has another container's.
	NetworkSettings struct{ SandboxKey string }
}

// namespace is the path of its network namespace. A Docker in a machine or in a
// namespace of its own has other files and other processes than this host.
func (c container) namespace(ctx context.Context) (string, error) {
	if key := c.NetworkSettings.SandboxKey; strings.HasPrefix(key, "/") {
		if _, err := inside.List(ctx, key); !errors.Is(err, inside.ErrNoNamespace) {
			return key, err
		}
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.State.Pid))
	if err == nil && strings.Contains(string(groups), c.ID) {
		return processNamespace(c.State.Pid), nil
	}
	return "", exit.With(exit.NoInput, fmt.Errorf("the process %d of the container %s is not here: Docker runs in another machine or namespace than this command", c.State.Pid, c.Name))
}

// inspectContainer asks Docker for one.
func inspectContainer(ctx context.Context, name string) (container, error) {
	var c container
	if !dockerName.MatchString(name) {
		return c, fmt.Errorf("%w: %.70q", errNoContainer, name)
	}
	if err := askDocker(ctx, "/containers/"+name+"/json", &c); err != nil {
		return c, err
	}
	c.Name = strings.TrimPrefix(c.Name, "/")
	if !dockerName.MatchString(c.Name) || !dockerName.MatchString(c.ID) || len(c.ID) < 12 {
		return c, fmt.Errorf("ask Docker for %s: it answers nonsense", name)
	}
	return c, nil
}

// running is what Docker lists of a container that runs.
type running struct {
	Names           []string
	NetworkSettings struct {
		Networks map[string]struct{ EndpointID string }
	}
}

// names are its own ones. What links to it calls it by one with another slash.
func (r running) names() (own []string) {
	for _, name := range r.Names {
		if name = strings.TrimPrefix(name, "/"); dockerName.MatchString(name) {
			own = append(own, name)
		}
	}
	return own
}

// containers lists those that run.
func containers(ctx context.Context) (all []running, err error) {
	err = askDocker(ctx, "/containers/json", &all)
	return all, err
}

// dockerSocket is where Docker's own tools would ask.
func dockerSocket() (string, error) {
	host := os.Getenv("DOCKER_HOST")
	if host == "" {
		return "/var/run/docker.sock", nil
	}
	if u, err := url.Parse(host); err == nil && u.Scheme == "unix" && u.Path != "" {
		return u.Path, nil
	}
	return "", usage("DOCKER_HOST is %.70q: only containers of this host can be attached, whose Docker is asked at a unix:// address", host)
}

func askDocker(ctx context.Context, path string, result any) error {
	socket, err := dockerSocket()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	response, err := client.Do(request)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w on %s", errNoDocker, socket)
	case errors.Is(err, fs.ErrPermission):
		return exit.With(exit.NoPerm, fmt.Errorf("connect to %s: %w", socket, fs.ErrPermission))
	case err != nil:
		return fmt.Errorf("ask Docker on %s: %w", socket, errors.Unwrap(err))
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(io.LimitReader(response.Body, maxDocker))
	if response.StatusCode != http.StatusOK {
		var e struct{ Message string }
		_ = decoder.Decode(&e) // without one the status has to do
		if response.StatusCode == http.StatusNotFound {
			return fmt.Errorf("%w: %.200q", errNoContainer, e.Message)
		}
		return fmt.Errorf("ask Docker on %s: it answers %s: %.200q", socket, response.Status, e.Message)
	}
	if err := decoder.Decode(result); err != nil {
		return fmt.Errorf("read answer of Docker on %s: %w", socket, err)
	}
	return nil
}
