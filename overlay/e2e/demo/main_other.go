//go:build !linux

// Command demo needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "demo: it needs Linux: it makes hosts out of network namespaces")
	os.Exit(1)
}
