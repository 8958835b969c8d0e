package overlay

import (
	"context"
	"log/slog"
	"time"

	"meshd/mesh"
)

// findingsEvery is how often findings of one code are logged at most. Whoever
// has a token, be it an old one, can cause as many as he likes; the status has
// those that hold now.
const findingsEvery = time.Minute

// reporter logs what a person would want to know of a new view.
type reporter struct {
	log   *slog.Logger
	codes map[string]*reported // there are few codes
}

type reported struct {
	next    time.Time
	omitted int
}

func newReporter(log *slog.Logger) *reporter {
	return &reporter{log, map[string]*reported{}}
}

func (r *reporter) say(changes []mesh.Change, now time.Time) {
	for _, c := range changes {
		level := slog.LevelInfo
		if c.Serious {
			level = slog.LevelWarn
		}
		args := c.Args
		if c.Code != "" {
			code := r.codes[c.Code]
			if code == nil {
				code = &reported{}
				r.codes[c.Code] = code
			}
			if now.Before(code.next) {
				code.omitted++
				continue
			}
			if code.omitted > 0 {
				args = append(args, "omitted", code.omitted)
			}
			*code = reported{next: now.Add(findingsEvery)}
		}
		r.log.Log(context.Background(), level, c.Message, args...)
	}
}
