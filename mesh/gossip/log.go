package gossip

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// quiet is how often a line of one kind is logged at most.
const quiet = time.Minute

// limiter logs at most a line a minute of each message, and says how many it
// left out. Messages are constants, so it does not grow.
type limiter struct {
	log *slog.Logger

	mu    sync.Mutex
	kinds map[string]*kind
}

type kind struct {
	next    time.Time
	omitted int
}

func newLimiter(l *slog.Logger) *limiter { return &limiter{log: l, kinds: map[string]*kind{}} }

// say logs one line of a kind, unless there was one within the last minute.
func (l *limiter) say(level slog.Level, msg string, args ...any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	now := time.Now()
	l.mu.Lock()
	k := l.kinds[msg]
	if k == nil {
		k = &kind{}
		l.kinds[msg] = k
	}
	if now.Before(k.next) {
		k.omitted++
		l.mu.Unlock()
		return
	}
	omitted := k.omitted
	k.next, k.omitted = now.Add(quiet), 0
	l.mu.Unlock()
	for i, a := range args {
		switch a := a.(type) {
		case string:
			args[i] = plainText(a)
		case error:
			args[i] = plainText(a.Error())
		}
	}
	if omitted > 0 {
		args = append(args, "omitted", omitted)
	}
	l.log.Log(context.Background(), level, msg, args...)
}

// plainText escapes what could fool a terminal: memberlist's errors and lines have
// strangers' words in them, and not every form of a log escapes all of it.
func plainText(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}

// junk tells of what no member sends, a line a minute.
func (l *limiter) junk(err error, from net.Addr) {
	l.say(slog.LevelWarn, "junk on the gossip port, or a host with another gossip key", "err", err, "address", from)
}

// lines takes memberlist's log, a line at a time.
type lines struct{ out *limiter }

func newLines(out *limiter) *log.Logger { return log.New(lines{out}, "", 0) }

// Write implements [io.Writer]. Nothing gets to memberlist that was not sealed and
// looked at, so all it has to say is about hints: who seems dead, whose old name
// lingers, what did not get through and will be tried again. That is for debugging.
func (w lines) Write(line []byte) (int, error) {
	level, text, _ := strings.Cut(string(bytes.TrimSpace(line)), "] ")
	if level != "[DEBUG" {
		w.out.say(slog.LevelDebug, "memberlist", "message", strings.TrimPrefix(text, "memberlist: "))
	}
	return len(line), nil
}
