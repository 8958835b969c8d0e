package main

import (
	"context"
	"log/slog"

	"meshd/overlay/attach/docker"
	"meshd/overlay/config"
)

// serveDocker answers Docker's engine until ctx is done, if the configuration has
// a socket for that. Only where that is one of its own must it be had.
func serveDocker(ctx context.Context, cfg *config.Config, p *parts, log *slog.Logger) error {
	if cfg.Docker.Socket == "" {
		return nil
	}
	err := docker.New(docker.Options{
		Socket: cfg.Docker.Socket, Store: p.dir,
		Core: p.containers, Networks: p.node.Networks, Log: log,
	}).Run(ctx)
	if err != nil && !cfg.Docker.Required() {
		log.Warn("Docker cannot use the mesh on this host", "err", err)
		return nil
	}
	return err
}
