# `make` alone prints the targets: those with two hashes after their name.

SHELL         := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Root needs no sudo; everybody else is asked for a password when it is due.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# 40 hex digits and a describe such as v0.1.0-12-gdb6f412 or db6f412-dirty. In
# an archive without .git both are empty and Go's build information is used.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)

# CGO off: one static file that runs on any distribution. -trimpath: the same
# bytes wherever it is built. -s -w is not given: a profiler should have names.
export CGO_ENABLED := 0
GO      ?= go
LDFLAGS := $(if $(VERSION),-X main.version=$(VERSION)) $(if $(COMMIT),-X main.commit=$(COMMIT))
GOBUILD := $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

# Everything that is ours to format.
GOFILES = $(shell git ls-files --cached --others --exclude-standard '*.go' | grep -v '_bpfel\.go$$')
CFILES  = $(shell git ls-files --cached --others --exclude-standard 'bpf/*.c' 'bpf/*.h' | grep -v '/vmlinux')
SHFILES = $(shell git ls-files --cached --others --exclude-standard 'scripts/*' '.ci/*')

# Test binaries run as root, the compiler does not. One package at a time:
# packages that measure shares and rates must not compete for the CPUs.
TESTEXEC  := $(if $(SUDO),-exec "sudo -H env PATH=$(PATH) KALYPSO_REQUIRE_BPF=$(KALYPSO_REQUIRE_BPF) KALYPSO_REQUIRE_BROWSER=$(KALYPSO_REQUIRE_BROWSER) KALYPSO_UNWIND_ALL=$(KALYPSO_UNWIND_ALL) CI=$(CI)")
TESTFLAGS ?= -p 1 -count=1 -timeout 25m

.PHONY: help
help: ## this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/kalypso-agent, static; needs only Go
	@scripts/setup build
	$(GOBUILD) -o bin/kalypso-agent ./cmd/agent

.PHONY: clean
clean: ## remove what make built
	rm -rf bin profile.html
