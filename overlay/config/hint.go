package config

import "strings"

// hint guesses which key was meant by an unknown name below a section, and
// asks; "" if nothing is close.
func hint(section, name string) string {
	const most = 64 // no key is nearly as long
	if len(name) > most {
		return ""
	}
	var same, elsewhere, near []string
	for _, k := range keys {
		s, n := k.split()
		switch {
		case s == section && fold(n) == fold(name):
			same = append(same, n)
		case fold(n) == fold(name), fold(k.path) == fold(section+name):
			elsewhere = append(elsewhere, place(s, n))
		case s == section && closeTo(fold(name), fold(n)):
			near = append(near, n)
		}
	}
	for _, guesses := range [][]string{same, elsewhere, near} {
		if len(guesses) > 0 {
			return "did you mean " + strings.Join(guesses, " or ") + "?"
		}
	}
	return ""
}

// fold makes one of stateDir, state-dir and STATE_DIR.
func fold(s string) string {
	return strings.NewReplacer("_", "", "-", "", ".", "", " ", "").Replace(strings.ToLower(s))
}

func place(section, name string) string {
	if section == "" {
		return name + " at the top level"
	}
	return name + " below " + section
}

// closeTo tells whether a person may have typed the one for the other: one
// slip, two in a longer name.
func closeTo(typed, name string) bool {
	most := 1
	if len(name) > 4 {
		most = 2
	}
	return slips(typed, name) <= most
}

// slips counts the letters left out, added, changed or swapped with their
// neighbour between a and b (optimal string alignment).
func slips(a, b string) int {
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			changed := row[j]
			if a[i] != b[j] {
				changed++
			}
			next[j+1] = min(changed, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
