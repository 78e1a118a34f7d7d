# Millrace: everything a developer types. Each target installs what it needs (deploy/dev/tools.sh) and needs no root.

.DEFAULT_GOAL := help
.PHONY: help demo test publish-proto lint fmt bench chaos fuzz clean-tools tools-demo tools-test fmt-check shell proto clippy build unit

# Outside the clone, so that several clones and a fresh one share what is built.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/millrace/target
# As many tests at once as there are cores, within reason: each may talk to an engine of its own.
export RUST_TEST_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); \
	if [ $$n -lt 2 ]; then n=2; elif [ $$n -gt 8 ]; then n=8; fi; echo $$n)

# Suites that are run in both ways of reading.
OVER_FAN_OUT := reshard moves recovery crash chaos mapping poison

TOOLS := deploy/dev/tools.sh
STEP := deploy/dev/step.sh
SCRIPTS := .ci/run deploy/dev/tools.sh deploy/dev/step.sh

help: ## List these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

demo: tools-demo ## Start everything on real engines, move 300,000 records, show them (KEEP=1 RECORDS=n SHARDS=n)
	@$(STEP) 'Build' cargo build --locked --workspace --bins
	@'$(CARGO_TARGET_DIR)/debug/millrace-demo' $(if $(filter-out 0,$(KEEP)),--keep) \
		$(if $(RECORDS),--records $(RECORDS)) $(if $(SHARDS),--shards $(SHARDS))

# Cheap checks first: a slip in formatting is not worth a build.
test: tools-test ## Install what is missing and run every check and every test
	@$(MAKE) --no-print-directory fmt-check shell proto clippy build unit

lint: tools-test ## The checks of `make test`, without its tests
	@$(MAKE) --no-print-directory fmt-check shell proto clippy

fmt: tools-test ## Format the Rust sources
	@cargo fmt --all

bench: tools-demo ## Measure, in release mode, and print JSON lines
	@$(STEP) 'Build (release)' cargo build --release --locked --workspace --bins
	@'$(CARGO_TARGET_DIR)/release/millrace-bench'

chaos: tools-test ## Random faults under load, then a count of every record (SECONDS=60 SEED=n RATE=n)
	@$(STEP) 'Build' cargo build --locked --workspace --bins
	@'$(CARGO_TARGET_DIR)/debug/millrace-chaos' $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(RATE),--rate $(RATE))

# Coverage counters are options of the stable compiler, so neither cargo-fuzz nor a nightly one is needed; with them,
# `cargo fuzz run decode` in data-plane/ runs the same target. What is found new stays beside the build, not in the tree.
FUZZ_HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
FUZZ_DIR := $(CARGO_TARGET_DIR)/fuzz
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks

fuzz: tools-test ## Arbitrary bytes through the decoder (SECONDS=600)
	@CARGO_TARGET_DIR='$(FUZZ_DIR)' RUSTFLAGS='$(FUZZ_FLAGS)' $(STEP) 'Build (fuzz)' cargo build --locked \
		--manifest-path data-plane/fuzz/Cargo.toml --target $(FUZZ_HOST) --bin decode
	@mkdir -p '$(FUZZ_DIR)/corpus/decode'
	@'$(FUZZ_DIR)/$(FUZZ_HOST)/debug/decode' '$(FUZZ_DIR)/corpus/decode' data-plane/fuzz/corpus/decode \
		-artifact_prefix='$(FUZZ_DIR)/' -max_total_time=$(or $(SECONDS),60) -max_len=4096 -timeout=20 \
		-rss_limit_mb=2048 -print_final_stats=1

clean-tools: ## Remove what deploy/dev/tools.sh installed
	@$(TOOLS) clean

tools-demo:
	@$(TOOLS) demo

tools-test:
	@$(TOOLS) test

fmt-check:
	@$(STEP) 'Formatting' cargo fmt --all --check

# Optional, because there is no shellcheck for every platform.
shell:
	@if command -v shellcheck >/dev/null; then $(STEP) 'Shell scripts' shellcheck $(SCRIPTS); \
	elif $(TOOLS) run shellcheck --version >/dev/null 2>&1; then \
		$(STEP) 'Shell scripts' $(TOOLS) run shellcheck $(SCRIPTS); \
	else echo '--- Shell scripts: skipped, no shellcheck here'; fi

# What was published once keeps working: proto/published.binpb is all of it, and whoever adds to the protocol adds to that.
PUBLISHED := proto/published.binpb

proto:
	@$(STEP) 'Protocol (buf lint)' $(TOOLS) run buf lint proto
	@$(STEP) 'Protocol (buf breaking)' $(TOOLS) run buf breaking proto --against $(PUBLISHED)
	@$(TOOLS) run buf build proto --exclude-source-info -o - | cmp -s - $(PUBLISHED) || \
		{ echo '$(PUBLISHED) does not have all of the protocol: run `make publish-proto`, and commit it' >&2; exit 1; }

publish-proto: tools-test ## Take additions to the protocol into what must not break any more
	@$(STEP) 'Protocol (buf breaking)' $(TOOLS) run buf breaking proto --against $(PUBLISHED)
	@$(TOOLS) run buf build proto --exclude-source-info -o $(PUBLISHED)

# The fuzz target is a workspace of its own: what the decoder takes in has to be in its lock file as well.
clippy:
	@$(STEP) 'Clippy' cargo clippy --workspace --all-targets --locked -- -D warnings
	@$(STEP) 'Lock file of the fuzz target' cargo fetch --locked --manifest-path data-plane/fuzz/Cargo.toml

# Tests start the binaries of other packages, which `cargo test` alone need not build.
build:
	@$(STEP) 'Build' cargo build --workspace --bins --locked

# What pipes go through, once more with pipes that read by enhanced fan-out.
unit:
	@$(STEP) 'Tests' cargo test --workspace --locked --no-fail-fast
	@MILLRACE_TEST_READING=fan-out $(STEP) 'Tests over enhanced fan-out' cargo test -p millrace-cli \
		-p millrace-integration-tests --locked --no-fail-fast $(OVER_FAN_OUT:%=--test %)
