package mesh

import "slices"

// Change is one difference between two views, in words for a log: a message and
// key-value pairs.
type Change struct {
	Message string
	Args    []any
	Serious bool   // something is wrong, rather than new
	Code    string // of a finding; empty: it is none
}

// Diff tells what a person would want to know of a new view. old may be nil.
func Diff(old, now *View) []Change {
	if old == nil {
		old = &View{Networks: now.Networks}
	}
	var out []Change
	say := func(message string, args ...any) { out = append(out, Change{Message: message, Args: args}) }
	if old.State != now.State {
		say("state changed", "state", string(now.State))
	}
	if !slices.Equal(old.Networks, now.Networks) {
		names := []string{}
		for _, n := range now.Networks {
			names = append(names, n.Name)
		}
		say("networks changed", "networks", names)
	}
	for _, f := range now.Health {
		if !slices.Contains(old.Health, f) {
			say("health finding", "severity", f.Level, "code", f.Code, "message", f.Message)
			out[len(out)-1].Serious, out[len(out)-1].Code = f.Level != "info", f.Code
		}
	}
	for _, n := range now.Nodes {
		before, known := old.Node(n.ID)
		switch {
		case n.ID == now.Self:
			if !slices.EqualFunc(before.Leases, n.Leases, sameLease) {
				say("own leases changed", "leases", describe(n.Leases))
			}
		case !known:
			say("node joined", "node", n.Name, "id", n.ID.String(), "leases", describe(n.Leases))
		case n.Left && !before.Left:
			say("node left", "node", n.Name, "id", n.ID.String())
		case !slices.EqualFunc(before.Leases, n.Leases, sameLease):
			say("leases changed", "node", n.Name, "id", n.ID.String(), "leases", describe(n.Leases))
		}
	}
	for _, n := range old.Nodes {
		if _, known := now.Node(n.ID); !known {
			say("node is no longer a member", "node", n.Name, "id", n.ID.String())
		}
	}
	return out
}

func sameLease(a, b Lease) bool {
	return a.State == b.State && a.Network == b.Network && slices.Equal(a.Prefixes, b.Prefixes)
}

// describe lists leases as text: "10.86.17.0/24 held".
func describe(leases []Lease) []string {
	out := []string{}
	for _, l := range leases {
		for _, p := range l.Prefixes {
			out = append(out, p.String()+" "+l.State.String())
		}
	}
	return out
}
