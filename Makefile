# Two commands matter: `cargo run --release` starts logweir, `make test` proves it.

.PHONY: test check deps bench compose

# Everything: installs what the tests need where it is missing, then runs them all.
test: deps
	cargo test --workspace --all-features --no-fail-fast

# What a reviewer would ask for first.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features
	./deploy/check-dependencies

# Servers, senders and a browser as Debian packages; the tests start their own on free ports.
deps:
	./tests/install-servers

# Each part beside a bare limit, then the whole path beside bare limits.
bench: deps
	cargo bench
	cargo run --release -p logweir-benches

# The image is built and the Compose stack run, killed, stopped and restarted; with a Docker engine of its own where there is none.
compose: deps
	./tests/deploy/compose
