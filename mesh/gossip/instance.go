package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// instance is one life of memberlist, under one name at one address. It is
// memberlist's delegate: its callbacks run on memberlist's goroutines, so they
// copy, hand over and return.
type instance struct {
	// fixed at construction
	self    mesh.NodeID
	name    string
	address netip.AddrPort
	list    *memberlist.Memberlist
	said    *standing // of us
	inbox   *inbox
	taken   *taken // what need not come in again
	seals   *sealer
	told    *atomic.Pointer[told] // what others are told
	answers chan<- answer         // to our probes; capacity 1
	say     *limiter
	ctx     context.Context // done when the instance is shut down
	stop    context.CancelFunc
	moved   chan struct{} // signals, capacity 1, that live has changed, or the name is worn out

	// Our own news goes before what we relay, so that nobody's flood delays it.
	news, relayed memberlist.TransmitLimitedQueue

	mu    sync.Mutex
	live  map[string]netip.AddrPort // by instance name, without our own
	crowd *crowd                    // of those in live
}

// maxQueued bounds what waits to be broadcast. At six packets every 200 ms, of four
// objects each and each object eight times, this is about a minute's worth; a longer
// queue would spread stale news.
const maxQueued = 1024

func (g *Gossip) newInstance(address netip.AddrPort, t memberlist.Transport) (*instance, error) {
	i := &instance{
		self: g.opt.Self, name: newName(g.opt.Self), address: address, inbox: g.inbox, taken: &g.taken, seals: g.seals, told: &g.told,
		answers: g.answers,
		say:     g.say, moved: g.moved, live: map[string]netip.AddrPort{}, crowd: newCrowd(),
	}
	i.ctx, i.stop = context.WithCancel(context.Background())
	for _, q := range []*memberlist.TransmitLimitedQueue{&i.news, &i.relayed} {
		q.RetransmitMult = retransmitMult
		q.NumNodes = func() int { return 99 }
	}
	i.said = &standing{name: i.name, notify: i.signal}
	sealed := newSealedTransport(t, g.seals, g.bounds, i.said, g.say)
	var err error
	if i.list, err = memberlist.Create(config(i, sealed, newLines(g.say))); err != nil {
		return nil, errors.Join(fmt.Errorf("start memberlist: %w", err), sealed.Shutdown())
	}
	return i, nil
}

// retransmitMult makes everybody who has an object send it 4 * ceil(log10(n+1))
// times to random members, where n is always 99: 8 times. Whatever the size of
// the mesh, a given member misses it with probability e^-8, with every tenth
// packet lost e^-7, one in a thousand, and finds that by a digest. In a large
// mesh that starts, these copies are most of what its nodes do.
const retransmitMult = 4

// config is memberlist's preset for a LAN, with these changes.
func config(i *instance, t memberlist.Transport, log *log.Logger) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = i.name
	c.Transport = t
	c.Logger = log
	c.Delegate, c.Events, c.Alive, c.Ping, c.Conflict = i, i, i, i, i
	c.BindPort = int(i.address.Port())
	c.AdvertiseAddr, c.AdvertisePort = i.address.Addr().String(), int(i.address.Port())
	// Members may be in several clouds: half a second is short for a round trip
	// across the world through a busy link. Nothing hangs on fast detection.
	c.ProbeTimeout = time.Second
	c.ProbeInterval = 2 * time.Second
	// A node that hears no answers would probe up to eight times less often, so
	// as not to suspect others wrongly. But it needs the first answer after a
	// partition: by that it sees what it missed.
	c.AwarenessMaxMultiplier = 1
	// Twice the preset's three members at a time. A node that joins waits for
	// several ticks, and who is there goes first into each packet; but each tick
	// wakes an idle process, which at 100 ms took half of all its CPU.
	c.GossipNodes = 6
	// These exchanges are for who is there; of what is said they carry a digest. At
	// the preset's 30 s they were most of what an idle mesh of 50 nodes sends.
	// memberlist makes the interval longer in larger meshes: twice from 32 members
	// on, 4 times from 128.
	c.PushPullInterval = 2 * time.Minute
	// Who is there must get round as surely as what they say. It is the preset's, too.
	c.RetransmitMult = retransmitMult
	// Signatures and hashes do not compress, and a decompressor is one more
	// parser.
	c.EnableCompression = false
	// 1400 is the preset. It must stay above trust.MaxBroadcast and all
	// framing, and below the smallest MTU that IPv6 allows less a tunnel's.
	c.UDPBufferSize = 1400 - sealOverhead
	// It serves a warning that we do not read.
	c.QueueCheckInterval = 10 * time.Minute
	// Names are never used again, so there is nothing to reclaim; we resolve
	// names ourselves, anew at each try, so it needs no DNS.
	c.DNSConfigPath = ""
	return c
}

