//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"time"

	"meshd/overlay/e2e/lab"
)

// agentVariable marks a process that is an agent: this program, started again on
// a host of the lab. It makes and counts traffic, apart from the process that
// measures, and does what it is told on its standard input.
const agentVariable = "MESHD_BENCH_AGENT"

func isAgent() bool { return os.Getenv(agentVariable) != "" }

// order is one line to an agent, and answer is its one line in return.
type order struct {
	Do    string           // listen, expect, count, silence, send, echo, ping
	At    netip.AddrPort   // listen, echo: where; port 0: any
	To    []netip.AddrPort // send, ping: receivers
	Trial uint32           // expect, send: what is counted together
	Size  int              // send, ping: of the payload in bytes
	Flows int              // send: sockets, so source ports, over all receivers
	Rate  float64          // send: packets per second; 0: as many as there can be
	For   time.Duration    // send, ping: how long
	Count int              // ping: at most as many; 0: as many as there can be
}

type answer struct {
	Error   string
	Port    uint16          // listen, echo
	Packets int64           // count: received; send: sent
	Took    time.Duration   // send
	RTT     []time.Duration // ping: of those answered
	Lost    int             // ping
}

// agentMain carries out orders until there are no more.
func agentMain() {
	t := &traffic{}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return // our owner closed it
		}
		a, err := t.carryOut(o)
		if err != nil {
			a.Error = err.Error()
		}
		if out.Encode(a) != nil {
			return
		}
	}
}

// agent is the owner's end.
type agent struct {
	end  end
	proc *lab.Process

	mu  sync.Mutex // guards what follows: one order at a time
	in  io.WriteCloser
	out *json.Decoder
}

func startAgent(at end) (*agent, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), agentVariable+"=1")
	cmd.Stderr = os.Stderr
	ours, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not StdoutPipe: that is closed as soon as the process ends, read or not.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = w
	p, err := at.start(cmd)
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	go func() {
		<-p.Done()
		// What is in the pipe can still be read; a read that waits ends.
		_ = r.SetReadDeadline(time.Now().Add(time.Second))
	}()
	return &agent{end: at, proc: p, in: ours, out: json.NewDecoder(r)}, nil
}

// ask gives an order and waits for the answer. When ctx ends, so does the agent.
func (a *agent) ask(ctx context.Context, o order) (answer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer context.AfterFunc(ctx, a.proc.Kill)()
	var got answer
	line, err := json.Marshal(o)
	if err == nil {
		_, err = a.in.Write(append(line, '\n'))
	}
	if err == nil {
		err = a.out.Decode(&got)
	}
	if err == nil && got.Error != "" {
		err = errors.New(got.Error)
	}
	if err != nil {
		return got, fmt.Errorf("%s on %s: %w", o.Do, a.end.host.Name, cmp.Or(ctx.Err(), err))
	}
	return got, nil
}
