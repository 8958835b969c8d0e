package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay"
	"meshd/overlay/config"
	"meshd/overlay/plan"
	"meshd/overlay/status"
	"meshd/tun/hostnet"
	"meshd/tun/nft"
)

// checkStart says whether configuration and state are good for a start, without
// changing anything. It tries neither ports nor the TUN device: a daemon that
// runs has them.
func checkStart(ctx context.Context, cfg *config.Config, path string, stdout io.Writer) error {
	core, err := dryStart(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s and the state in %s are good: node %s\n", path, cfg.StateDir, core.Name())
	return nil
}

// checkHost refuses a start that would take traffic which this host has already.
func checkHost(ctx context.Context, dir *statedir.Dir, log *slog.Logger) error {
	charter, err := trust.ParseCharter(dir.Membership().Charter, mesh.ID{})
	if err != nil {
		return withCode(err)
	}
	state, err := dir.State()
	if err != nil {
		return withCode(err)
	}
	own := plan.Own(mesh.ControlAddr(charter.ID(), dir.Keys().ID()), state.Leases)
	return withCode(overlay.CheckHost(ctx, hostnet.New(hostnet.Options{}), plan.Needed(charter.Control(), charter.Networks), own, log))
}

// dryStart refuses what a start would, and saves nothing.
func dryStart(ctx context.Context, cfg *config.Config) (*member.Member, error) {
	dir, err := openState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	state, err := dir.State()
	if err != nil {
		return nil, withCode(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	state.Epoch++ // as a start would
	core, err := newMember(cfg, dir, state, quiet)
	if err != nil {
		return nil, err
	}
	return core, checkHost(ctx, dir, quiet)
}

// cleanUp removes what is ours from the host: by way of the daemon if one runs
// with this configuration, by hand if none runs at all.
func cleanUp(ctx context.Context, cfg *config.Config, stdout io.Writer) error {
	switch err := status.NewClient(cfg.Control).Down(ctx); {
	case err == nil:
		fmt.Fprintln(stdout, "the daemon has removed everything and ended")
		return nil
	case !errors.Is(err, status.ErrNoDaemon):
		return withCode(err)
	}
	removed, err := hostnet.New(hostnet.Options{}).Cleanup(ctx)
	if err == nil {
		var rules []string
		if rules, err = nft.New(nft.Options{}).Remove(ctx); errors.Is(err, nft.ErrNoNFTables) {
			err = nil
		}
		removed = append(removed, rules...)
	}
	switch {
	case errors.Is(err, hostnet.ErrRunning):
		return exit.With(exit.Unavailable, fmt.Errorf(
			"clean up host network: %w, and not with this configuration: stop it first, or use `meshd --cleanup --config` with its file", err))
	case err != nil:
		return withCode(fmt.Errorf("clean up host network: %w", err))
	case len(removed) == 0:
		fmt.Fprintln(stdout, "there is nothing of meshd's in this host's network")
		return nil
	}
	fmt.Fprintln(stdout, strings.Join(removed, "\n"))
	fmt.Fprintln(stdout, "nothing of meshd's is left in this host's network; IP forwarding stays as it is")
	return nil
}