// shutdown ends the instance. memberlist's own goroutines notice within one
// probe; they can no longer send, receive or call us.
func (i *instance) shutdown() {
	i.stop()
	_ = i.list.Shutdown() // transport's errors mean that it is closed already
}

// others lists where the live members are, by instance name.
func (i *instance) others() map[string]netip.AddrPort {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.live)
}

// at is where a live member is.
func (i *instance) at(name string) (netip.AddrPort, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	at, ok := i.live[name]
	return at, ok
}

func (i *instance) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.live)
}

// send delivers a message to one member by stream. It blocks for as long as the
// transport allows.
func (i *instance) send(name string, msg []byte) error {
	to, ok := i.at(name)
	if !ok {
		return fmt.Errorf("send to %s: not a live member", name)
	}
	return i.list.SendReliable(&memberlist.Node{Name: name, Addr: to.Addr().AsSlice(), Port: to.Port()}, msg)
}

// publish spreads an object of our own.
func (i *instance) publish(object []byte) { i.news.QueueBroadcast(newBroadcast(object)) }

// relay passes on what somebody else has said.
func (i *instance) relay(object []byte) {
	i.relayed.QueueBroadcast(newBroadcast(object))
	i.relayed.Prune(maxQueued)
}

// newBroadcast makes the message of one object. A record takes the place of the
// same node's that is still waiting, which is older: the core passes on nothing
// that is outdated.
func newBroadcast(object []byte) broadcast {
	name := string(object)
	if r, err := trust.ParseRecord(object); err == nil {
		name = "record " + string(r.Certificate[:])
	}
	return broadcast{name, encodeObjects(math.MaxInt, object)}
}

// broadcast is one queued message. Of two with one name the later one counts.
type broadcast struct {
	name    string
	message []byte
}

func (b broadcast) Name() string    { return b.name }
func (b broadcast) Message() []byte { return b.message }
func (b broadcast) Finished()       {}

func (b broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(memberlist.NamedBroadcast)
	return ok && o.Name() == b.name
}

// NodeMeta implements [memberlist.Delegate]: all that there is to say is signed.
func (i *instance) NodeMeta(int) []byte { return nil }

// GetBroadcasts implements [memberlist.Delegate].
func (i *instance) GetBroadcasts(overhead, limit int) [][]byte {
	out := i.news.GetBroadcasts(overhead, limit)
	for _, b := range out {
		limit -= overhead + len(b)
	}
	return append(out, i.relayed.GetBroadcasts(overhead, limit)...)
}

// NotifyMsg implements [memberlist.Delegate]. What does not fit the inbox is
// dropped: it was sent several times, and the next exchange has it as well. For the
// same reason most of what comes was had before, and that does not wake the loop.
func (i *instance) NotifyMsg(raw []byte) {
	m, err := parseMessage(raw)
	if err != nil || m.kind == msgState || m.kind == msgDigest {
		i.refuse(err)
		return
	}
	if i.ctx.Err() != nil || m.kind == msgObjects && i.taken.hasAll(m.objects, time.Now()) {
		return
	}
	m, _ = parseMessage(bytes.Clone(raw)) // it was right just now
	i.inbox.put(m)
}

// LocalState implements [memberlist.Delegate]. Who joins has no tunnel yet, and
// gets the whole table.
func (i *instance) LocalState(join bool) []byte {
	if join {
		return encodeState(i.name, i.seals.keys.Load().send.id, i.told.Load().table)
	}
	return encodeDigest(i.name, i.told.Load().set.Digest())
}

