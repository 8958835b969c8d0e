package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
)

// errEnded says that a container is known and has no network now.
var errEnded = errors.New("does not run")

// target is a container, whatever runs it.
type target struct {
	key  string // names it, as in the IDs of its attachments: "docker:3f4e5d6c7b8a"
	name string // for people: Docker's, or the key
	ns   string // path of its network namespace; empty: it is not there
}

const netnsDir = "/run/netns"

// The prefixes of targets that say what a name is.
const kindDocker, kindPID, kindNetns = "docker", "pid", "netns"

// findTarget finds what a person names. What has a slash is the path of a
// namespace, digits are a process, and the rest is a name that Docker knows, or
// that is in /run/netns; a prefix decides otherwise. What is not there is an error,
// with what its attachments were called by.
func findTarget(ctx context.Context, arg string) (t target, err error) {
	kind, name, ok := strings.Cut(arg, ":")
	switch {
	case ok && kind == kindDocker:
		return findContainer(ctx, name)
	case ok && kind == kindPID:
		return findProcess(name)
	case ok && kind == kindNetns:
		return findNamespace(name)
	case strings.Contains(arg, "/"):
		return findNamespace(arg)
	case arg != "" && strings.Trim(arg, "0123456789") == "":
		return findProcess(arg)
	}
	t, err = findContainer(ctx, arg)
	n, missing := findNamespace(arg)
	switch {
	case err == nil && missing == nil:
		return target{}, usage("%s is a container of Docker's and a name in %s: say docker:%s or netns:%s", arg, netnsDir, arg, arg)
	case missing == nil:
		return n, nil
	case errors.Is(err, errNoDocker), errors.Is(err, errNoContainer):
		t = target{key: n.key, name: arg}
		err = exit.With(exit.NoInput, fmt.Errorf("nothing is named %.70q: %w, and there is no such name in %s", arg, err, netnsDir))
	}
	return t, err
}

func findContainer(ctx context.Context, name string) (target, error) {
	c, err := inspectContainer(ctx, name)
	if errors.Is(err, errNoDocker) || errors.Is(err, errNoContainer) {
		err = exit.With(exit.NoInput, err)
	}
	if err != nil {
		return target{name: name}, err
	}
	t := target{key: kindDocker + ":" + c.ID[:12], name: c.Name}
	switch {
	case c.State.Pid <= 0:
		return t, exit.With(exit.Failed, fmt.Errorf("the container %s %w", c.Name, errEnded))
	case c.HostConfig.NetworkMode == "host":
		return t, usage("the container %s has the host's network: it reaches the mesh as the host does", c.Name)
	}
	t.ns, err = c.namespace(ctx)
	return t, err
}

func findProcess(pid string) (target, error) {
	n, err := strconv.ParseInt(pid, 10, 32)
	if err != nil || n <= 0 {
		return target{}, usage("%.70q is no process ID", pid)
	}
	key, ns := fmt.Sprintf("%s:%d", kindPID, n), processNamespace(int(n))
	if _, err := os.Stat(filepath.Dir(ns)); err != nil {
		return target{key, key, ""}, exit.With(exit.NoInput, fmt.Errorf("there is no process %d", n))
	}
	return target{key, key, ns}, nil
}

func processNamespace(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// findNamespace finds a namespace by its path, or its name in netnsDir.
func findNamespace(name string) (target, error) {
	path := name
	if !strings.Contains(name, "/") {
		path = filepath.Join(netnsDir, name)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return target{}, err
	}
	// Whichever way it is written, it is the same one.
	short := path
	for _, dir := range []string{netnsDir + "/", "/var" + netnsDir + "/"} {
		if rest, ok := strings.CutPrefix(path, dir); ok && !strings.Contains(rest, "/") {
			short = rest
		}
	}
	key := kindNetns + ":" + (&url.URL{Path: short}).EscapedPath() // IDs are printable ASCII
	if _, err := os.Stat(path); err != nil || name == "" {
		return target{key, key, ""}, exit.With(exit.NoInput, fmt.Errorf("there is no network namespace %.200q", path))
	}
	return target{key, key, path}, nil
}

// idOf is that of a target's attachment to a network.
func (t target) idOf(network string) string { return ctlDoor + t.key + "/" + network }

// ctlDoor starts the IDs of what this command attaches.
const ctlDoor = "ctl/"

// dockerDoor starts the IDs of what Docker attached; its ID of the endpoint follows.
const dockerDoor = "docker/"

// keyOf is the target's in an ID of ours; empty: it is somebody else's.
func keyOf(id string) string {
	rest, ok := strings.CutPrefix(id, ctlDoor)
	end := strings.LastIndexByte(rest, '/')
	if !ok || end < 0 {
		return ""
	}
	return rest[:end]
}

// findKey finds a target again by its key.
func findKey(ctx context.Context, key string) (target, error) {
	arg, err := url.PathUnescape(key)
	if err != nil {
		return target{}, err
	}
	return findTarget(ctx, arg)
}

// completeTargets offers what could be attached.
func completeTargets(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	all, _ := containers(cmd.Context()) // without Docker there are none
	for _, c := range all {
		names = append(names, c.names()...)
	}
	entries, _ := os.ReadDir(netnsDir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, cobra.ShellCompDirectiveDefault // or a path
}
