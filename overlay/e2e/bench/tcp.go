//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"meshd/overlay/e2e/lab"
)

// iperf is the server, on the second host.
type iperf struct{ proc *lab.Process }

// iperfReport is what we need of `iperf3 --json`.
type iperfReport struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Bytes float64 `json:"bytes"`
			Bits  float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`
}

type throughput struct{ bytes, bitsPerSecond float64 }

// bytesPerShortSecond is for lengths below a second, which iperf3 does not know:
// it sends an amount then.
const bytesPerShortSecond = 100e6

// client is a command that sends from the first host to the second, or back.
func (p *place) client(ctx context.Context, streams int, reverse bool, length time.Duration) (*exec.Cmd, error) {
	if p.iperf == nil {
		cmd := exec.Command("iperf3", "-s", "-B", p.net.addrs[1].String(), "--forceflush")
		proc, err := p.ends[1].start(cmd)
		if err != nil {
			return nil, err
		}
		p.iperf = &iperf{proc}
	}
	args := []string{"-c", p.net.addrs[1].String(), "-C", "cubic", "-J", "-P", strconv.Itoa(streams)}
	if length < time.Second {
		args = append(args, "-n", strconv.Itoa(int(length.Seconds()*bytesPerShortSecond)))
	} else {
		args = append(args, "-t", strconv.Itoa(int(math.Ceil(length.Seconds()))))
	}
	if reverse {
		args = append(args, "-R")
	}
	return exec.CommandContext(ctx, "iperf3", args...), nil
}

// tcp measures throughput.
func (p *place) tcp(ctx context.Context, streams int, reverse bool, length time.Duration) (throughput, error) {
	for {
		cmd, err := p.client(ctx, streams, reverse, length)
		if err != nil {
			return throughput{}, err
		}
		out, runErr := p.ends[0].run(cmd)
		var r iperfReport
		err = json.Unmarshal(out, &r)
		switch {
		case ctx.Err() != nil:
			return throughput{}, ctx.Err()
		case err == nil && soon(r.Error):
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		case err == nil && r.Error != "":
			return throughput{}, fmt.Errorf("iperf3: %s", r.Error)
		case errors.Join(runErr, err) != nil:
			return throughput{}, errors.Join(runErr, err)
		case r.End.Received.Bytes == 0:
			return throughput{}, errors.New("iperf3: nothing was received")
		default:
			return throughput{r.End.Received.Bytes, r.End.Received.Bits}, nil
		}
	}
}

// soon tells errors that mean that the server does not listen yet, or has not seen
// yet that the last client is gone.
func soon(message string) bool {
	for _, why := range []string{"Connection refused", "Connection reset", "server is busy"} {
		if strings.Contains(message, why) {
			return true
		}
	}
	return false
}

// bulk lets one stream run until stop is called. It returns when that is under way.
func (p *place) bulk(ctx context.Context) (stop func(), err error) {
	for {
		stop, err = p.tryBulk(ctx)
		if err == nil || ctx.Err() != nil || !soon(err.Error()) {
			return stop, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (p *place) tryBulk(ctx context.Context) (stop func(), err error) {
	cmd, err := p.client(ctx, 1, false, time.Hour)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	proc, err := p.ends[0].start(cmd)
	if err != nil {
		return nil, err
	}
	stop = func() {
		proc.Kill()
		<-proc.Done()
	}
	select {
	case <-proc.Done():
		var r iperfReport
		if json.Unmarshal(out.Bytes(), &r) != nil || r.Error == "" {
			r.Error = string(bytes.TrimSpace(out.Bytes()))
		}
		return nil, fmt.Errorf("iperf3: %s", r.Error)
	case <-ctx.Done():
		stop()
		return nil, ctx.Err()
	case <-time.After(bulkHead):
		return stop, nil
	}
}