// MergeRemoteState implements [memberlist.Delegate]. An exchange is worth a
// wait, since the other side counts on its having been heard.
func (i *instance) MergeRemoteState(raw []byte, _ bool) {
	m, err := parseMessage(raw)
	if err != nil || m.kind != msgState && m.kind != msgDigest {
		i.refuse(err)
		return
	}
	if m.from == i.name {
		return // we joined ourselves, through an address that we did not know as ours
	}
	if m.kind == msgDigest {
		if at, live := i.at(m.from); live {
			i.heard(m.from, at, m.digest)
		}
		return
	}
	copied := func() message {
		m, _ := parseMessage(bytes.Clone(raw)) // it was right just now
		m.objects = newest(m.objects)
		return m
	}
	if !i.inbox.putTable(i.ctx, copied) && i.ctx.Err() == nil {
		i.say.say(slog.LevelWarn, "too busy to take in a table, the next exchange will")
	}
}

func (i *instance) refuse(err error) {
	if i.ctx.Err() == nil {
		i.say.say(slog.LevelWarn, "a member sends what this version does not understand", "err", err)
	}
}

var errForeign = errors.New("another version of memberlist's protocol, or metadata")

// speaksOurs tells whether a node speaks as all members do. memberlist exchanges
// tables with nobody while it has heard of one whose version does not suit all
// others, be that one made up.
func speaksOurs(n *memberlist.Node) bool {
	const spoken = memberlist.ProtocolVersion2Compatible
	return n.PMin <= spoken && spoken <= n.PMax && n.PCur == spoken &&
		n.DMin == 0 && n.DMax == 0 && n.DCur == 0 && len(n.Meta) == 0
}

// NotifyAlive implements [memberlist.AliveDelegate]. It comes before a name is
// taken up, and with all that is said of one later.
func (i *instance) NotifyAlive(n *memberlist.Node) error {
	if !speaksOurs(n) {
		return errForeign
	}
	id, ok := parseName(n.Name)
	if !ok {
		return fmt.Errorf("%.80q is no instance name", n.Name)
	}
	if address, ok := netip.AddrFromSlice(n.Addr); !ok || !usable(netip.AddrPortFrom(address, n.Port)) {
		return fmt.Errorf("nobody can be at %x", n.Addr)
	}
	if n.Name == i.name {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, known := i.live[n.Name]; !known && !i.crowd.room(id, time.Now()) {
		return errCrowd
	}
	return nil
}

// NotifyConflict implements [memberlist.ConflictDelegate]. Who is said to be elsewhere
// does not deny that, and whoever believes it believes no word of ours any more.
func (i *instance) NotifyConflict(known, _ *memberlist.Node) {
	if known.Name == i.name {
		i.said.wear()
	}
}

// NotifyJoin implements [memberlist.EventDelegate].
func (i *instance) NotifyJoin(n *memberlist.Node) {
	address, ok := netip.AddrFromSlice(n.Addr)
	id, _ := parseName(n.Name)
	if !ok || id == i.self {
		return // ourselves, or our own past
	}
	i.mu.Lock()
	if _, known := i.live[n.Name]; !known {
		i.crowd.came(id)
	}
	i.live[n.Name] = plain(netip.AddrPortFrom(address, n.Port))
	i.mu.Unlock()
	i.signal()
}

// NotifyLeave implements [memberlist.EventDelegate].
func (i *instance) NotifyLeave(n *memberlist.Node) {
	i.mu.Lock()
	if _, known := i.live[n.Name]; known {
		id, _ := parseName(n.Name)
		i.crowd.went(id)
		delete(i.live, n.Name)
	}
	i.mu.Unlock()
	i.signal()
}

// admit says who is a member.
func (i *instance) admit(members map[mesh.NodeID]bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.crowd.admit(members)
}

// NotifyUpdate implements [memberlist.EventDelegate]: there is no metadata.
func (i *instance) NotifyUpdate(*memberlist.Node) {}

func (i *instance) signal() {
	select {
	case i.moved <- struct{}{}:
	default:
	}
}
