# Building needs Rust 1.92 or later and a C compiler (`build-essential` on Debian): `cargo build --release`.
# Targets: `make help`.

.DEFAULT_GOAL := help
.PHONY: help run test check deps bench compose screenshot

## help: lists the targets
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## run: builds and starts logweir with the default configuration (data in ./logweir-data)
run:
	cargo run --release -- run

## test: installs what the tests need (see deps), then runs all tests
# The tests get the program that the first line has built. They would build it with other features of its dependencies,
# most of which would have to be compiled again.
PROGRAM = $(abspath $(or $(CARGO_TARGET_DIR),target))/debug/logweir
test: deps
	cargo test --workspace --all-features --no-run
	ln -f $(PROGRAM) $(PROGRAM)-under-test
	LOGWEIR_BIN=$(PROGRAM)-under-test ./tests/run

## check: checks formatting, spelling, lints, documentation, dependencies and each feature; names the tools that it lacks
TOOLS = typos-cli cargo-deny cargo-machete cargo-hack
check:
	@for tool in typos cargo-deny cargo-machete cargo-hack; do command -v $$tool >/dev/null || \
		{ echo "$$tool not found: install the tools with 'cargo install --locked $(TOOLS)'" >&2; exit 69; }; done
	typos
	cargo machete
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features
	cargo hack clippy --quiet --each-feature --no-dev-deps --skip faults -p logweir-store -p logweir -- -D warnings
	./deploy/check-dependencies

## deps: installs missing test programs with apt-get and npm, as root or through sudo; elsewhere it lists them for you to install
deps:
	./tests/install-servers

## bench: benchmarks each part against a bare limit, then the whole pipeline; installs what it needs (see deps)
bench: deps
	cargo bench
	cargo run --profile dist -p logweir-benches

## compose: builds the image, then starts, kills and restarts the Compose stack; starts its own Docker engine if there is none
compose: deps
	./tests/deploy/compose

## screenshot: takes the README's screenshot (actors/cli/docs/log-explorer.png) from the real web UI; installs what it needs (see deps)
screenshot: deps
	cargo run -p logweir-tests --bin screenshot
