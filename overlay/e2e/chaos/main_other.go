//go:build !linux

// Command chaos needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "chaos: it needs Linux: it makes hosts out of network namespaces")
	os.Exit(1)
}
