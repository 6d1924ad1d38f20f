# Two commands: `make run` and `make test`. Both do all their own set-up.
# And `make cluster`: three brokers with Redis and Sentinels on this machine.
.PHONY: run cluster test web lint perf bench package agent-small soak setup-run setup-cluster setup-test setup-bench setup-perf setup-package clean

run: setup-run web
	cargo build --release --package strobe
	exec $${CARGO_TARGET_DIR:-target}/release/strobe up $(ARGS)

# Until Ctrl-C. ARGS=--chaos kills a broker now and then; scripts/cluster lists the rest.
cluster: setup-cluster web
	cargo build --release --bins
	exec scripts/cluster $(ARGS)

test: setup-test web
	scripts/test

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# The dashboard: bundled from the npm registry into viz/web/dist, embedded by viz/build.rs.
web: viz/web/dist/index.html

viz/web/dist/index.html: $(shell find viz/web -path viz/web/node_modules -prune -o -path viz/web/dist -prune -o -type f -print)
	cd viz/web && npm ci --no-audit --no-fund && npm run build

bench: setup-bench
	cargo bench --package strobe-bench

perf: setup-perf web
	cargo build --release --workspace
	scripts/perf

# Simulated clusters on every core, seed after seed, until it is ended or one fails. SEED= begins there.
soak: setup-run web
	cargo build --release --package strobe
	exec $${CARGO_TARGET_DIR:-target}/release/strobe sim --forever --jobs $$(nproc) --seed $${SEED:-$$(date +%s)} $(ARGS)

# Debian and RPM packages, in target/package.
package: setup-package web
	cargo build --release --bins
	# By itself, without what only a broker needs.
	cargo build --release --package strobe-agent
	scripts/package

# Static agents in target/static: the default one and one for small machines.
agent-small:
	scripts/agent-small

setup-perf:
	scripts/setup perf

setup-run:
	scripts/setup run

setup-cluster:
	scripts/setup cluster

setup-test:
	scripts/setup test

setup-bench:
	scripts/setup bench

setup-package:
	scripts/setup package

clean:
	cargo clean
	rm -rf viz/web/dist viz/web/node_modules
