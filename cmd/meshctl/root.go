package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/cmd/internal/setup"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

const rootHelp = `meshctl makes a mesh of hosts, and tells how it is doing.

Every host of a mesh runs the daemon meshd. The first one makes the mesh, every
other one joins with a token:

  alpha#  meshctl init --name home
  alpha#  systemctl enable --now meshd
  alpha#  meshctl token create
  beta#   meshctl join -                  (paste the token)
  beta#   systemctl enable --now meshd
  beta#   meshctl status

Exit codes: 0 done or healthy, 1 failed or degraded, 3 not ready or no daemon,
64 wrong command line, 65 bad token or state, 66 missing file, 69 in use,
77 no permission, 78 bad config.`

// cli is what all commands share: the streams and the persistent flags.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	configPath     string
	socket         string
}

// run is the whole program but for signals.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &cli{stdin: stdin, stdout: stdout, stderr: stderr}
	root := c.root()
	root.SetArgs(args)
	err := setup.Coded(root.ExecuteContext(ctx))
	if err != nil && !errors.Is(err, errQuiet) {
		fmt.Fprintln(stderr, "meshctl:", err)
	}
	return exit.Code(err)
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use: "meshctl", Short: "Make a mesh, join it, see how it is doing", Long: rootHelp,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// Without the words of the library's parser.
		text, _, _ := strings.Cut(err.Error(), ": strconv.")
		text, _, _ = strings.Cut(text, ": time: ")
		return usage("%s: see `%s --help`", text, cmd.CommandPath())
	})
	root.PersistentFlags().StringVar(&c.configPath, "config", config.DefaultPath, "configuration `FILE` of the daemon")
	root.PersistentFlags().StringVar(&c.socket, "socket", "", "control socket `PATH` of the daemon (default: as the config file says, "+config.Default().Control+" without one)")
	token := &cobra.Command{Use: "token", Short: "Invite hosts to the mesh"}
	token.AddCommand(c.tokenCreate(), c.tokenInspect(), c.tokenList(), c.tokenRevoke())
	root.AddCommand(c.init(), token, c.join(), c.leave(), c.forget(), c.revoke(), c.network(), c.lease(), c.attach(), c.detach(), c.status(), c.ping(), c.cert(), c.keys(), c.down(), c.adopt(), c.config(), c.version())
	root.InitDefaultCompletionCmd()
	for _, cmd := range append(root.Commands(), root) {
		if cmd.HasSubCommands() && cmd.RunE == nil {
			group(cmd)
		}
	}
	return root
}

// group makes a command that only has subcommands refuse anything else.
func group(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && !cmd.HasParent() {
			return nil
		}
		if len(args) == 0 {
			return usage("a command is missing: see `%s --help`", cmd.CommandPath())
		}
		if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
			return usage("unknown command %q: did you mean \"%s\"? See `%s --help`", args[0], strings.Join(like, `" or "`), cmd.CommandPath())
		}
		return usage("unknown command %q: see `%s --help`", args[0], cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// exactly demands the named arguments and no more.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage("%s is missing: see `%s --help`", names[len(args)], cmd.CommandPath())
		case len(args) > len(names):
			return usage("unexpected argument %q: see `%s --help`", args[len(names)], cmd.CommandPath())
		}
		if i := slices.Index(args, ""); i >= 0 {
			return usage("%s is empty: see `%s --help`", names[i], cmd.CommandPath())
		}
		return nil
	}
}

// apart refuses flags that do not go together.
func apart(given func(flag string) bool, names ...string) error {
	names = slices.DeleteFunc(names, func(name string) bool { return !given(name) })
	if len(names) > 1 {
		return usage("--%s do not go together", strings.Join(names, " and --"))
	}
	return nil
}

// errQuiet ends the program with its exit code and no message.
var errQuiet = errors.New("quiet")

func quiet(code int) error {
	if code == exit.OK {
		return nil
	}
	return exit.With(code, errQuiet)
}

func usage(format string, args ...any) error {
	return exit.With(exit.Usage, fmt.Errorf(format, args...))
}

// loadConfig reads the config file, which must be there.
func (c *cli) loadConfig() (*config.Config, error) { return setup.LoadConfig(c.configPath) }

// client finds the daemon's socket. The config is nil if there is none and it is
// needless: a bad file at the usual place takes nobody the daemon at the usual
// place. One named with --config may be another daemon's, so there it does.
func (c *cli) client() (*status.Client, *config.Config, error) {
	cfg, err := c.loadConfig()
	switch {
	case c.socket != "":
		return status.NewClient(c.socket), cfg, nil
	case err == nil:
		return status.NewClient(cfg.Control), cfg, nil
	case c.configPath == config.DefaultPath:
		socket := config.Default().Control
		first, _, _ := strings.Cut(err.Error(), "\n")
		fmt.Fprintf(c.stderr, "Note: %s\nNote: the daemon is asked on %s; --socket names another socket\n", first, socket)
		return status.NewClient(socket), nil, nil
	}
	fmt.Fprintln(c.stderr, "Note: the daemon was not asked; --socket names its socket without a configuration")
	return nil, nil, err
}

// clientQuietly is client without notes.
func (c *cli) clientQuietly() (*status.Client, *config.Config, error) {
	silent := *c
	silent.stderr = io.Discard
	return silent.client()
}

// daemonCommand is how to start the daemon with this config: as a service, if one
// is installed for it.
func (c *cli) daemonCommand() string {
	for _, dir := range []string{"/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"} {
		if _, err := os.Stat(filepath.Join(dir, "meshd.service")); c.configPath == config.DefaultPath && err == nil {
			return "systemctl enable --now meshd"
		}
	}
	return c.line("meshd")
}

// again gives a command line that uses the same config.
func (c *cli) again(command string) string { return c.line("meshctl", command) }

// line is the same for any program of ours.
func (c *cli) line(words ...string) string {
	if c.configPath != config.DefaultPath {
		words = slices.Insert(words, 1, "--config", absolute(c.configPath))
	}
	return strings.Join(words, " ")
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// unanswered is noDaemon with what is to be done nearly everywhere.
func (c *cli) unanswered(err error) error {
	return noDaemon(err, "start it with `"+c.daemonCommand()+"`")
}

// noDaemon adds to an error what to do when nobody answers or the socket is
// closed to us.
func noDaemon(err error, advice string) error {
	switch {
	case errors.Is(err, status.ErrNoDaemon):
		return fmt.Errorf("%w: %s", err, advice)
	case errors.Is(err, fs.ErrPermission):
		return exit.With(exit.NoPerm, fmt.Errorf("%w: run this as root, or as a member of the group meshd", err))
	}
	return err
}

// atMostOne takes a NODE or nothing.
func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usage("unexpected argument %q: see `%s --help`", args[1], cmd.CommandPath())
	}
	return nil
}
