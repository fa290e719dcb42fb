# Holdfast. `make` prints what can be made.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
# No cgo: one static binary that runs on any Linux.
BUILD    := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
# buf, staticcheck and gofumpt, at the versions of tools/go.mod, built once.
TOOL     := go tool -modfile=tools/go.mod
# Modules besides this one.
MODULES  := bench internal/etcdcompat internal/kubecompat
DEMO_DIR ?= /tmp/holdfast-demo

.PHONY: help
help: ## Print this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/holdfast
	$(BUILD) -o bin/holdfast ./cmd/holdfast

.PHONY: cli-darwin
cli-darwin: ## Build the CLI for macOS (bin/holdfast-darwin-arm64)
	GOOS=darwin GOARCH=arm64 $(BUILD) -o bin/holdfast-darwin-arm64 ./cmd/holdfast

.PHONY: images
images: ## Build the examples' OCI images (bin/images), without a registry, and the tour's helpers
	$(BUILD) -o bin/web ./examples/web
	$(BUILD) -o bin/shop ./examples/shop
	$(BUILD) -o bin/writer ./examples/writer
	$(BUILD) -o bin/netrules ./examples/netrules
	go run ./examples/image -binary bin/web -ref holdfast.dev/web:1 -o bin/images/web.tar
	go run ./examples/image -binary bin/shop -ref holdfast.dev/shop:1 -o bin/images/shop.tar

.PHONY: deps
deps: ## Install what running needs and a fresh Debian or Ubuntu lacks: runc
	@tools/install-deps runc

.PHONY: test-deps
test-deps: ## Install what the tests need besides: busybox (static), gcc and mkfs.ext4; unpack the distribution's containerd
	@tools/install-deps runc busybox gcc mkfs.ext4
	@tools/distribution-containerd bin/distribution

.PHONY: demo
demo: deps build images ## Play the tour on a cluster of three peers and two nodes (root)
	@examples/tour --data-dir $(DEMO_DIR)

# What waits for processes and containers more than it computes: played beside the
# simulation, which only computes, and gives way to it.
WAITING = ./internal/chaos ./agent/containerd ./agent/fake
SYSTEMS = ./internal/systemtest
RACE    = CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 go test -race -count=1 -timeout 15m -ldflags=-w

# raftstore takes longest, and begins first.
.PHONY: test
test: test-deps ## Run the whole test suite, race detector on, and 300 simulated histories without it
	$(RACE) ./raftstore $$(go list ./... | grep -vxF "$$(go list $(WAITING) $(SYSTEMS) ./raftstore)")
	@$(MAKE) -j2 --output-sync=target test-waiting test-virtual

.PHONY: test-systems
test-systems: test-deps ## Test whole clusters of the binary: namespaces, containers, kills (root; 5 minutes)
	CGO_ENABLED=0 go test -count=1 -timeout 20m $(SYSTEMS)

.PHONY: test-waiting test-virtual
test-waiting:
	$(RACE) -p 3 $(WAITING)

test-virtual: # at the size that the race detector does not bear
	CGO_ENABLED=0 nice go test -count=1 -run '^(TestManyWatchers|TestLeaderLoss|TestFaultMatrix)$$' ./raftstore
	CGO_ENABLED=0 nice go test -count=1 -run '^TestAllAddressesChange$$' ./peer
	CGO_ENABLED=0 nice go test -count=1 -run '^TestFencingHistories$$' ./apiserver -apiserver.fencing=40
	@nice $(MAKE) sim SEEDS=300

# make sim SEEDS=10000 FIRST=0: a process for each core; what fails leaves its history.
SEEDS ?= 300
FIRST ?= 0
SIM_DIR ?= /tmp/holdfast-sim

