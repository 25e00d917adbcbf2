# `make` alone prints the targets: those with two hashes after their name.

SHELL         := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Root needs no sudo; everybody else is asked for a password when it is due.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# The version is in the file VERSION. Only the commit that is tagged with it may
# say so, without changes: others are v0.1.0-dev.db6f412ba3c9, and .dirty. In an
# archive without .git there is no commit.
NUMBER   := $(shell cat VERSION)
TAGGED   := $(shell git describe --tags --exact-match --dirty --match 'v$(NUMBER)' 2>/dev/null)
REVISION := $(shell git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null)
VERSION  ?= v$(NUMBER)$(if $(filter v$(NUMBER),$(TAGGED)),,-dev$(addprefix .,$(subst -,.,$(REVISION))))
COMMIT   ?= $(shell git rev-parse HEAD 2>/dev/null)

# CGO off: one static file that runs on any distribution. -trimpath: the same
# bytes wherever it is built; vet and tests have it too, so that packages are
# compiled once. -s -w is not given: a profiler should have names.
export CGO_ENABLED := 0
GO      ?= go
LDFLAGS := -X main.version=$(VERSION) $(if $(COMMIT),-X main.commit=$(COMMIT))
GOBUILD := $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

# Everything that is ours to format and lint.
OURS    = git ls-files --cached --others --exclude-standard
GOFILES = $(shell $(OURS) '*.go' | grep -v '_bpfel\.go$$')
CFILES  = $(shell $(OURS) 'bpf/*.c' 'bpf/*.h')
SHFILES = $(shell $(OURS) 'scripts/*' .ci/run '*.sh')

# Where nothing may be lacking, a test that cannot run is a test that failed.
ifdef CI
export KALYPSO_REQUIRE_BPF := 1
export KALYPSO_REQUIRE_BROWSER := 1
export KALYPSO_REQUIRE_TOOLS := 1
endif

# Test binaries run as root, the compiler does not. One package at a time:
# tests that measure shares and rates must not compete for the CPUs.
ASROOT     = sudo -H env PATH=$(PATH):/usr/sbin:/sbin CI=$(CI) KALYPSO_UNWIND_ALL=$(KALYPSO_UNWIND_ALL) KALYPSO_LONG=$(KALYPSO_LONG) \
             KALYPSO_TEST_CLUSTER=$$KALYPSO_TEST_CLUSTER KALYPSO_UPGRADE_FROM=$(KALYPSO_UPGRADE_FROM) \
             KALYPSO_REQUIRE_BPF=$(KALYPSO_REQUIRE_BPF) KALYPSO_REQUIRE_BROWSER=$(KALYPSO_REQUIRE_BROWSER) \
             KALYPSO_REQUIRE_TOOLS=$(KALYPSO_REQUIRE_TOOLS)
TESTFLAGS ?= -p 1 -count=1 -timeout 30m
GOTEST     = $(GO) test -trimpath $(TESTFLAGS) $(if $(SUDO),-exec "$(ASROOT)")

.PHONY: help
help: ## this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The agent is for Linux, kalypsoctl for macOS too.
LINUX     := $(filter Linux,$(shell uname -s))
NEEDLINUX  = @$(if $(LINUX),:,printf 'error: %s\ncause: %s\nfix:   %s\n' 'make $@ works on Linux only' 'it profiles a Linux kernel, and this is $(shell uname -s)' \
             'make build && bin/kalypsoctl cluster create     makes a Linux with Kubernetes in a virtual machine' >&2; exit 1)

.PHONY: build
build: ## bin/kalypso-agent (on Linux) and bin/kalypsoctl, static; needs only Go
	@scripts/setup build
	$(if $(LINUX),$(GOBUILD) -o bin/kalypso-agent ./cmd/agent)
	$(GOBUILD) -o bin/kalypsoctl ./cmd/kalypsoctl

.PHONY: profile
profile: ## build, profile this machine for 10 s, write profile.html
	$(NEEDLINUX)
	@scripts/setup build
	$(GOBUILD) -o bin/kalypso-agent ./cmd/agent
	@$(SUDO) bin/kalypso-agent record --all --duration 10s --output profile.html
	@$(if $(SUDO),sudo chown "$$(id -u):$$(id -g)" profile.html,:)
	@echo 'open it in a browser: file://$(CURDIR)/profile.html'

# What people know by these names. Flags go through: make deploy FLAGS='--profile small'.
FLAGS ?=
.PHONY: bin/kalypsoctl
bin/kalypsoctl:
	@scripts/setup build
	@$(GOBUILD) -o $@ ./cmd/kalypsoctl

.PHONY: cluster-colima
cluster-colima: bin/kalypsoctl ## a local K3s with eBPF in a virtual machine (Colima)
	bin/kalypsoctl cluster create --driver colima $(FLAGS)

.PHONY: cluster-kind
cluster-kind: bin/kalypsoctl ## a local Kubernetes in Docker (kind); nothing is profiled
	bin/kalypsoctl cluster create --driver kind $(FLAGS)

