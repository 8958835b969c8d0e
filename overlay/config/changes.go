package config

import "slices"

// Change is one key on which two configurations differ.
type Change struct {
	Key  string // for example "listen.tunnel"
	Old  string // as a file would write it
	New  string
	Live bool // it can change while the daemon runs
	Join bool // it counts only when the host joins a mesh anew
}

// Changes lists the keys on which two configurations differ, in the order of
// the file.
func Changes(old, new *Config) []Change {
	var all []Change
	for _, k := range keys {
		if k.isSection() {
			continue
		}
		// Taken over, not shown side by side: an advertised address without a
		// port is the same whatever the tunnel's port is.
		after := *old
		k.take(&after, new)
		if k.show(&after) != k.show(old) {
			all = append(all, Change{Key: k.path, Old: k.show(old), New: k.show(new), Live: k.effect == onReload, Join: k.effect == onJoin})
		}
	}
	return all
}

// Reloaded gives what a daemon that runs with old has in force once it took
// over what it can from new, except for the named keys. What [Changes] lists
// between the two afterwards waits for a restart.
func Reloaded(old, new *Config, except ...string) *Config {
	after := *old
	for _, k := range keys {
		if !k.isSection() && k.effect == onReload && !slices.Contains(except, k.path) {
			k.take(&after, new)
		}
	}
	return &after
}