.PHONY: sim
sim: ## Play SEEDS simulated histories of the store against random faults (FIRST, SIM_DIR)
	@mkdir -p $(SIM_DIR) && CGO_ENABLED=0 go test -c -o $(SIM_DIR)/sim.test ./raftstore
	@cores=$$(nproc); each=$$(( ($(SEEDS) + cores - 1) / cores )); pids=(); \
	for i in $$(seq 0 $$((cores - 1))); do \
		(cd raftstore && exec $(SIM_DIR)/sim.test -test.run '^TestSimulation$$' -test.v -test.timeout 24h \
			-raftstore.seeds=$$each -raftstore.first=$$(( $(FIRST) + i * each )) -raftstore.keep=$(SIM_DIR) >$(SIM_DIR)/$$i.log 2>&1) & pids+=($$!); \
	done; \
	failed=0; for pid in "$${pids[@]}"; do wait $$pid || failed=1; done; \
	grep -h 'histories, \|faults, ' $(SIM_DIR)/*.log; \
	if [ $$failed = 1 ]; then grep -h '^    --- FAIL\|P[0-9]*: \|^panic' $(SIM_DIR)/*.log | head -50; echo "logs and histories of what failed: $(SIM_DIR)"; exit 1; fi

HISTORIES ?= 1000

.PHONY: sim-controllers
sim-controllers: ## Play HISTORIES simulated histories of each kind of workload, with changes of leader
	CGO_ENABLED=0 go test ./controllers -count=1 -timeout 2h -run '^Test(Rollouts|StatefulSets|DaemonSets|Jobs)' -controllers.histories=$(HISTORIES)

.PHONY: test-manifests
test-manifests: test-deps ## Apply the manifests that other people wrote, with small images of the same names, on two nodes (root; 2 minutes)
	HOLDFAST_MANIFESTS=1 CGO_ENABLED=0 go test ./internal/systemtest -count=1 -timeout 20m -run '^TestManifestsConverge$$' -v

# make sim-fencing FIRST=1000, or MUTANT=deadman: what must be red.
MUTANT ?=

.PHONY: sim-fencing
sim-fencing: ## Play 500 random histories of fencing in virtual time: cuts, freezes, kills, clocks, restarts (FENCING, FIRST, MUTANT)
	CGO_ENABLED=0 go test ./apiserver -count=1 -timeout 2h -v -run '^TestFencingHistories$$' -apiserver.fencing=$(or $(FENCING),500) -apiserver.fencing-first=$(FIRST) -apiserver.mutant=$(MUTANT) | grep -v '^ *\(=== \|--- PASS\)'

.PHONY: test-fencing
test-fencing: test-deps ## Play 30 histories of fencing with real containers, which write down when they ran (root; FENCING)
	CGO_ENABLED=0 go test ./internal/systemtest -count=1 -timeout 1h -v -run '^TestFencing$$' -systemtest.fencing=$(or $(FENCING),30)

# make chaos ROWS="1 3 4" REPEAT=5 SECONDS=60: without ROWS all of the fault matrix.
# OLD is an older version's binary for row 19; without it one is built from history.
ROWS    ?=
OLD     ?=
REPEAT  ?= 1
CHAOS_SECONDS = $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),60)

.PHONY: chaos
chaos: build ## Break real peers, row by row of the fault matrix (root; ROWS, REPEAT, SECONDS, OLD)
	@CGO_ENABLED=0 go build -o bin/chaos ./internal/chaos
	@bin/chaos -rows '$(ROWS)' -repeat $(REPEAT) -seconds $(CHAOS_SECONDS) -old '$(OLD)' | tee bench/results/chaos.txt

.PHONY: mutants
mutants: ## Put known bugs back into the store, one by one: the tests must see each
	@CGO_ENABLED=0 go run ./internal/mutants

.PHONY: test-etcd
test-etcd: build ## Run etcd's own client and etcdctl against three peers (2 minutes; QUICK=1: 20 s)
	cd internal/etcdcompat && CGO_ENABLED=0 go build -o ../../bin/etcdctl go.etcd.io/etcd/etcdctl/v3
	cd internal/etcdcompat && CGO_ENABLED=0 go vet . && \
		CGO_ENABLED=0 HOLDFAST=$(CURDIR)/bin/holdfast ETCDCTL=$(CURDIR)/bin/etcdctl go test -count=1 -timeout 10m $(if $(QUICK),-short) .

.PHONY: test-kube
test-kube: build ## Run kubectl of several versions, Helm and client-go's informer against three peers (QUICK=1: two versions)
	@tools=$$(QUICK=$(QUICK) internal/kubecompat/build) && cd internal/kubecompat && go vet . && \
		env HOLDFAST=$(CURDIR)/bin/holdfast CGO_ENABLED=0 bash -c "$$tools go test -trimpath -count=1 -timeout 20m $(if $(QUICK),-short) ."

.PHONY: bench-idle
bench-idle: deps build images ## Measure start, memory, CPU and log growth of an idle cluster (root; QUICK=1)
	@bench/idle | tee bench/results/idle.txt

.PHONY: bench-failover
bench-failover: deps build images ## Measure how long writes stop when the leader is killed (root; QUICK=1)
	@bench/failover | tee bench/results/failover.txt

.PHONY: bench-scheduler
bench-scheduler: build ## Measure scheduling, 10,000 pods on 5,000 nodes: the decisions alone, then create to binding through three peers (QUICK=1: a minute)
	@cd bench && CGO_ENABLED=0 go build -o ../bin/bench-schedule ./schedule
	@{ CGO_ENABLED=0 go test ./scheduler -run '^$$' -bench '^BenchmarkShapes$$' -benchtime $(if $(QUICK),1x,5x) -timeout 30m | bench/schedule/pure; \
		bin/bench-schedule $(if $(QUICK),-quick); } | tee $(if $(QUICK),/dev/null,bench/results/scheduler.txt)

.PHONY: bench-pods
bench-pods: deps ## Measure the start of pods on a node, what they cost, and logs, beside runc alone (root; QUICK=1)
	@CGO_ENABLED=0 go build -o bin/bench-pods ./internal/podbench
	@bin/bench-pods $(if $(QUICK),-quick) | tee bench/results/pods.txt

.PHONY: bench-store
bench-store: build ## Measure the replicated store beside etcd (about 20 minutes; QUICK=1)
	cd bench && CGO_ENABLED=0 go build -o ../bin/bench-store ./store
	bin/bench-store -out $(if $(QUICK),'',bench/results)

.PHONY: bench-api
bench-api: build ## Measure the API: creates, gets, lists, watches, agents, the start of the CLI (QUICK=1: a minute)
	cd bench && CGO_ENABLED=0 go build -o ../bin/bench-api ./api
	bin/bench-api -out $(if $(QUICK),'',bench/results)

.PHONY: generate
generate: ## Generate Go from proto/ and the schemas of Kubernetes' API types
	$(TOOL) buf generate
	go generate ./object/openapi
	go test -count=1 -run '^TestManual$$' ./cmd/holdfast -update

.PHONY: format
format: ## Format Go and proto files
	$(TOOL) gofumpt -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$\|connect\.go$$')
	$(TOOL) buf format -w

.PHONY: lint
lint: ## Check formatting, vet, staticcheck, proto lint
	@unformatted=$$($(TOOL) gofumpt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$\|connect\.go$$')); \
	if [ -n "$$unformatted" ]; then echo "not formatted (run make format):"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	for module in $(MODULES); do (cd $$module && go vet ./...); done
	$(TOOL) staticcheck ./...
	$(TOOL) buf lint
	$(TOOL) buf format -d --exit-code

.PHONY: licences
licences: ## Check that all modules in the programs have allowed licences
	@cd tools && go build -o ../bin/licences ./licences
	@bin/licences

.PHONY: vulncheck
vulncheck: ## Look for known vulnerabilities in what the programs call (needs vuln.go.dev)
	@if ! curl -fsS -m 20 -o /dev/null https://vuln.go.dev/index/db.json; then \
		echo "the vulnerability database at https://vuln.go.dev cannot be reached from here: NOTHING WAS CHECKED"; exit 3; fi
	$(TOOL) govulncheck ./...

# make fuzz FUZZ_TIME=10m: every Fuzz function by itself; what fails is kept in testdata/fuzz.
FUZZ_TIME ?= 10s
.PHONY: fuzz
fuzz: ## Play each Fuzz function for FUZZ_TIME, one after the other
	@grep -rlE '^func Fuzz' --include='*_test.go' . | sort | xargs -n1 grep -oE '^func Fuzz[A-Za-z0-9_]+' /dev/null | \
	sed -E 's#/[^/]*_test.go:func # #' | while read -r dir name; do \
		echo "== $$dir $$name"; go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZ_TIME) "$$dir"; done

.PHONY: check-generate
check-generate: generate ## Fail when generated files are not fresh
	@stale=$$(git status --short -- proto object/openapi docs/cli); \
	if [ -n "$$stale" ]; then echo "$$stale"; echo "not fresh: run make generate and commit"; exit 1; fi

.PHONY: check-breaking
check-breaking: ## Fail when proto/ breaks what the last commit on main spoke
	@if git rev-parse --verify -q HEAD~1 >/dev/null; then $(TOOL) buf breaking --against '.git#ref=HEAD~1'; fi

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
