//go:build linux

package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshd/overlay/e2e/sandbox"
)

// What an administrator does, on a machine with systemd.
const administrator = `
say() { echo "+ $*"; "$@"; }
must() { say "$@" || fail "$*"; }
reaches() { for i in 1 2 3 4 5 6 7 8 9; do say meshctl ping --count 1 "$1" && return; sleep 0.3; done; fail "ping $1"; }
fail() { echo "FAILED: $*"; systemctl status meshd --no-pager; journalctl --no-pager -u meshd; exit 1; }
is() { [ "$1" = "$2" ] || fail "$3 is '$1', want '$2'"; }
must systemd-sysusers
must meshctl join - --node alpha </token
is "$(stat -c %U:%G:%a /var/lib/meshd)" meshd:meshd:700 "the state directory"
is "$(stat -c %U:%a /var/lib/meshd/keys)" meshd:600 "a state file"
is "$(stat -c %a /etc/meshd)" 755 "/etc/meshd"

# Ready means: it holds its lease and reaches the others.
must systemctl start meshd
must meshctl status --check ready
reaches beta
say meshctl status
grep mesh0 /proc/net/if_inet6 || fail "no IPv6 on mesh0, although it is off for new links alone"
is "$(cat /proc/sys/net/ipv4/ip_forward)" 1 ip_forward
is "$(stat -c %U:%G:%a /run/meshd/meshd.sock)" meshd:meshd:660 "the control socket"
pid=$(systemctl show -P MainPID meshd)
grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/$pid/status
is "$(stat -c %U /proc/$pid)" meshd "the daemon's user"
is "$(grep -c '0000000000001000$' /proc/$pid/status)" 5 "the number of sets that are CAP_NET_ADMIN alone"
is "$(grep '^Seccomp:' /proc/$pid/status | tr -dc 0-9)" 2 "seccomp"
is "$(journalctl -u meshd | grep -cE 'level=(WARN|ERROR)')" 0 "the number of warnings"

must systemctl reload meshd
is "$(systemctl show -P MainPID meshd)" "$pid" "after a reload, the process"
reaches beta
begin=$(date +%s%N)
must systemctl restart meshd
echo "preflight, stop and start took $((($(date +%s%N) - begin) / 1000000)) ms"
reaches beta

must meshctl down
for i in 1 2 3 4 5 6 7 8 9 10; do systemctl -q is-active meshd || break; sleep 0.1; done
sleep 1.5 # longer than RestartSec
is "$(systemctl is-active meshd)" inactive "after meshctl down, the service"

echo 'colour: blue' >>/etc/meshd/config.yaml
say systemctl start meshd && fail "it starts with a bad configuration"
sleep 1.5
is "$(systemctl show -P NRestarts meshd)" 0 "with a bad configuration, the number of restarts"
is "$(systemctl show -P ExecMainStatus meshd)" 78 "with a bad configuration, the exit code"
echo "ALL IS WELL"
`

const checkService = `[Unit]
SuccessAction=exit-force
FailureAction=exit-force
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh /administrator
StandardOutput=append:/result
StandardError=append:/result
TimeoutStartSec=60
`

// The unit under a real systemd, in namespaces of its own on a host of the lab.
// It runs where that can be.
func TestSystemd(t *testing.T) {
	t.Parallel()
	c := hosts(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	_, err := beta.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	token, err := beta.Token(t.Context())
	must(t, err)
	must(t, beta.Start())
	must(t, beta.WaitReady(bounded(t)))

	root := t.TempDir()
	bin := t.TempDir()
	installation := exec.CommandContext(t.Context(), "make", "-s", "-C", "../..", "install", "BIN="+bin, "DESTDIR="+root, "UNITDIR=/usr/lib/systemd/system")
	if out, err := installation.CombinedOutput(); err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
	must(t, os.Chmod(root, 0o755)) // its / is for all users
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		must(t, os.Symlink("usr/"+d, filepath.Join(root, d)))
	}
	for name, text := range map[string]string{
		"etc/passwd":                       "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":                        "root:x:0:\n",
		"etc/nsswitch.conf":                "passwd: files\ngroup: files\n",
		"etc/machine-id":                   "0123456789abcdef0123456789abcdef\n",
		"etc/systemd/system/check.service": checkService,
		"var/lib/empty":                    "",
		"var/log/empty":                    "",
		"administrator":                    administrator,
		"token":                            token,
		"result":                           "",
	} {
		path := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
	must(t, alpha.Host.Do(func() error { // as many distributions have it
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
	}))

	m, err := sandbox.NewMachine(root)
	if errors.Is(err, sandbox.ErrImpossible) {
		t.Skip(err)
	}
	must(t, err)
	cmd, started, err := m.Command()
	must(t, err)
	var console strings.Builder
	cmd.Stdout, cmd.Stderr = &console, &console
	machine, err := alpha.Host.Start(cmd)
	must(t, errors.Join(err, started()))
	t.Cleanup(func() {
		machine.Kill()
		<-machine.Done()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+soon)
	defer cancel()
	end := machine.Wait(ctx)
	raw, err := os.ReadFile(filepath.Join(root, "result"))
	must(t, err)
	switch result := string(raw); {
	case result == "" && strings.Contains(console.String(), "boot machine: "):
		t.Skip(console.String()) // no overlay, no pivot_root, ...
	case !strings.HasSuffix(result, "ALL IS WELL\n"):
		t.Errorf("the machine ended with %v\n%s\n%s", end, console.String(), result)
	default:
		t.Log(result)
	}
}
