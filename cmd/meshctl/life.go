package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// life is a flag that takes days as well.
type life time.Duration

const maxDays = 100 * 365 // what a certificate takes

// String implements [pflag.Value].
func (l *life) String() string {
	if d := time.Duration(*l); d%(24*time.Hour) != 0 {
		return d.String()
	}
	return fmt.Sprintf("%dd", time.Duration(*l)/(24*time.Hour))
}

// Type implements [pflag.Value].
func (*life) Type() string { return "time" }

// Set implements [pflag.Value].
func (l *life) Set(text string) error {
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int64
		n, err = strconv.ParseInt(days, 10, 64)
		if errors.Is(err, strconv.ErrRange) && !strings.HasPrefix(days, "-") {
			n, err = math.MaxInt64, nil
		}
		d = time.Duration(min(n, maxDays+1)) * 24 * time.Hour
	}
	switch {
	case err != nil:
		return errors.New("expected a time such as 30m, 24h or 7d")
	case d > maxDays*24*time.Hour:
		return fmt.Errorf("at most %dd", maxDays)
	}
	*l = life(d)
	return nil
}
