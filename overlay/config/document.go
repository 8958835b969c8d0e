package config

import "gopkg.in/yaml.v3"

// Document gives what [Show] writes as maps, lists and scalars, to be encoded in
// another way.
func Document(c *Config) map[string]any {
	var doc map[string]any
	if err := yaml.Unmarshal(Show(c), &doc); err != nil {
		panic("config: read what Show wrote: " + err.Error()) // it parses back, which a test holds it to
	}
	return doc
}
