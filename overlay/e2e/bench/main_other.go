//go:build !linux

// Command bench needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: it needs Linux: it makes hosts out of network namespaces")
	os.Exit(1)
}
