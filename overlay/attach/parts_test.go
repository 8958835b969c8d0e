package attach_test

import (
	"meshd/mesh/statedir"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
)

// The parts fit, the real ones and the fake ones.
var (
	_ attach.Store = (*statedir.Dir)(nil)
	_ attach.Store = (*attachtest.Store)(nil)
	_ attach.Host  = (*attachtest.Host)(nil)
)
