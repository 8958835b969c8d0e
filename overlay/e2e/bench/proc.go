//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/lab"
)

// cpuTime is what all processors have done since the start, in ticks.
type cpuTime struct{ all, steal int64 }

// machineTime reads the first line of /proc/stat.
func machineTime() (cpuTime, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTime{}, err
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	return parseCPU(string(line))
}

// parseCPU reads "cpu user nice system idle iowait irq softirq steal guest ...";
// guests' time is in that of users already.
func parseCPU(line string) (cpuTime, error) {
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return cpuTime{}, fmt.Errorf("read /proc/stat: it begins with %q", line)
	}
	var t cpuTime
	for i, f := range fields[1:9] {
		v, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return cpuTime{}, fmt.Errorf("read /proc/stat: %w", err)
		}
		t.all += v
		if i == 7 {
			t.steal = v
		}
	}
	return t, nil
}

// stolen is the part of the time between that the hypervisor gave to others.
func stolen(before, after cpuTime) float64 {
	if after.all <= before.all {
		return 0
	}
	return float64(after.steal-before.steal) / float64(after.all-before.all)
}

// spent is what daemons have taken so far.
type spent struct {
	CPU       time.Duration // all of them
	RSS, Peak int64         // bytes, of the one that has most
}

// userHz is the unit of times in /proc/PID/stat, the same everywhere.
const userHz = 100

func usage(daemons []*lab.Process) (spent, error) {
	var s spent
	for _, p := range daemons {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
		if err != nil {
			return s, fmt.Errorf("read usage of daemon: %w", err)
		}
		ticks, err := parseTicks(string(stat))
		if err != nil {
			return s, err
		}
		s.CPU += time.Duration(ticks) * time.Second / userHz
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
		if err != nil {
			return s, fmt.Errorf("read usage of daemon: %w", err)
		}
		rss, err1 := parseKB(status, "VmRSS:")
		peak, err2 := parseKB(status, "VmHWM:")
		if err := errors.Join(err1, err2); err != nil {
			return s, err
		}
		s.RSS, s.Peak = max(s.RSS, rss), max(s.Peak, peak)
	}
	return s, nil
}

// parseTicks adds user and system time, the fields 14 and 15 of proc(5). The name
// before them may have spaces and brackets.
func parseTicks(stat string) (int64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("read usage of daemon: too short: %q", stat)
	}
	user, err1 := strconv.ParseInt(fields[14-3], 10, 64)
	system, err2 := strconv.ParseInt(fields[15-3], 10, 64)
	return user + system, errors.Join(err1, err2)
}

// parseKB finds a line such as "VmRSS:	  1234 kB" and gives bytes.
func parseKB(status []byte, key string) (int64, error) {
	for line := range bytes.Lines(status) {
		if f := strings.Fields(string(line)); len(f) == 3 && f[0] == key {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("read usage of daemon: it has no %s", key)
}

// Machine is where figures come from.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory int    `json:"memory_gib"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	// HaltPoll is how long, in us, an idle processor of a virtual machine looks for
	// work before it halts; nil: it is not such a machine. Where it halts at once,
	// the hypervisor has to wake it for every packet that comes alone.
	HaltPoll *int `json:"halt_poll_us,omitempty"`
}

func thisMachine() Machine {
	m := Machine{CPU: "unknown", Cores: runtime.NumCPU(), Kernel: "unknown", Go: runtime.Version()}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int((info.Totalram*uint64(info.Unit) + 1<<29) >> 30)
	}
	if text, err := os.ReadFile("/sys/module/haltpoll/parameters/guest_halt_poll_ns"); err == nil {
		if ns, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			us := ns / 1000
			m.HaltPoll = &us
		}
	}
	return m
}
