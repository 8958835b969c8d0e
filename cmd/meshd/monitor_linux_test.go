package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"meshd/tun/netns"
)

// Of all threads it is that of Go's runtime which wakes more rarely.
func TestCalmMonitor(t *testing.T) {
	netns.RequireRoot(t)
	if err := calmMonitor(); err != nil {
		t.Fatal(err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	calm := 0
	for _, task := range tasks {
		slack, err := os.ReadFile(fmt.Sprintf("/proc/%s/timerslack_ns", task.Name()))
		if err != nil {
			continue // it has ended
		}
		if strings.TrimSpace(string(slack)) == strconv.Itoa(monitorSlack) {
			calm++
		}
	}
	if calm != 1 {
		t.Errorf("%d threads of %d may be woken late, it should be the monitor alone", calm, len(tasks))
	}
}
