package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// tokenDocument is what a token says, without its secrets.
type tokenDocument struct {
	Mesh struct {
		ID   mesh.ID `json:"id"`
		Name string  `json:"name"`
	} `json:"mesh"`
	Networks    []tokenNetwork `json:"networks"`
	Seeds       []string       `json:"seeds"`
	Serial      string         `json:"serial"`
	Uses        uint64         `json:"uses"` // 0: any number
	NamePattern string         `json:"name_pattern"`
	Ranges      []netip.Prefix `json:"ranges"`
	Pins        []netip.Prefix `json:"pins"`
	NotBefore   time.Time      `json:"not_before"`
	NotAfter    time.Time      `json:"not_after"`
	Usable      bool           `json:"usable"` // at this time
	CertLife    string         `json:"cert_life"`
}

type tokenNetwork struct {
	Name   string         `json:"name"`
	Ranges []netip.Prefix `json:"ranges"`
}

func (c *cli) tokenInspect() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "inspect TOKEN|-", Short: "Show what a token says, without its secrets",
		Long:    "Show what a token says: the mesh, where it will look for members, how long it is\nvalid and for whom. Secrets are not shown. With - it is read from standard input.",
		Example: "  meshctl token inspect -\n  meshctl token inspect - -o json < token",
		Args:    exactly("TOKEN"),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			token, err := c.readToken(args[0])
			if err != nil {
				return err
			}
			doc := inspect(token, time.Now())
			return o.print(c.stdout, doc, doc.writeText)
		},
	}
	o.addFlags(cmd, "{{.serial}}")
	return cmd
}

func inspect(t *trust.Token, now time.Time) *tokenDocument {
	credential := t.Credential
	d := &tokenDocument{
		Networks: []tokenNetwork{}, Seeds: append([]string{}, t.Seeds...), Serial: credential.Serial.String(),
		Uses: credential.Uses, NamePattern: credential.NamePattern,
		Ranges: append([]netip.Prefix{}, credential.Rights.Ranges...), Pins: append([]netip.Prefix{}, credential.Rights.Pins...),
		NotBefore: credential.NotBefore.UTC(), NotAfter: credential.NotAfter.UTC(),
		Usable: t.CheckTime(now) == nil, CertLife: credential.MaxCertLife.String(),
	}
	d.Mesh.ID, d.Mesh.Name = t.Charter.ID(), t.Charter.Name
	for _, n := range t.Charter.Networks {
		d.Networks = append(d.Networks, tokenNetwork{n.Name, n.Ranges()})
	}
	return d
}

func (d *tokenDocument) writeText(w io.Writer, _ bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	validity := "expired or not yet valid"
	if d.Usable {
		validity = "valid"
	}
	subnet := "any"
	switch {
	case len(d.Pins) > 0:
		subnet = "exactly " + prefixes(d.Pins)
	case len(d.Ranges) > 0:
		subnet = "from " + prefixes(d.Ranges)
	}
	fmt.Fprintf(t, "Mesh\t%s  %s\n", d.Mesh.Name, d.Mesh.ID)
	for _, n := range d.Networks {
		fmt.Fprintf(t, "Network\t%s: %s\n", n.Name, prefixes(n.Ranges))
	}
	fmt.Fprintf(t, "Seeds\t%s\n", cmp.Or(strings.Join(d.Seeds, ", "), "none"))
	fmt.Fprintf(t, "Valid\t%s to %s (%s)\n", d.NotBefore.Format(time.RFC3339), d.NotAfter.Format(time.RFC3339), validity)
	fmt.Fprintf(t, "For\t%s, named %s\n", usesText(d.Uses), cmp.Or(d.NamePattern, "as they like"))
	fmt.Fprintf(t, "Subnet\t%s\n", subnet)
	fmt.Fprintf(t, "Certificates\tvalid for %s\n", strings.TrimSuffix(d.CertLife, "0m0s"))
	fmt.Fprintf(t, "Serial\t%s\n", d.Serial)
	return t.Flush()
}

func prefixes(all []netip.Prefix) string {
	words := make([]string, len(all))
	for i, p := range all {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}
