package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"

	"meshd/overlay/attach/docker"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

// ofDocker are the files that tell of an engine on this host: its socket, and what
// leads it to ours.
var ofDocker = []string{"/run/docker.sock", "/etc/docker/plugins/meshd.spec", "/usr/lib/docker/plugins/meshd.spec"}

// dockerDoor answers Docker's engine, and knows if it does not.
type dockerDoor struct {
	// fixed at construction
	run      func(context.Context) error // nil: there is to be none
	required bool                        // the daemon must not run without
	wanted   func() bool                 // whether somebody may miss it
	log      *slog.Logger

	shut atomic.Pointer[string] // why
}

// newDockerDoor builds what the configuration has a socket for. Only where that is
// one of its own must it be had.
func newDockerDoor(cfg *config.Config, p *parts, log *slog.Logger) *dockerDoor {
	d := &dockerDoor{required: cfg.Docker.Required(), log: log}
	d.wanted = func() bool {
		_, err := p.dir.LoadDocker() // one that cannot be read is there
		return !errors.Is(err, fs.ErrNotExist) || slices.ContainsFunc(ofDocker, exists)
	}
	if cfg.Docker.Socket != "" {
		d.run = docker.New(docker.Options{
			Socket: cfg.Docker.Socket, Store: p.dir,
			Core: p.containers, Networks: p.node.Networks, Log: log,
		}).Run
	}
	return d
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// serve answers until ctx is done.
func (d *dockerDoor) serve(ctx context.Context) error {
	if d.run == nil {
		return nil
	}
	err := d.run(ctx)
	if err == nil || d.required {
		return err
	}
	d.log.Warn("Docker cannot use the mesh on this host", "err", err)
	d.shut.Store(new(err.Error()))
	return nil
}

// findings says that Docker is not answered, where that could matter: a host
// without Docker is well.
func (d *dockerDoor) findings() []status.Finding {
	why := d.shut.Load()
	if why == nil || !d.wanted() {
		return nil
	}
	return []status.Finding{{Level: "warning", Code: "docker_unavailable",
		Message: fmt.Sprintf("Docker cannot use the mesh on this host until the daemon is restarted: %s", *why)}}
}
