# Everything that CI does, anybody can do with the same words; `make` lists them.

# Go 1.26 or newer, also where root's PATH lacks it.
ifneq ($(filter-out help clean test-deps uninstall,$(or $(MAKECMDGOALS),help)),)
  ifndef GO
    GO := $(shell .ci/find-go)
  endif
  ifeq ($(GO),)
    $(error Go 1.26 or newer was not found: install it from https://go.dev/dl/, or say where it is: make GO=/path/to/go)
  endif
  # Tests and the linter call go themselves.
  export PATH := $(dir $(GO)):$(PATH)
endif

# Git refuses a tree of another user's, as in `sudo make test`, and with it
# stamping by the go command. So stamp here; outside a git tree: unknown.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)
VERSION ?= $(or $(shell git -c safe.directory='$(CURDIR)' describe --tags --always --dirty 2>/dev/null),unknown)

# Where install puts what; DESTDIR is a tree to pack, and then nothing on this
# host changes.
PREFIX ?= /usr
DESTDIR ?=
UNITDIR ?= /lib/systemd/system
CNIDIR ?= /opt/cni/bin
SYSUSERSDIR ?= /usr/lib/sysusers.d
DOCKERDIR ?= /usr/lib/docker/plugins
BIN ?= bin

FUZZTIME ?= 30s
BENCH ?= .
ROUNDS ?= 5
SECONDS ?= 5
LAYOUT ?= both
SYSTEMS ?=
ONLY ?=
OUT ?=
SEEDS ?= 1000
SIM ?=
FROM ?= 1
N ?= 50
NODES ?= 10
DURATION ?= 10m
SEED ?=
STEP ?=
IDLE ?= 60s
PACE ?= 0s
PKG ?= ./...

BUILD = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'
LINT = $(GO) tool -modfile=.ci/tools.mod golangci-lint
# Under sudo, what is built still belongs to the caller.
GIVE_BACK = @if [ -n "$$SUDO_UID" ] && [ "$$(id -u)" = 0 ]; then chown -R "$$SUDO_UID:$$SUDO_GID" $(BIN); fi

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## bin/meshd, bin/meshctl and bin/mesh-cni, static
	$(BUILD) -o $(BIN)/ ./cmd/meshd ./cmd/meshctl ./cmd/mesh-cni
	$(GIVE_BACK)

SHARE = $(PREFIX)/share
INSTALLED = $(PREFIX)/bin/meshd $(PREFIX)/bin/meshctl $(CNIDIR)/mesh-cni $(UNITDIR)/meshd.service $(SYSUSERSDIR)/meshd.conf $(DOCKERDIR)/meshd.spec \
	$(SHARE)/bash-completion/completions/meshctl $(SHARE)/zsh/site-functions/_meshctl $(SHARE)/fish/vendor_completions.d/meshctl.fish
define COMPLETION # SHELL FILE
@mkdir -p '$(DESTDIR)$(dir $(2))' && $(BIN)/meshctl completion $(1) >'$(DESTDIR)$(2)' && chmod 0644 '$(DESTDIR)$(2)'
endef

.PHONY: install
install: build ## programs, service, its user, shell completion (root); PREFIX=/usr DESTDIR=
	install -d -m 0755 '$(DESTDIR)/etc/meshd'
	install -D -m 0755 -t '$(DESTDIR)$(PREFIX)/bin' $(BIN)/meshd $(BIN)/meshctl
	install -D -m 0755 -t '$(DESTDIR)$(CNIDIR)' $(BIN)/mesh-cni
	@install -d -m 0755 '$(DESTDIR)$(UNITDIR)'
	sed 's|/usr/bin/|$(PREFIX)/bin/|' examples/systemd/meshd.service >'$(DESTDIR)$(UNITDIR)/meshd.service'
	@chmod 0644 '$(DESTDIR)$(UNITDIR)/meshd.service'
	install -D -m 0644 examples/systemd/sysusers.conf '$(DESTDIR)$(SYSUSERSDIR)/meshd.conf'
	install -D -m 0644 -t '$(DESTDIR)$(DOCKERDIR)' examples/docker/meshd.spec
	$(call COMPLETION,bash,$(SHARE)/bash-completion/completions/meshctl)
	$(call COMPLETION,zsh,$(SHARE)/zsh/site-functions/_meshctl)
	$(call COMPLETION,fish,$(SHARE)/fish/vendor_completions.d/meshctl.fish)
	@if [ -n '$(DESTDIR)' ]; then exit; fi; \
	if command -v systemd-sysusers >/dev/null; then systemd-sysusers '$(SYSUSERSDIR)/meshd.conf'; \
	elif ! getent passwd meshd >/dev/null; then useradd --system --user-group --no-create-home --home-dir /var/lib/meshd --shell /usr/sbin/nologin meshd; fi; \
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; \
	echo 'Next: meshctl init or meshctl join, then systemctl enable --now meshd'

.PHONY: uninstall
uninstall: ## stop the service and remove what install put there; configuration, state and user stay
	@if [ -n '$(DESTDIR)' ]; then exit; fi; \
	if [ -d /run/systemd/system ]; then systemctl disable --now meshd; fi; \
	if [ -x '$(PREFIX)/bin/meshd' ]; then '$(PREFIX)/bin/meshd' --cleanup; fi
	rm -f $(INSTALLED:%='$(DESTDIR)%')
	@if [ -z '$(DESTDIR)' ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

.PHONY: demo
demo: build ## three hosts in network namespaces: a mesh in ten seconds (root, through sudo)
	$(BUILD) -o bin/ ./overlay/e2e/demo
	$(GIVE_BACK)
	@if [ "$$(id -u)" = 0 ]; then exec env MESHD_BIN='$(CURDIR)/bin' bin/demo; \
	elif command -v sudo >/dev/null; then echo "The demo makes network namespaces, which takes root:"; \
		exec sudo env MESHD_BIN='$(CURDIR)/bin' bin/demo; \
	else echo "make demo: network namespaces take root, and there is no sudo: run it as root" >&2; exit 77; fi

# Its tests have bounds in seconds, so nothing else runs beside them.
LAST = $(if $(filter ./...,$(PKG)),./overlay/e2e)

.PHONY: test
test: build ## every test that this machine allows, race detector on; PKG=./mesh/... for some
	@export MESHD_BIN='$(CURDIR)/bin'; \
	$(GO) run ./.ci/gotest $(if $(LAST),$$($(GO) list $(PKG) | grep -v '/overlay/e2e$$'),$(PKG)); failed=$$?; \
	$(if $(LAST),$(GO) run ./.ci/gotest $(LAST) || failed=1;) exit $$failed

.PHONY: race
race: test ## the same

.PHONY: e2e
e2e: build ## the end-to-end tests alone, as root
	@if [ "$$(id -u)" != 0 ]; then echo "make e2e: needs root: sudo make e2e" >&2; exit 77; fi
	@MESHD_BIN='$(CURDIR)/bin' MESHD_REQUIRE_ROOT=1 $(GO) run ./.ci/gotest -count=1 ./overlay/e2e/...

.PHONY: e2e-large
e2e-large: build ## N=50 daemons on this machine: start, all at once or PACE=600ms or ready apart, idle for IDLE=60s, restarts; prints figures (root)
	@if [ "$$(id -u)" != 0 ]; then echo "make e2e-large: needs root: sudo make e2e-large" >&2; exit 77; fi
	@MESHD_BIN='$(CURDIR)/bin' MESHD_REQUIRE_ROOT=1 MESHD_NODES='$(N)' MESHD_IDLE='$(IDLE)' MESHD_PACE='$(PACE)' \
		$(GO) test -count=1 -v -timeout 90m -run '^TestLarge$$' ./overlay/e2e

.PHONY: chaos
chaos: build ## DURATION=10m of random faults on NODES=10 daemons, all watched; SEED= STEP= to see one again, ONLY=kill,loss OUT=file (root)
	$(BUILD) -o $(BIN)/ ./overlay/e2e/chaos
	$(GIVE_BACK)
	@if [ "$$(id -u)" != 0 ]; then echo "make chaos: needs root: sudo make chaos" >&2; exit 77; fi
	@MESHD_BIN='$(abspath $(BIN))' $(BIN)/chaos -nodes '$(NODES)' -duration '$(DURATION)' $(if $(SEED),-seed '$(SEED)') $(if $(STEP),-step '$(STEP)') \
		$(if $(ONLY),-only '$(ONLY)') $(if $(OUT),-out '$(OUT)')

.PHONY: sim
sim: ## virtual time, SEEDS=1000 of each kind from FROM=1, on all processors: whole nodes; SIM=crowd: membership alone, quicker, leases expire
	@cd overlay/sim && $(GO) test -count=1 -timeout 0 -run '^($(if $(filter crowd,$(SIM)),TestCrowd,TestSim|TestSameFirstWish|TestCrowd))$$' \
		-sim.seeds=$(SEEDS) -sim.from=$(FROM) -sim.jobs=0

.PHONY: lint
lint: ## golangci-lint as pinned in .ci/tools.mod
	$(LINT) run $(PKG) ./.ci/gotest

.PHONY: fuzz
fuzz: ## every fuzz target in turn, FUZZTIME=30s each
	@GO='$(GO)' .ci/fuzz $(FUZZTIME)

.PHONY: bench
bench: build ## meshd and others side by side: ROUNDS=5 SECONDS=5 LAYOUT=both SYSTEMS= ONLY= OUT=docs/benchmarks (root)
	$(BUILD) -o $(BIN)/ ./overlay/e2e/bench
	$(GIVE_BACK)
	@if [ "$$(id -u)" != 0 ]; then echo "make bench: needs root: sudo make bench" >&2; exit 77; fi
	@MESHD_BIN='$(abspath $(BIN))' $(BIN)/bench -rounds '$(ROUNDS)' -seconds '$(SECONDS)' -layout '$(LAYOUT)' -systems '$(SYSTEMS)' -only '$(ONLY)' \
		-commit '$(VERSION)' $(if $(OUT),-out '$(OUT)') $(if $(filter docs/benchmarks,$(OUT)),-readme README.md)
	@if [ -n "$$SUDO_UID" ] && [ -n '$(OUT)' ]; then chown -R "$$SUDO_UID:$$SUDO_GID" '$(OUT)' README.md; fi

.PHONY: bench-containers
bench-containers: build ## what containers take, meshd beside Docker's Swarm: ROUNDS=5 SECONDS=5 SYSTEMS= ONLY= OUT=docs/benchmarks (root)
	$(BUILD) -o $(BIN)/ ./overlay/e2e/bench
	$(GIVE_BACK)
	@if [ "$$(id -u)" != 0 ]; then echo "make bench-containers: needs root: sudo make bench-containers" >&2; exit 77; fi
	@MESHD_BIN='$(abspath $(BIN))' $(BIN)/bench -containers -rounds '$(ROUNDS)' -seconds '$(SECONDS)' -systems '$(SYSTEMS)' -only '$(ONLY)' \
		-commit '$(VERSION)' $(if $(OUT),-out '$(OUT)')
	@if [ -n "$$SUDO_UID" ] && [ -n '$(OUT)' ]; then chown -R "$$SUDO_UID:$$SUDO_GID" '$(OUT)'; fi

.PHONY: microbench
microbench: ## benchmarks of single functions, BENCH=regexp for some
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem $$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs -n1 dirname | sort -u)

.PHONY: golden
golden: ## rewrite the golden files (those of the kernel need root); look at git diff then
	@for dir in $$(grep -rl --include='*_test.go' 'flag.Bool("update"' cmd mesh overlay tun | xargs -r -n1 dirname | sort -u); do \
		$(GO) test -count=1 ./$$dir -update || exit; done

.PHONY: format
format: ## gofmt
	$(GO) fmt ./... ./.ci/gotest

.PHONY: tidy
tidy: ## go.mod and go.sum
	$(GO) mod tidy

.PHONY: check
check: format tidy lint race ## before a commit: all of these, one after the other
.NOTPARALLEL:

.PHONY: test-deps
test-deps: ## install what the fuller tests need (Debian packages)
	@.ci/test-deps

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
