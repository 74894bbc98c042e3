# `make` lists what there is to make. Tools come from tools/go.mod: nothing but Go needs to be installed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TSAPI := clients/ts/packages/client/src/gen clients/ts/packages/effect/src/gen
GOCLIENTS := clients/go clients/go/adk
TOOL := go tool -modfile=tools/go.mod
IMAGE ?= holdfast:dev
BENCH ?=
COUNT ?= 1
RUNS ?= 3
PGBOUNCER ?= /usr/sbin/pgbouncer
VERSIONS ?= 16 17 18
LAYERS ?= ./db/... ./object/... ./jobs/... ./handlers/...
CACHE ?= /var/tmp/holdfast-postgres

.PHONY: help
help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build ./holdfast, static and stripped
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o holdfast ./cmd/holdfast

.PHONY: image
image: ## Build the container image (IMAGE=holdfast:dev)
	docker build --tag "$(IMAGE)" --build-arg VERSION="$$(git describe --tags --exact-match 2>/dev/null || true)" \
		--build-arg COMMIT="$$(git describe --always --dirty --abbrev=40 --exclude '*')" .

.PHONY: generate
generate: ## Write gen/, docs/api/, docs/errors.md and the clients' types anew from proto/ and queries/
	@# A file that nothing generates any more must go, so the folders are emptied, but only once the inputs are known to be good.
	$(TOOL) buf build --output /dev/null
	$(TOOL) sqlc compile
	rm -rf gen docs/api clients/go/gen $(TSAPI)
	$(TOOL) buf generate
	$(TOOL) buf generate --template buf.gen.go.yaml
	$(TOOL) buf build --as-file-descriptor-set --output - | go run -C tools ./apidoc ../docs/api
	$(TOOL) buf build --as-file-descriptor-set --output - | go run -C tools ./tsapi $(addprefix ../,$(TSAPI))
	$(TOOL) sqlc generate
	$(TOOL) genqlient
	$(TOOL) buf build --output - --path proto/holdfast/error | go run ./handlers/problem/errorsdoc >docs/errors.md

.PHONY: console
console: ## Write console/dist from clients/ts/console and the packages that it uses; needs Node
	cd clients/ts && npm run dist -w console

.PHONY: check-generated
check-generated: generate ## Fail where what is generated is not what generate writes
	@git diff --exit-code -- gen docs/api docs/errors.md clients/go/gen $(TSAPI)
	@new=$$(git ls-files --others --exclude-standard -- gen docs/api docs/errors.md clients/go/gen $(TSAPI)); \
	if [ -n "$$new" ]; then printf 'generated, but not committed:\n%s\n' "$$new" >&2; exit 1; fi

.PHONY: fmt
fmt: ## Format Go files
	$(TOOL) golangci-lint fmt

.PHONY: lint
lint: lint-go lint-proto ## Lint Go and proto files

.PHONY: lint-go
lint-go: ## Lint Go files
	$(TOOL) golangci-lint config verify
	$(TOOL) golangci-lint run

.PHONY: lint-proto
lint-proto: ## Lint proto files
	$(TOOL) buf lint

.PHONY: breaking
breaking: ## Fail where proto/ breaks its last release (AGAINST=commit names another)
	@.ci/breaking $(AGAINST)

.PHONY: vet
vet: ## go vet
	go vet ./...

.PHONY: test
test: ## Run all tests
	go test ./...

.PHONY: test-race
test-race: ## Run all tests under the race detector
	go test -race -timeout=20m ./...

.PHONY: test-docker
test-docker: ## Run the tests that need a database again, in Docker (LAYERS=packages)
	HOLDFAST_TEST_BACKEND=docker go test -count=1 $(LAYERS)

.PHONY: test-pooler
test-pooler: ## Run those that speak SQL, and every RPC, through PgBouncer in transaction mode (PGBOUNCER=path)
	HOLDFAST_TEST_BACKEND=local HOLDFAST_TEST_POOLER=$(PGBOUNCER) go test -count=1 ./db ./object ./jobs ./handlers

.PHONY: test-faults
test-faults: ## Run the tests of faults, so many times (COUNT=1)
	go test -count=$(COUNT) -timeout=$$((10 + 5 * $(COUNT)))m -run 'Fault|DiskFull|Killed' ./cmd/holdfast

.PHONY: test-versions
test-versions: ## Run the tests of the layers that speak SQL on other Postgres versions (VERSIONS, downloads to CACHE)
	@for v in $(VERSIONS); do \
		bin=$$(.ci/postgres $$v $(CACHE)); \
		echo "Postgres $$v"; \
		HOLDFAST_TEST_BACKEND=local HOLDFAST_POSTGRES_BIN=$$bin go test -count=1 ./db ./object ./jobs; \
	done

.PHONY: test-alerts
test-alerts: ## Try the alert rules (needs promtool, of Debian's prometheus)
	promtool check rules deploy/prometheus/alerts.yaml
	promtool test rules deploy/prometheus/alerts_test.yaml

.PHONY: test-deploy
test-deploy: ## Check the files in deploy/ with the types of Kubernetes and of Cloud Run
	go vet -C deploy/check ./...
	go test -C deploy/check ./...

.PHONY: test-attacks
test-attacks: ## Attack a server and see that nobody else notices
	HOLDFAST_ATTACKS=1 go test -count=1 -timeout=20m -run TestAttacks ./cmd/holdfast

.PHONY: attack-table
attack-table: ## Measure the same in full and write the table of docs/security.md (RUNS=3)
	HOLDFAST_ATTACK_TABLE="$(CURDIR)/docs/security.md" HOLDFAST_ATTACK_RUNS=$(RUNS) go test -count=1 -timeout=90m -run TestAttacks -v ./cmd/holdfast

.PHONY: test-typescript
test-typescript: ## Test the TypeScript client in Node, Chromium and workerd (needs Node 20, and Debian's chromium)
	.ci/typescript

.PHONY: test-go-client
test-go-client: ## Vet and test the Go client and what is built on it
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	go build -o "$$dir/holdfast" ./cmd/holdfast; \
	for module in $(GOCLIENTS); do \
		go vet -C $$module ./...; \
		HOLDFAST_BIN=$$dir/holdfast go test -C $$module -count=1 ./...; \
	done; \
	HOLDFAST_BIN=$$dir/holdfast go test -C tools -count=1 ./goproxy

.PHONY: bench
bench: ## Measure a server next to pgbench (BENCH='--only hot --duration 3s')
	go run -C bench . $(BENCH)

.PHONY: test-bench
test-bench: ## Vet and test the benchmark
	go vet -C bench ./...
	go test -C bench ./...

.PHONY: smoke
smoke: ## Start the development server, call it, stop it
	.ci/smoke

.PHONY: pitr
pitr: ## Back a cluster up, lose it, recover it to a moment, compare
	.ci/pitr

.PHONY: ci
ci: ## All that CI does; on Debian, as root, it installs what it needs
	.ci/run
