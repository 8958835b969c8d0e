//go:build linux

package main

import (
	"os/exec"
	"slices"

	"meshd/overlay/e2e/lab"
)

// end is where traffic is made or goes to: a host, or a container on one.
type end struct {
	host *lab.Host
	ns   string // path of a container's network namespace; empty: the host's own
}

func (e end) start(cmd *exec.Cmd) (*lab.Process, error) { return e.host.Start(e.enter(cmd)) }

func (e end) run(cmd *exec.Cmd) ([]byte, error) { return e.host.Run(e.enter(cmd)) }

// enter has a command run in the container's network: all else is the host's, so the
// container need not have the program.
func (e end) enter(cmd *exec.Cmd) *exec.Cmd {
	if e.ns == "" {
		return cmd
	}
	in := exec.Command("nsenter", "--net="+e.ns, "--", cmd.Path)
	cmd.Args = slices.Concat(in.Args, cmd.Args[1:])
	cmd.Path, cmd.Err = in.Path, in.Err
	return cmd
}
