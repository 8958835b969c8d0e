package config

import (
	"bytes"
	_ "embed"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

//go:embed config.yaml.tmpl
var templateText string

var fileTemplate = template.Must(template.New("config.yaml").Funcs(template.FuncMap{
	"quote":   strconv.Quote, // for what was parsed, a string of Go is one of YAML
	"address": Address,
}).Parse(templateText))

// Template gives the commented file that sets what c says, every key with its
// meaning. A name that is this host's default is left commented out, so that
// Template(Default()) is a file for any host.
func Template(c *Config) []byte {
	d := Default()
	if c == nil {
		c = d
	}
	var b bytes.Buffer
	err := fileTemplate.Execute(&b, map[string]any{
		"Config":      c,
		"DefaultName": c.Node.Name == d.Node.Name,
		"Labels":      flowMap(c.Node.Labels),
		"Seeds":       flowList(c.Seeds),
		"Advertise":   flowList(advertised(c)),
		"Level":       levelNames[c.Log.Level],
		"TTL":         shortDuration(c),
	})
	if err != nil {
		panic("config: template: " + err.Error()) // the template is ours, and a test runs it
	}
	return b.Bytes()
}

func flowList(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func flowMap(m map[string]string) string {
	var entries []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		entries = append(entries, strconv.Quote(k)+": "+strconv.Quote(m[k]))
	}
	return "{" + strings.Join(entries, ", ") + "}"
}

func advertised(c *Config) []string {
	var all []string
	for _, a := range c.Advertise {
		if a.Port() == c.Listen.Tunnel.Port() {
			a = netip.AddrPortFrom(a.Addr(), 0)
		}
		if a.Port() == 0 {
			all = append(all, a.Addr().String())
		} else {
			all = append(all, a.String())
		}
	}
	return all
}

// shortDuration writes 24h0m0s as 24h.
func shortDuration(c *Config) string {
	s := c.Lease.TTL.String()
	if short, ok := strings.CutSuffix(s, "m0s"); ok {
		s = short + "m"
		if short, ok := strings.CutSuffix(s, "h0m"); ok {
			s = short + "h"
		}
	}
	return s
}
