package registry

import "meshd/mesh/trust"

// Parsed keeps objects of one mesh that were parsed, and how their signatures were
// found to be. Registries that share it, see [Registry.Share], do that once for all
// of them: it is for simulations of many nodes, a daemon has none. Its zero value is
// ready, and it is not safe for concurrent use.
type Parsed struct {
	objects map[trust.Hash]any
}

// Share has the registry look for objects among those that others have parsed.
func (r *Registry) Share(p *Parsed) { r.parsed = p }

// once parses an object, unless that was done before.
func once[T any](p *Parsed, h trust.Hash, parse func() (*T, error)) (*T, error) {
	if p == nil {
		return parse()
	}
	if o, ok := p.objects[h].(*T); ok {
		return o, nil
	}
	o, err := parse()
	if err != nil {
		return nil, err
	}
	if p.objects == nil {
		p.objects = map[trust.Hash]any{}
	}
	p.objects[h] = o
	return o, nil
}
