//go:build linux

package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// The chart is a panel for each of these, one below the other, with a bar for each
// system. Numbers are pixels.
var panels = []struct{ key, title string }{
	{keyTCP1, "TCP, one stream, Mbit/s (more is better)"},
	{keyUDP64, "64-byte UDP packets, thousands a second (more is better)"},
	{keyRTT50, "round trip p50, microseconds (less is better)"},
	{keyPeak, "memory at its peak, MB (less is better)"},
}

const (
	chartWidth = 760
	labelWidth = 230
	valueWidth = 80
	barHeight  = 16
	barStep    = 22
	titleStep  = 30
	panelGap   = 18
	margin     = 16
)

// SVG draws the first layout. Systems without encryption are left out: next to
// them nobody else's bar could be seen.
func (r *Report) SVG() string {
	var body strings.Builder
	y := margin
	text := func(x, y int, anchor, weight, fill, s string) {
		fmt.Fprintf(&body, `<text x="%d" y="%d" text-anchor="%s" font-weight="%s" fill="%s">`, x, y, anchor, weight, fill)
		_ = xml.EscapeText(&body, []byte(s)) // a strings.Builder takes everything
		body.WriteString("</text>\n")
	}
	layout := plain
	if len(r.Layouts) > 0 {
		layout = r.Layouts[0].Name
	}
	for _, p := range panels {
		most := 0.0
		var shown []SystemInfo
		for _, s := range r.Systems {
			if s.Name == sysRaw || s.Name == sysVXLAN {
				continue
			}
			shown = append(shown, s)
			v, _ := r.median(layout, s.Name, p.key)
			most = max(most, v)
		}
		text(margin, y+14, "start", "bold", "#1b1f24", p.title)
		y += titleStep
		for _, s := range shown {
			text(labelWidth, y+12, "end", "normal", "#1b1f24", s.Title)
			v, ok := r.median(layout, s.Name, p.key)
			if !ok || most == 0 {
				text(labelWidth+8, y+12, "start", "normal", "#6e7781", "not measured")
			} else {
				fill := "#8c959f"
				if strings.HasPrefix(s.Name, "meshd") {
					fill = "#0969da"
				}
				width := max(1, v/most*(chartWidth-labelWidth-valueWidth-margin))
				fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%.1f" height="%d" rx="2" fill="%s"/>`+"\n", labelWidth+8, y, width, barHeight, fill)
				text(labelWidth+8+int(width)+6, y+12, "start", "normal", "#1b1f24", number(v))
			}
			y += barStep
		}
		y += panelGap
	}
	text(margin, y+4, "start", "normal", "#6e7781", fmt.Sprintf("%s, commit %s; %s; Linux %s; %d cores: %s",
		r.Date.Format("2006-01-02"), r.Commit, layoutTitles[layout], r.Machine.Kernel, r.Machine.Cores, r.Machine.CPU))
	y += margin
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%[1]d" height="%[2]d" viewBox="0 0 %[1]d %[2]d" font-family="Helvetica, Arial, sans-serif" font-size="12" role="img">
<title>meshd and others, measured side by side</title>
<rect width="100%%" height="100%%" fill="#ffffff"/>
%[3]s</svg>
`, chartWidth, y, body.String())
}
