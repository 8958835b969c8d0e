package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/plan"
)

const joinHelp = `Make this host a member of the mesh that a token invites to.

It checks the token, makes this node's keys and certificate, and writes them to
the state directory, and a commented config file where there is none. It needs no
network: the daemon finds the other members when it starts, and one of them must
see this node before the token expires.

With - the token is read from standard input. Prefer that: a token on the command
line stays in the shell's history and is seen by every user in the process list.`

func (c *cli) join() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "join TOKEN|-", Short: "Make this host a member of a mesh", Long: joinHelp,
		Example: "  meshctl join -\n  ssh alpha meshctl token create | meshctl join - --node beta",
		Args:    exactly("TOKEN (or -)"),
		RunE:    func(cmd *cobra.Command, args []string) error { return c.runJoin(cmd.Context(), args[0], node) },
	}
	cmd.Flags().StringVar(&node, "node", "", "name of this `NODE` (default: as the config file or the hostname says)")
	return cmd
}

func (c *cli) runJoin(ctx context.Context, arg, node string) error {
	if arg != "-" {
		fmt.Fprintln(c.stderr, "Note: a token on the command line stays in the shell's history; `meshctl join -` reads it from standard input.")
	}
	token, err := c.readToken(arg)
	if err != nil {
		return err
	}
	now := time.Now()
	if err := token.CheckTime(now); err != nil {
		return err
	}
	place, err := c.openPlace(node)
	if err != nil {
		return err
	}
	defer place.release()
	if err := checkRanges(ctx, token); err != nil {
		return err
	}
	keys := statedir.NewKeys()
	certificate, err := token.Certify(keys.Identity.Public().(ed25519.PublicKey), keys.Seal.Public(), place.node, now)
	if err != nil {
		return exit.With(exit.BadData, err)
	}
	if err := place.writeConfig(); err != nil {
		return err
	}
	err = statedir.Create(place.cfg.StateDir, keys, statedir.Membership{
		Charter: token.Charter.Raw, Certificate: certificate.Raw, Keyring: statedir.NewKeyring(token.GossipKey), Seeds: token.Seeds,
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, `This host is the node %s of the mesh %s. The token is good for %s.

Node ID  %s
Config   %s
State    %s

Next, before %s, so that a member sees it while the token is valid:
  %s
`, place.node, token.Charter.Name, usesText(token.Credential.Uses), keys.ID(), place.configText(), place.cfg.StateDir,
		token.Credential.NotAfter.UTC().Format(time.RFC3339), c.daemonCommand())
	return nil
}

// checkRanges refuses a mesh whose ranges mean something to this host already:
// the daemon would not start, or cut off whoever starts it.
func checkRanges(ctx context.Context, token *trust.Token) error {
	ranges := plan.Needed(token.Charter.Control(), token.Charter.Networks)
	all, err := uses(ctx, ranges...)
	if err != nil {
		return err
	}
	all = append(all, plan.Named("the token's seed", token.Seeds...)...)
	if overlaps := plan.Overlaps(ranges, nil, all); len(overlaps) > 0 {
		return exit.With(exit.Config, fmt.Errorf("join mesh %s: %s", token.Charter.Name, overlaps[0]))
	}
	return nil
}

// maxTokenInput is above the longest token.
const maxTokenInput = 64 << 10

// readToken verifies a token from the command line, or for - from the input:
// the first line of a terminal, all of anything else.
func (c *cli) readToken(arg string) (*trust.Token, error) {
	text := arg
	if arg == "-" {
		in := io.LimitReader(c.stdin, maxTokenInput)
		if file, ok := c.stdin.(*os.File); ok && isTerminal(file) {
			fmt.Fprint(c.stderr, "Paste the token: ")
			line, err := bufio.NewReader(in).ReadString('\n')
			if err != nil && err != io.EOF {
				return nil, fmt.Errorf("read token: %w", err)
			}
			text = line
		} else {
			raw, err := io.ReadAll(in)
			if err != nil {
				return nil, fmt.Errorf("read token: %w", err)
			}
			text = string(raw)
		}
	}
	if strings.TrimSpace(text) == "" {
		return nil, exit.With(exit.BadData, fmt.Errorf("the token is empty: make one with `meshctl token create` on a member"))
	}
	token, err := trust.ParseToken(text)
	if err != nil {
		return nil, fmt.Errorf("read %w", err)
	}
	return token, nil
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
