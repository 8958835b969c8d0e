package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
)

func caFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "ca", "", "`FILE` of the CA key (default: ca.key beside the config file)")
}

// caPath is the CA key's file.
func (c *cli) caPath(flag string) string {
	if flag != "" {
		return absolute(flag)
	}
	return filepath.Join(filepath.Dir(absolute(c.configPath)), "ca.key")
}

// loadCA reads the CA key that signs for a mesh.
func (c *cli) loadCA(flag string, charter *trust.Charter) (ed25519.PrivateKey, error) {
	key, err := c.openCA(flag)
	if err != nil {
		return nil, err
	}
	if !charter.CA.Equal(key.Public()) {
		return nil, exit.With(exit.BadData, fmt.Errorf("CA key %s is that of another mesh (%s), not of %s (%s): name the right one with --ca",
			c.caPath(flag), trust.IdentityOf(key.Public().(ed25519.PublicKey)), charter.Name, charter.ID()))
	}
	return key, nil
}

// openCA reads a CA key, of whatever mesh.
func (c *cli) openCA(flag string) (ed25519.PrivateKey, error) {
	key, err := statedir.LoadCAKey(c.caPath(flag))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, exit.With(exit.NoInput, err)
	}
	return key, err
}
