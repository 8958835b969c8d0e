package gossip

import (
	"log/slog"
	"sync/atomic"
	"time"

	"meshd/mesh/member"
)

const (
	// saveAgain is the pause after the state could not be saved.
	saveAgain = time.Second
	// tableEvery bounds how old the saved table is; it is only a cache.
	tableEvery = time.Minute
	// peersEvery bounds how old the saved addresses are.
	peersEvery = time.Second
	// checkEvery is how often it is tried whether the state could be saved, or a
	// full disk would be noticed on the day that something must be.
	checkEvery = 10 * time.Second
)

// saver writes what must survive a restart, and tries again what failed. Run's
// goroutine owns it.
type saver struct {
	// fixed at construction
	store Store
	table func() [][]byte
	book  *book
	say   *limiter

	unsaved *atomic.Pointer[error] // what Findings tells

	use func(member.Keyring) // what is saved

	first        member.Durable // to be saved before more is said
	firstAt      time.Time      // when to try, as below
	renewed      *member.State  // to be saved soon, and nothing waits for it
	renewedAt    time.Time
	tableChanged bool
	tableAt      time.Time
	peersAt      time.Time
	checkAt      time.Time
}

// keep takes what must be durable, in place of any before, to save it at once.
func (s *saver) keep(out member.Output, now time.Time) {
	switch {
	case out.State != nil:
		s.renewed = nil
	case out.Keep != nil && s.first.State != nil:
		s.first.State = out.Keep
	case out.Keep != nil:
		s.renewed = out.Keep
	}
	if out.Any() {
		s.first.Add(out.Durable)
		s.firstAt = now
	}
}

// saved tells whether nothing waits to be saved before more is said.
func (s *saver) saved() bool { return !s.first.Any() }

// saveNow saves what must be before more is said, and tells whether it is.
func (s *saver) saveNow(now time.Time) bool {
	if s.saved() {
		return true
	}
	if now.Before(s.firstAt) {
		return false
	}
	err := s.write()
	s.note(err, now)
	if err != nil {
		s.firstAt = now.Add(saveAgain)
		s.say.say(slog.LevelError, "state is not saved, so nothing new is said; trying on", "err", err)
		return false
	}
	s.tableAt = now // has the admission, without which a lease counts for nothing after a restart alone
	return true
}

// write saves what must be before more is said.
func (s *saver) write() error {
	table := func() [][]byte {
		s.tableChanged = false
		return s.table()
	}
	return s.first.SaveTo(using{s.store, s.use}, table)
}

// using is a store whose keyrings are used once they are saved.
type using struct {
	Store
	use func(member.Keyring)
}

func (u using) SaveKeyring(k member.Keyring) error {
	if err := u.Store.SaveKeyring(k); err != nil {
		return err
	}
	u.use(k)
	k.Wipe(member.Keyring{})
	return nil
}

// check tries whether the state could be saved, if it is time.
func (s *saver) check(now time.Time) {
	if now.Before(s.checkAt) {
		return
	}
	err := s.store.Check()
	if err != nil {
		s.say.say(slog.LevelError, "state could not be saved now; trying on", "err", err)
	}
	s.note(err, now)
}

// note keeps how the last try went. One that failed is soon followed by another.
func (s *saver) note(err error, now time.Time) {
	if err == nil {
		s.unsaved.Store(nil)
		s.checkAt = now.Add(checkEvery)
		return
	}
	s.unsaved.Store(&err)
	s.checkAt = now.Add(saveAgain)
}

// saveCaches writes the table and the addresses, if they have changed and it is
// time.
func (s *saver) saveCaches(now time.Time) {
	if s.renewed != nil && !now.Before(s.renewedAt) {
		s.renewedAt = now.Add(saveAgain)
		s.saveRenewed()
	}
	if s.tableChanged && !now.Before(s.tableAt) {
		s.tableAt = now.Add(tableEvery)
		s.saveTable()
	}
	if s.book.changed && !now.Before(s.peersAt) {
		s.peersAt = now.Add(peersEvery)
		s.savePeers()
	}
}

func (s *saver) saveRenewed() {
	if err := s.store.SaveState(*s.renewed); err != nil {
		s.say.say(slog.LevelWarn, "state not saved, trying on", "err", err)
		return
	}
	s.renewed = nil
}

func (s *saver) saveTable() {
	err := s.store.SaveTable(s.table())
	if s.tableChanged = err != nil; err != nil {
		s.say.say(slog.LevelWarn, "table not saved, trying on", "err", err)
	}
}

func (s *saver) savePeers() {
	err := s.store.SavePeers(s.book.known)
	if s.book.changed = err != nil; err != nil {
		s.say.say(slog.LevelWarn, "peers not saved, trying on", "err", err)
	}
}

// next is when something is to be saved.
func (s *saver) next() (at time.Time, ok bool) {
	due := func(t time.Time, yes bool) {
		if yes && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	due(s.firstAt, !s.saved())
	due(s.renewedAt, s.renewed != nil)
	due(s.tableAt, s.tableChanged)
	due(s.peersAt, s.book.changed)
	due(s.checkAt, true)
	return at, ok
}

// finish writes, at the end, all that is not saved.
func (s *saver) finish() {
	if err := s.write(); err != nil {
		s.say.log.Error("state is not saved", "err", err)
	}
	if s.renewed != nil {
		s.saveRenewed()
	}
	if s.tableChanged {
		s.saveTable()
	}
	if s.book.changed {
		s.savePeers()
	}
}