.PHONY: verify-ebpf
verify-ebpf: ## can this machine be profiled? kalypso-agent doctor
	$(NEEDLINUX)
	@scripts/setup build
	@$(GOBUILD) -o bin/kalypso-agent ./cmd/agent
	$(SUDO) bin/kalypso-agent doctor $(FLAGS)

.PHONY: deploy
deploy: bin/kalypsoctl ## the whole stack on the cluster of the kubeconfig
	bin/kalypsoctl charts pull
	bin/kalypsoctl install $(FLAGS)

.PHONY: undeploy
undeploy: bin/kalypsoctl ## take it away; volumes stay
	bin/kalypsoctl uninstall $(FLAGS)

.PHONY: test
test: ## all tests, with real eBPF, as root; installs what they need
	@scripts/setup test
	$(GOTEST) ./...

# Kubernetes is compiled before, as the user: minutes, once. Tests that install wait
# most of the time, so two packages of them run at once; where shares and rates are
# asked for, none is beside it.
CLUSTERTESTS ?= ./test/install/... ./test/pods/... ./test/cluster/... ./deploy/... ./test/agents/...
ALONE        := ./test/agents/...
.PHONY: test-cluster
test-cluster: ## installs on a real Kubernetes, with simulated nodes
	@scripts/setup test-cluster
	@KALYPSO_TEST_CLUSTER=$$($(GO) run -trimpath ./test/cluster/run -build) && export KALYPSO_TEST_CLUSTER && \
	for tests in '-p 2 $(filter-out $(ALONE),$(CLUSTERTESTS))' '$(filter $(ALONE),$(CLUSTERTESTS))'; do \
		case $$tests in *./*) $(GOTEST) $$tests || exit 1 ;; esac; \
	done

# The servers are of a module of their own; Prometheus is built without what looks
# for targets in clouds. A Pyroscope server is used where PYROSCOPE_BIN names its
# program. Without upstream charts in the folder KALYPSO_UPSTREAM_CHARTS only what
# needs none is tried; with KALYPSO_TEST_CLUSTER=1 (root, see test-cluster) the
# program too, on a real node.
.PHONY: test-backends
test-backends: ## what kalypsoctl verify proves, on real servers
	@scripts/setup build
	cd test/backends/servers && $(GO) vet -trimpath ./... && $(GO) build -trimpath -tags remove_all_sd -o $(CURDIR)/bin/backends/ \
		./collector github.com/prometheus/prometheus/cmd/prometheus github.com/versity/versitygw/cmd/versitygw
	KALYPSO_TEST_BACKENDS=1 $(GO) test -trimpath -count=1 -timeout 15m -v ./test/backends/
	KALYPSO_S3_SERVER=$(CURDIR)/bin/backends/versitygw $(GO) test -trimpath -count=1 -v -run Server ./deploy/bucket/

.PHONY: test-unwind-all
test-unwind-all: ## compare unwind rows with readelf over all of /usr/lib
	@scripts/setup test
	KALYPSO_UNWIND_ALL=1 $(GOTEST) -timeout 60m -v -run 'Readelf' ./profiler/cfi/...

# Needs no root and no eBPF of this machine's: emulators run the kernels.
.PHONY: test-kernels
test-kernels: ## Linux 6.1 and 6.12 on amd64 and arm64, emulated; KERNELFLAGS=-update writes the results
	@scripts/setup test-kernels
	@scripts/kernels bin/kernels
	KALYPSO_KERNELS=$(CURDIR)/bin/kernels $(GO) test -trimpath -count=1 -timeout 60m -v ./test/kernels/ $(KERNELFLAGS)

# A program writes them: Docker is not needed, and the same commit gives the same
# bytes. The tag is what the charts ask for.
CREATED ?= $(shell git log -1 --format=%ct 2>/dev/null)
.PHONY: images
images: ## container images of both, amd64 and arm64, into bin/images
	@scripts/setup build
	@for arch in amd64 arm64; do \
		echo "linux/$$arch"; \
		GOOS=linux GOARCH=$$arch $(GOBUILD) -o bin/linux-$$arch/kalypso-agent ./cmd/agent && \
		GOOS=linux GOARCH=$$arch $(GOBUILD) -o bin/linux-$$arch/kalypsoctl ./cmd/kalypsoctl || exit 1; \
	done
	@rm -rf bin/images
	@$(GO) run -trimpath ./docker/images -tag "$(NUMBER)" \
		-revision "$(COMMIT)" -created "$(or $(CREATED),0)" -binaries bin -o bin/images

# A folder of packaged upstream charts, from "kalypsoctl charts pull -d DIR", goes
# into ours with RELEASEFLAGS='-upstream DIR'; '-sign KEY' signs the checksums.
RELEASEFLAGS ?=
.PHONY: release
release: ## programs, images, charts, SBOMs and checksums into bin/release
	@scripts/setup build
	@$(GO) run -trimpath ./release -version "$(VERSION)" -revision "$(COMMIT)" -created "$(or $(CREATED),0)" -o bin/release $(RELEASEFLAGS)

# ARCH=amd64 is Linux on amd64 alone, which takes a quarter of the time.
ARCH ?= all
.PHONY: test-release
test-release: ## make release in two folders, which must give the same bytes
	@scripts/setup build
	KALYPSO_TEST_RELEASE=$(ARCH) $(GO) test -trimpath -count=1 -timeout 60m -v ./release/...

# Seeds run with every "make test"; this looks for new inputs.
FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (30s)
	@git grep -l '^func Fuzz' -- '*_test.go' | while read -r file; do \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file"); do \
			echo "$$file $$name"; \
			$(GO) test -trimpath -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")" || exit 1; \
		done; \
	done

BENCHFLAGS ?=
.PHONY: bench
bench: ## what profiling costs, beside perf record
	@scripts/setup bench
	$(GO) build -trimpath -o bin/bench ./test/bench
	@$(GOBUILD) -o bin/kalypso-agent ./cmd/agent
	@$(SUDO) bin/bench -agent bin/kalypso-agent $(BENCHFLAGS)

# The load is this program, built again and again without a cache.
SOAKTIME ?= 1h
.PHONY: soak
soak: ## the service for SOAKTIME (1h) on a machine that compiles; writes its chart
	@scripts/setup build
	$(GO) build -trimpath -o bin/soak ./test/soak
	@$(GOBUILD) -o bin/kalypso-agent ./cmd/agent
	@$(SUDO) bin/soak -check -agent bin/kalypso-agent -d $(SOAKTIME) -csv docs/reference/soak.csv -svg docs/reference/soak.svg \
		-load 'GOCACHE="$$(mktemp -d)" && export GOCACHE && $(GO) build -a -p 1 -o /dev/null ./cmd/agent; rm -rf "$$GOCACHE"'

# The compiler is pinned and paths are relative: the same source gives the
# same objects on every machine.
.PHONY: generate
generate: ## the BPF objects in bpf/, with the pinned clang
	@scripts/setup generate
	BPF2GO_CC=clang-19 BPF2GO_STRIP=llvm-strip-19 \
	BPF2GO_CFLAGS="-I/usr/include/$$(gcc -print-multiarch)" $(GO) generate ./...

.PHONY: fmt
fmt: ## lay out Go and BPF C
	@scripts/setup check
	gofmt -w $(GOFILES)
	clang-format-19 -i $(CFILES)

# What nothing here can run is compiled without being made fast.
UNUSED := -trimpath -gcflags='all=-N -l'
.PHONY: check
check: ## layout, go.mod, vet, lint, arm64, macOS, generated files
	@scripts/setup check
	@echo 'gofmt'
	@files=$$(gofmt -l $(GOFILES)); [ -z "$$files" ] || { echo "not laid out: $$files"; echo 'fix: make fmt'; exit 1; }
	@echo 'clang-format'
	@clang-format-19 --dry-run --Werror $(CFILES) || { echo 'fix: make fmt'; exit 1; }
	@echo 'shellcheck'
	@shellcheck $(SHFILES)
	@echo 'go.mod'
	@$(GO) mod tidy -diff || { echo 'fix: go mod tidy'; exit 1; }
	$(GO) vet -trimpath ./...
	GOARCH=arm64 $(GO) vet -trimpath ./...
	cd test/cluster/kubernetes && $(GO) vet -trimpath ./pause ./runc
	GOARCH=arm64 $(GO) build -trimpath -o /dev/null ./cmd/kalypsoctl
	GOOS=darwin GOARCH=amd64 $(GO) build $(UNUSED) -o /dev/null ./cmd/kalypsoctl
	GOOS=darwin GOARCH=arm64 $(GO) build $(UNUSED) -o /dev/null ./cmd/kalypsoctl
	GOOS=darwin GOARCH=arm64 $(GO) vet $(UNUSED) ./cmd/kalypsoctl/... ./deploy/...
	@if command -v golangci-lint >/dev/null; then \
		echo 'golangci-lint'; golangci-lint run; \
	else \
		echo 'staticcheck (golangci-lint is not installed)'; GOFLAGS="$$GOFLAGS -trimpath" $(GO) run $(STATICCHECK) ./...; \
	fi
	@echo 'generated files'
	@before=$$($(GENERATED)); $(MAKE) --no-print-directory generate && after=$$($(GENERATED)); \
	[ "$$before" = "$$after" ] || { echo 'generated files were not those of their source; they are now: commit them'; exit 1; }

# golangci-lint takes long to build on a small machine; its most useful part
# does not.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GENERATED    = git ls-files --cached --others --exclude-standard '*_bpfel.*' | sort | xargs sha256sum

.PHONY: clean
clean: ## remove what make built
	rm -rf bin profile.html
