package attach_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
)

// A host that could not follow is told again, though what it should follow is as it
// was before: it may have followed half of it.
func TestHostThatFailedIsToldAgain(t *testing.T) {
	r := newRig(t)
	broken := errors.New("the parent takes no link")
	var ports, calls int
	r.restart(t, attach.Options{Changed: func(context.Context) error {
		calls, ports = calls+1, 0
		for _, n := range r.Networks() {
			ports += len(n.Ports)
		}
		return broken
	}})
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a", Network: "web", Mode: attach.MACVLAN, Parent: "lo"}); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if ports != 0 {
		t.Errorf("the host was last told of %d links, and there are none", ports)
	}
	before := calls
	if _, err := r.Collect(t.Context(), start); !errors.Is(err, broken) || calls == before {
		t.Errorf("collect: %v after %d calls", err, calls-before)
	}
	broken = nil
	r.collect(t, start)
	before = calls
	r.collect(t, start)
	if calls != before {
		t.Error("a host that follows is told again and again")
	}
}

// unlisted is a store that cannot say what it has.
type unlisted struct{ *attachtest.Store }

func (unlisted) AttachmentNetworks() ([]string, error) { return nil, attachtest.ErrFailed }

// What is not known to be there is not removed.
func TestUnreadableStore(t *testing.T) {
	r := newRig(t)
	r.attach(t, attach.Ask{ID: "docker/e1"})
	was := r.host.String()
	if err := attach.New(attach.Options{Host: r.host, Store: unlisted{r.store}}).Load(t.Context()); !errors.Is(err, attachtest.ErrFailed) {
		t.Errorf("load: %v", err)
	}
	r.wantHost(t, was)
}

// The lease is kept for containers that nobody knows any more.
func TestDamagedDocumentKeepsTheLease(t *testing.T) {
	r := newRig(t)
	r.attach(t, attach.Ask{ID: "docker/e1", Network: "web"})
	if err := r.store.SaveAttachments("web", []byte(`{"network":"wob"}`)); err != nil {
		t.Fatal(err)
	}
	r.restart(t, attach.Options{})
	r.wantNetworks(t, `web in use: true, bridge "mbr-web", live [10.87.3.0/24], stale []`)
}

// A container on a physical link has its address for as long as it may run: a second
// link that it did not need goes alone.
func TestSpareLink(t *testing.T) {
	r := newRig(t)
	ask := attach.Ask{ID: "ctl/netns:blue/web", Network: "web", Mode: attach.MACVLAN, Parent: "eth0"}
	a := r.attach(t, ask)
	for _, restarted := range []bool{false, true} {
		r.host.Lose(a.Peer) // as the kernel tells it: it is in the container
		if _, err := r.Attach(t.Context(), ask); err != nil {
			t.Fatal(err)
		}
		if restarted {
			r.restart(t, attach.Options{})
		}
		r.collect(t, start)
		if ended := r.collect(t, start.Add(2*time.Minute)); len(ended) > 0 {
			t.Errorf("ended %v, which runs", ended)
		}
		r.wantHost(t, "")
	}
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/x", Network: "web", Addresses: addrs(a.Addresses[0].Addr().String())}); !errors.Is(err, attach.ErrTaken) {
		t.Errorf("its address again: %v", err)
	}
}

// All links go when the host starts again, those of which it sees nothing too.
func TestNextBootEndsWhatHadNoEndHere(t *testing.T) {
	r := newRig(t)
	r.restart(t, attach.Options{Boot: "first"})
	ask := attach.Ask{ID: "ctl/a", Network: "web", Mode: attach.MACVLAN, Parent: "eth0"}
	a := r.attach(t, ask)
	b := r.attach(t, attach.Ask{ID: "ctl/b", Network: "web", Mode: attach.MACVLAN, Parent: "eth0"})
	r.host.Lose(a.Peer)
	r.host.Lose(b.Peer)
	ends := func(want ...string) {
		t.Helper()
		r.collect(t, start)
		if ended := r.collect(t, start.Add(2*time.Minute)); !slices.Equal(ended, want) {
			t.Errorf("ended %v, want %v", ended, want)
		}
	}
	ends()
	r.restart(t, attach.Options{Boot: "first"})
	ends()
	r.restart(t, attach.Options{Boot: "second"})
	r.attach(t, ask) // its container was started again
	r.host.Lose(a.Peer)
	ends("ctl/b")
}

// Whoever is refused a use has none, also after a restart.
func TestUseThatFails(t *testing.T) {
	r := newRig(t)
	r.restart(t, attach.Options{Changed: func(context.Context) error { return attachtest.ErrFailed }})
	if _, err := r.Use(t.Context(), "docker/network/aa", "web"); !errors.Is(err, attachtest.ErrFailed) {
		t.Fatal(err)
	}
	r.wantNetworks(t)
	r.restart(t, attach.Options{})
	r.wantNetworks(t)
}

// What hangs on a link of containers would get past the rules for those.
func TestParentsOfOurs(t *testing.T) {
	r := newRig(t)
	for _, parent := range []string{"mbr-default", "mv-aaaaaaaaaa", "mc-aaaaaaaaaa", "mv-lan-aaaaaaaa"} {
		if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a", Mode: attach.MACVLAN, Parent: parent}); !errors.Is(err, attach.ErrBadAsk) {
			t.Errorf("on %s: %v", parent, err)
		}
	}
}

func TestMACOfAnother(t *testing.T) {
	r := newRig(t)
	a := r.attach(t, attach.Ask{ID: "ctl/a"})
	_, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/b", MAC: strings.ToUpper(a.MAC)})
	if !errors.Is(err, attach.ErrTaken) || !strings.Contains(err.Error(), "ctl/a") {
		t.Errorf("its MAC address for another: %v", err)
	}
	r.attach(t, attach.Ask{ID: "ctl/b", Network: "web", MAC: a.MAC}) // on another bridge
	r.attach(t, attach.Ask{ID: "ctl/c"})
}
