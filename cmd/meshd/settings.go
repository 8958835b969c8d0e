package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"meshd/cmd/internal/setup"
	"meshd/mesh/member"
	"meshd/mesh/statedir"
	"meshd/overlay"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

// reloadTimeout bounds a reload that a signal asks for; each part answers within
// milliseconds, once it runs.
const reloadTimeout = 30 * time.Second

// settings owns the configuration in force: it reads the file again, applies what
// can change while the daemon runs, and knows what waits for a restart.
type settings struct {
	// fixed before the first reload
	path   string
	check  func(file *config.Config) error                        // what a start would check beyond the file itself
	apply  map[string]func(context.Context, *config.Config) error // by live key: makes the key as the configuration says
	notify func(reloading bool)                                   // called when a reload begins and ends
	log    *slog.Logger

	reloading sync.Mutex // one reload after the other
	inForce   atomic.Pointer[config.Config]
	waiting   atomic.Pointer[[]string] // keys for a restart
}

func newSettings(path string, cfg *config.Config, log *slog.Logger) *settings {
	s := &settings{path: path, notify: func(bool) {}, log: log}
	s.inForce.Store(cfg)
	s.waiting.Store(new([]string))
	return s
}

// Config implements [status.Settings].
func (s *settings) Config() status.ConfigReply {
	return status.ConfigReply{File: s.path, Config: string(config.Show(s.inForce.Load()))}
}

// Reload implements [status.Settings].
func (s *settings) Reload(ctx context.Context) (status.ReloadReply, error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	s.notify(true)
	defer s.notify(false)

	file, err := s.read()
	if err != nil {
		s.log.Error("configuration not reloaded, nothing is changed", "err", strings.ReplaceAll(err.Error(), "\n", "; "))
		if errors.Is(err, fs.ErrPermission) {
			return status.ReloadReply{}, fmt.Errorf("%w: %w", status.ErrUnreadable, err)
		}
		return status.ReloadReply{}, fmt.Errorf("%w:\n%w", status.ErrBadConfig, err)
	}
	answer := s.change(ctx, file)
	s.log.Info("configuration reloaded", "applied", keysOf(answer.Applied), "restart", keysOf(answer.Restart),
		"rejoin", keysOf(answer.Rejoin))
	level := slog.LevelError
	if errors.Is(ctx.Err(), context.Canceled) {
		level = slog.LevelInfo // the daemon ends, or whoever asked has gone
	}
	for _, c := range answer.Failed {
		s.log.Log(ctx, level, "key not applied, it stays as it was", "key", c.Key, "err", c.Error)
	}
	return answer, nil
}

func (s *settings) read() (*config.Config, error) {
	file, err := setup.LoadConfig(s.path)
	if err != nil {
		return nil, err
	}
	if err := s.check(file); err != nil {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	return file, nil
}

// change applies what it can of the file, key by key.
func (s *settings) change(ctx context.Context, file *config.Config) status.ReloadReply {
	old := s.inForce.Load()
	want := config.Reloaded(old, file)
	answer := status.ReloadReply{File: s.path}
	var failed []string
	for _, c := range config.Changes(old, file) {
		line := status.Change{Key: c.Key, Old: c.Old, New: c.New}
		switch {
		case c.Join:
			answer.Rejoin = append(answer.Rejoin, line)
		case !c.Live:
			answer.Restart = append(answer.Restart, line)
		default:
			if err := s.apply[c.Key](ctx, want); err != nil {
				line.Error = err.Error()
				answer.Failed, failed = append(answer.Failed, line), append(failed, c.Key)
				continue
			}
			answer.Applied = append(answer.Applied, line)
		}
	}
	s.inForce.Store(config.Reloaded(old, file, failed...))
	restart := keysOf(answer.Restart)
	s.waiting.Store(&restart)
	return answer
}

func keysOf(changes []status.Change) []string {
	keys := []string{}
	for _, c := range changes {
		keys = append(keys, c.Key)
	}
	return keys
}

// obey reloads at each signal, until ctx is done.
func (s *settings) obey(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			if ctx.Err() != nil {
				return // both had come
			}
		}
		ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
		_, _ = s.Reload(ctx) // it has logged what there is to say
		cancel()
	}
}

// served is what the status server shows: the node, and what its settings, its
// state and its door for Docker have to say.
type served struct {
	*overlay.Node
	settings *settings
	dir      *statedir.Dir
	door     *dockerDoor
}

// Status implements [status.Daemon].
func (s served) Status() status.Document {
	doc := s.Node.Status()
	if keys := *s.settings.waiting.Load(); len(keys) > 0 {
		doc.Health = append(doc.Health, status.Finding{Level: "info", Code: "restart_needed",
			Message: fmt.Sprintf("the config file was reloaded with changes that count when the daemon is restarted: %s", strings.Join(keys, ", "))})
	}
	ring := s.dir.Membership().Keyring
	doc.Node.GossipKeyMade = known(ring.Sending().Made)
	ring.Wipe(member.Keyring{})
	doc.Health = append(doc.Health, s.door.findings()...)
	return doc
}
