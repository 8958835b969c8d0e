//go:build linux

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// Usage is what a daemon takes of its machine.
type Usage struct {
	CPU         time.Duration // since it was started; of its threads, user and system
	RSS         int           // bytes
	Descriptors int
}

// tick is the unit of times in /proc/PID/stat (USER_HZ, the same everywhere).
const tick = 10 * time.Millisecond

// Usage asks the kernel.
func (n *Node) Usage() (Usage, error) {
	fail := func(err error) (Usage, error) { return Usage{}, fmt.Errorf("read usage of %s: %w", n.Name, err) }
	proc := fmt.Sprintf("/proc/%d/", n.Process().Pid())
	raw, err := os.ReadFile(proc + "stat")
	if err != nil {
		return fail(err)
	}
	// Behind the name, which may have spaces, comes field 3 of proc(5); utime
	// and stime are 14 and 15, rss is 24.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	var numbers [3]int
	for i, field := range []int{14, 15, 24} {
		if numbers[i], err = strconv.Atoi(string(fields[field-3])); err != nil {
			return fail(err)
		}
	}
	open, err := os.ReadDir(proc + "fd")
	if err != nil {
		return fail(err)
	}
	return Usage{
		CPU: time.Duration(numbers[0]+numbers[1]) * tick, RSS: numbers[2] * os.Getpagesize(), Descriptors: len(open),
	}, nil
}

// Metrics reads numbers by their names from where the daemon offers its metrics,
// as `http` in its configuration says.
func (n *Node) Metrics(ctx context.Context, address string, names ...string) (map[string]float64, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return n.Host.Dial(ctx, network, address)
		},
	}}
	fail := func(err error) error {
		return fmt.Errorf("read metrics of %s: %w", n.Name, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, fail(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fail(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fail(err)
	}
	out := map[string]float64{}
	for line := range bytes.Lines(body) {
		for _, name := range names {
			if value, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
				if out[name], err = strconv.ParseFloat(string(bytes.TrimSpace(value)), 64); err != nil {
					return nil, fail(err)
				}
			}
		}
	}
	for _, name := range names {
		if _, ok := out[name]; !ok {
			return nil, fail(fmt.Errorf("there is no %s", name))
		}
	}
	return out, nil
}
