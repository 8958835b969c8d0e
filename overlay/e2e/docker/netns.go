//go:build linux

package docker

import (
	"context"
	"fmt"
)

// Namespace gives a path of a running container's network namespace, which lies in
// the engine's own /run.
func (e *Engine) Namespace(ctx context.Context, container string) (string, error) {
	key, err := e.Docker(ctx, "inspect", "--format", "{{.NetworkSettings.SandboxKey}}", container)
	if err != nil {
		return "", err
	}
	first, _ := e.first()
	if key == "" || first == 0 {
		return "", fmt.Errorf("find namespace of %s on %s: it does not run", container, e.host.Name)
	}
	return fmt.Sprintf("/proc/%d/root%s", first, key), nil
}
