package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// monitorSlack is how much later than it asks for the kernel may wake the thread with
// which Go's runtime looks after all others. After each packet that a worker waited for
// in the kernel that thread asks to be woken every 20 us, for 10 ms, which took a third of
// an idle node's CPU. It sleeps for up to 10 ms at other times, so nothing rests on less;
// with 1 ms it still took a fifth, and 10 ms spare no more than this.
const monitorSlack = 5_000_000 // ns

// calmMonitor sets that. It takes CAP_SYS_NICE; without, as under systemd, the unit does
// it for all threads.
func calmMonitor() error {
	if all, err := os.ReadFile("/proc/self/timerslack_ns"); err == nil {
		if ns, err := strconv.Atoi(strings.TrimSpace(string(all))); err == nil && ns >= monitorSlack {
			return nil
		}
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("calm monitor thread: %w", err)
	}
	var threads []int
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil && id != os.Getpid() {
			threads = append(threads, id)
		}
	}
	if len(threads) == 0 {
		return nil // it starts before main does, so this is another runtime
	}
	monitor := slices.Min(threads) // the first one that the runtime starts
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", monitor), []byte(strconv.Itoa(monitorSlack)), 0); err != nil {
		return fmt.Errorf("calm monitor thread: %w", err)
	}
	return nil
}
