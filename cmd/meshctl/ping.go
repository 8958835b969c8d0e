package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/overlay/status"
)

const pingHelp = `Send probes through the tunnel to another node, and tell how long each takes.

NODE is a name, an ID or its first 8 characters, or a mesh address. The daemons
answer each other, so this works where a firewall drops ICMP. Exit code 1 if
nothing came back.`

func (c *cli) ping() *cobra.Command {
	var count int
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "ping NODE", Short: "Send probes through the tunnel to another node", Long: pingHelp,
		Example: "  meshctl ping beta\n  meshctl ping beta -c 100 -i 100ms\n  meshctl ping 10.86.80.1 -c 0      # until interrupted",
		Args:    exactly("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case count < 0:
				return usage("-c %d: must not be negative", count)
			case interval < 10*time.Millisecond || interval > time.Hour:
				return usage("-i %s: must be 10ms to 1h", interval)
			}
			client, _, err := c.client()
			if err != nil {
				return err
			}
			return c.runPing(cmd.Context(), client, status.PingRequest{
				Node: args[0], Count: count, IntervalMS: int(interval.Milliseconds()),
			})
		},
		ValidArgsFunction: c.completeNodes,
	}
	cmd.Flags().IntVarP(&count, "count", "c", 5, "`NUMBER` of probes; 0: until interrupted")
	cmd.Flags().DurationVarP(&interval, "interval", "i", time.Second, "`TIME` between two probes")
	return cmd
}

func (c *cli) runPing(ctx context.Context, client *status.Client, req status.PingRequest) error {
	var sent, answered int
	var low, high, sum float64
	err := client.Ping(ctx, req, func(r status.PingReply) {
		sent++
		if r.RTTms == nil {
			fmt.Fprintf(c.stdout, "%s: seq=%d %s\n", req.Node, r.Seq, cmp.Or(r.Error, "no answer"))
			return
		}
		ms := *r.RTTms
		if answered == 0 {
			low = ms
		}
		answered++
		low, high, sum = min(low, ms), max(high, ms), sum+ms
		from := req.Node
		if r.Address != nil && r.Address.String() != from {
			from = fmt.Sprintf("%s (%s)", req.Node, r.Address)
		}
		fmt.Fprintf(c.stdout, "%s: seq=%d time=%.2f ms\n", from, r.Seq, ms)
	})
	if err != nil && ctx.Err() == nil {
		return c.unanswered(err)
	}
	if sent == 0 {
		return quiet(exit.Failed)
	}
	fmt.Fprintf(c.stdout, "--- %s: %d sent, %d answered, %.0f%% lost", req.Node, sent, answered, 100*float64(sent-answered)/float64(sent))
	if answered > 0 {
		fmt.Fprintf(c.stdout, ", min/avg/max %.2f/%.2f/%.2f ms", low, sum/float64(answered), high)
	}
	fmt.Fprintln(c.stdout)
	if answered == 0 {
		return errors.New("nothing came back: see `meshctl status` for the path and the state of the peer")
	}
	return nil
}

// completeNodes offers the peers' names to the shell.
func (c *cli) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, _, err := c.clientQuietly()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	doc, err := client.Status(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range doc.Peers {
		names = append(names, p.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
