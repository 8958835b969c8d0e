package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/cmd/internal/setup"
	"meshd/mesh/statedir"
	"meshd/overlay"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

const help = `meshd makes this host a node of a mesh: it finds the other nodes by gossip,
leases a subnet, and carries traffic to theirs through encrypted tunnels.

The state directory is made beforehand, by "meshctl init" on the first host and
"meshctl join TOKEN" on every other one. See "meshctl status" for how it goes.

On SIGTERM it stops and leaves unreachable routes for the mesh behind, so that
nothing travels in clear text meanwhile; --cleanup removes those as well. On SIGHUP
it reads the configuration again, as "meshctl config reload" does.

It runs as any user that has CAP_NET_ADMIN and owns the state directory. What
takes more, root does before with --preflight: IP forwarding, the module tun, the
owner of the state. It refuses where the daemon would, and says what it changed.`

// run is the whole program but for signals and the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var path string
	var check, cleanup, pre bool
	cmd := &cobra.Command{
		Use: "meshd", Short: "The daemon of a mesh node", Long: help, Version: version,
		Args:         func(_ *cobra.Command, args []string) error { return noArguments(args) },
		SilenceUsage: true, SilenceErrors: true,
		Example: "  meshd --config /etc/meshd/config.yaml\n  meshd --check      # are configuration and state good?\n  meshd --preflight  # as root: prepare this host for a daemon that is not root\n  meshd --cleanup    # remove all that is meshd's from this host's network",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check && cleanup || check && pre || cleanup && pre {
				return exit.With(exit.Usage, errors.New("--check, --cleanup and --preflight do not go together: give one of them"))
			}
			cfg, err := setup.LoadConfig(path)
			if cleanup && exit.Code(err) == exit.NoInput {
				cfg, err = config.Default(), nil // whoever removed the file first can still clean up
			}
			switch {
			case err != nil:
				return err
			case cleanup:
				return cleanUp(cmd.Context(), cfg, stdout)
			case check:
				return checkStart(cmd.Context(), cfg, path, stdout)
			case pre:
				return preflight(cmd.Context(), cfg, path, stdout)
			}
			if abs, err := filepath.Abs(path); err == nil {
				path = abs // it is read again, and told to those who ask from elsewhere
			}
			return serve(cmd.Context(), cfg, path, stderr)
		},
	}
	cmd.Flags().StringVar(&path, "config", config.DefaultPath, "configuration `FILE`")
	cmd.Flags().BoolVar(&check, "check", false, "say whether configuration and state are good, and exit")
	cmd.Flags().BoolVar(&cleanup, "cleanup", false, "remove everything that is ours from this host's network, by way of the daemon with this configuration if it runs, and exit")
	cmd.Flags().BoolVar(&pre, "preflight", false, "as root: prepare this host for a daemon that is not root, and exit")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exit.With(exit.Usage, err) })
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	return cmd.ExecuteContext(ctx)
}

func noArguments(args []string) error {
	if len(args) > 0 {
		return exit.With(exit.Usage, fmt.Errorf("unexpected argument %q: meshd takes flags only, see meshd --help", args[0]))
	}
	return nil
}

// serve runs the node and its control socket until ctx is done or the node ends.
// path is where the configuration is read again.
func serve(ctx context.Context, cfg *config.Config, path string, stderr io.Writer) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // from the first moment to the last: else it would end the process
	logs := newLogSwitch(cfg.Log, stderr)
	log := slog.New(logs)
	release, err := lock(cfg.StateDir)
	if err != nil {
		return err
	}
	defer release()
	parts, err := assemble(ctx, cfg, log)
	if err != nil {
		return err
	}
	node := parts.node
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	settings, door := newSettings(path, cfg, log), newDockerDoor(cfg, parts, log)
	server := status.NewServer(status.Options{
		Control: cfg.Control, HTTP: httpAddress(cfg), Daemon: served{node, settings, parts.dir, door}, Settings: settings,
		Objects: parts, Leases: parts, Keys: parts, Attachments: parts.containers, Log: log,
	})
	settings.check, settings.apply = parts.check, parts.appliers(server, logs)
	settings.notify = func(reloading bool) { notifyReload(log, node, reloading) }
	serving := make(chan error, 1)
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx)) // outlives the node, to tell of its end
	defer stopServer()
	go func() {
		err := server.Run(serverCtx)
		stop(err)
		serving <- err
	}()
	go func() {
		select {
		case <-node.Ready():
			log.Info("ready")
			notify(log, daemon.SdNotifyReady)
		case <-ctx.Done():
			return
		}
		// In a large mesh joining takes more memory than anything after it.
		select {
		case <-time.After(calm):
			debug.FreeOSMemory()
		case <-ctx.Done():
		}
	}()

	go func() {
		select {
		case <-server.Ready():
			settings.obey(ctx, hangup)
		case <-ctx.Done():
		}
	}()

	doors := make(chan error, 1)
	go func() {
		err := door.serve(ctx)
		if err != nil {
			stop(err)
		}
		doors <- err
	}()

	log.Info("starting", "version", version, "state_dir", cfg.StateDir)
	err = node.Run(ctx)
	notify(log, daemon.SdNotifyStopping)
	stop(nil)
	stopServer()
	if doorErr := <-doors; doorErr != nil {
		err = doorErr
	}
	if serveErr := <-serving; serveErr != nil {
		err = serveErr // it came first, and one reason is enough to act on
	}
	if errors.Is(err, overlay.ErrLeft) {
		log.Info("left the mesh")
		return nil
	}
	if err == nil {
		log.Info("stopped")
	}
	return withCode(err)
}

// notify tells systemd, if it is there.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd not notified", "err", err)
	}
}

// notifyReload tells systemd that a reload begins or has ended. A node that is not
// ready yet says neither: the end of a reload is not the end of its start.
func notifyReload(log *slog.Logger, node *overlay.Node, reloading bool) {
	select {
	case <-node.Ready():
	default:
		return
	}
	if reloading {
		notify(log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
	} else {
		notify(log, daemon.SdNotifyReady)
	}
}

// calm is how long after a start everything that it set off is over.
const calm = 30 * time.Second

// lock makes sure that no other daemon uses the state directory, which must be
// there.
func lock(dir string) (release func(), err error) {
	if _, err := openState(dir); errors.Is(err, statedir.ErrNoState) {
		return nil, err
	}
	release, err = statedir.Lock(dir)
	if errors.Is(err, statedir.ErrLocked) {
		return nil, exit.With(exit.Unavailable, fmt.Errorf("%w: a daemon runs already, see `meshctl status`", err))
	}
	return release, withCode(err)
}

// httpAddress is where metrics and health are offered; empty: nowhere.
func httpAddress(cfg *config.Config) string {
	if !cfg.HTTP.IsValid() && cfg.HTTP.Port() == 0 {
		return ""
	}
	return config.Address(cfg.HTTP)
}
