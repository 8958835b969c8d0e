//go:build linux

package main

// Bar is a ratio, or a figure of our own, that is to be reached.
type Bar struct {
	Name     string   `json:"name"`
	Layout   string   `json:"layout"`
	Value    *float64 `json:"value"` // nil: something it takes was not measured
	Bar      float64  `json:"bar"`
	AtMost   bool     `json:"at_most"` // else: at least
	Reach    *float64 `json:"reach,omitempty"`
	Unit     string   `json:"unit"`
	Met      bool     `json:"met"`
	Required string   `json:"required,omitempty"` // what was not measured
}

// wanted are the bars. The one for memory counts the peak, which is what a host
// must have.
var wanted = []struct {
	name        string
	layout      string
	key         string
	ours, other string // systems; no other: the figure itself
	bar, reach  float64
	atMost      bool
	unit        string // of the figure itself
}{
	{"TCP, against wireguard-go", plain, keyTCP1, sysMesh, sysWG, 2.5, 3.0, false, ""},
	{"TCP, against wireguard-go", nicLike, keyTCP1, sysMesh, sysWG, 2.0, 0, false, ""},
	{"TCP, against nebula", plain, keyTCP1, sysMesh, sysNebula, 1.2, 1.5, false, ""},
	{"TCP, ChaCha20-Poly1305, against wireguard-go", plain, keyTCP1, sysMeshC, sysWG, 1.6, 1.9, false, ""},
	{"64 B UDP, one flow, against wireguard-go", plain, keyUDP64, sysMesh, sysWG, 4, 5.5, false, ""},
	{"64 B UDP, one flow, against nebula", plain, keyUDP64, sysMesh, sysNebula, 1, 1.2, false, ""},
	{"64 B UDP, 1000 flows to 4 peers, against wireguard-go", plain, keyFlows, sysMesh, sysWG, 1.5, 0, false, ""},
	{"64 B UDP, 1000 flows to 4 peers, against nebula", plain, keyFlows, sysMesh, sysNebula, 1, 0, false, ""},
	{"RTT p50, against wireguard-go", plain, keyRTT50, sysMesh, sysWG, 0.5, 0.42, true, ""},
	{"RTT p99 beside TCP, against wireguard-go", plain, keyLoad99, sysMesh, sysWG, 0.5, 0.25, true, ""},
	{"memory under load", plain, keyPeak, sysMesh, "", 40, 25, true, "MB"},
	{"TCP, attached containers against their hosts", twoHosts, keyOfHosts, sysContainers, "", 0.85, 0, false, "x"},
	{"TCP back, attached containers against their hosts", twoHosts, keyOfHostsR, sysContainers, "", 0.85, 0, false, "x"},
	{"TCP, Docker containers against their hosts", twoHosts, keyOfHosts, sysDocker, "", 0.85, 0, false, "x"},
	{"TCP back, Docker containers against their hosts", twoHosts, keyOfHostsR, sysDocker, "", 0.85, 0, false, "x"},
	{"attach p95, control socket", crowd, keyAttach95, sysSocket, "", 150, 0, true, "ms"},
	{"detach p95, control socket", crowd, keyDetach95, sysSocket, "", 100, 0, true, "ms"},
	{"attach p95, mesh-cni", crowd, keyAttach95, sysCNI, "", 150, 0, true, "ms"},
	{"detach p95, mesh-cni", crowd, keyDetach95, sysCNI, "", 100, 0, true, "ms"},
}

// judge compares a report with what is wanted, as far as it has the layout.
func judge(r *Report) []Bar {
	var out []Bar
	for _, w := range wanted {
		measured := false
		for _, l := range r.Layouts {
			measured = measured || l.Name == w.layout
		}
		if !measured {
			continue
		}
		b := Bar{Name: w.name, Layout: w.layout, Bar: w.bar, AtMost: w.atMost, Unit: "x"}
		if w.reach != 0 {
			b.Reach = &w.reach
		}
		value, ok := r.median(w.layout, w.ours, w.key)
		if !ok {
			b.Required = w.ours
		}
		if w.other == "" {
			b.Unit = w.unit
		} else {
			other, there := r.median(w.layout, w.other, w.key)
			if !there || other == 0 {
				ok = false
				b.Required = w.other
			} else {
				value /= other
			}
		}
		if ok {
			b.Value = &value
			b.Met = value >= w.bar
			if w.atMost {
				b.Met = value <= w.bar
			}
		}
		out = append(out, b)
	}
	return out
}

func (r *Report) median(layout, system, key string) (float64, bool) {
	row := r.row(layout, system)
	if row == nil {
		return 0, false
	}
	v, ok := row.Values[key]
	return v.Median, ok
}
