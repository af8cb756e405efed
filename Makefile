# `make` lists what there is. Nothing but Go, git and make has to be installed before.
# ARGS='...' hands flags on: make test ARGS='-run TestReclaim -v', make demo ARGS=--json.

SHELL := /bin/sh
MODULES := . tests bench
TOOL := go tool -modfile=$(CURDIR)/tools/go.mod
WITHSERVERS := .cache/withservers

# The race detector needs a C compiler, and Go turns cgo off where there is none.
RACE = $(if $(filter 1,$(shell go env CGO_ENABLED)),-race)
TIMEOUT = 15m

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(WITHSERVERS) build ## Run the demo (ARGS: its flags)
	@$(WITHSERVERS) --ensure-programs -- bin/streamkeel demo $(ARGS)

.PHONY: test
test: $(WITHSERVERS) ## Test every module on real servers (ARGS: flags of go test)
	@$(WITHSERVERS) -- $(MAKE) --no-print-directory go-test

.PHONY: test-long
test-long: export STREAMKEEL_TEST_LONG = 1
test-long: TIMEOUT = 120m
test-long: $(WITHSERVERS) ## Test, with the long tests too
	@$(WITHSERVERS) -- $(MAKE) --no-print-directory go-test TIMEOUT=$(TIMEOUT)

.PHONY: test-containers
test-containers: export STREAMKEEL_TEST_CONTAINERS = 1
test-containers: $(WITHSERVERS) ## Test on servers in containers
	@$(WITHSERVERS) --containers -- $(MAKE) --no-print-directory go-test

# What the targets above run once the servers are there: every module, whether or not one fails.
.PHONY: go-test
go-test:
	@[ -n "$(RACE)" ] || echo 'make: no C compiler, so the tests run without the race detector' >&2
	@status=0; \
	go test $(RACE) -timeout $(TIMEOUT) $(ARGS) ./... || status=1; \
	(cd tests && go test $(RACE) -timeout $(TIMEOUT) $(ARGS) ./...) || status=1; \
	(cd bench && go test -timeout $(TIMEOUT) $(ARGS) ./...) || status=1; \
	exit $$status

.PHONY: lint
lint: ## Check format, go vet, staticcheck and go.mod of every module
	@unformatted=$$($(TOOL) gofumpt -l .) || exit 1; \
	[ -z "$$unformatted" ] || { echo "not formatted (make fmt):"; echo "$$unformatted"; exit 1; }
	@set -e; for module in $(MODULES); do \
		(cd $$module && go mod tidy -diff && go vet ./... && $(TOOL) staticcheck ./...); \
	done
	@cd tools && go mod tidy -diff

.PHONY: fmt
fmt: ## Format the code
	@$(TOOL) gofumpt -w .

.PHONY: build
build: ## Build the commands into bin/
	@go build -buildvcs=false -o bin/ ./cmd/...

.PHONY: bench
bench: $(WITHSERVERS) ## Run the benchmarks (ARGS: their flags)
	@$(WITHSERVERS) -- go run -C bench . $(ARGS)

# Built each time: Go knows better than make what is up to date.
.PHONY: $(WITHSERVERS)
$(WITHSERVERS):
	@go build -C tests -buildvcs=false -o ../$(WITHSERVERS) ./withservers
