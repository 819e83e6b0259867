# What people type. What CI does as well (.ci/run), it does exactly so; none needs more than what CONTRIBUTING.md lists.

# List the recipes.
default:
    @just --list

# Format everything.
fmt:
    cargo fmt

# Formatting and lints, as strict as CI.
lint:
    cargo fmt --check
    cargo clippy --workspace --all-targets --features benches/stores -- -D warnings

# All tests. Real Kafka, S3 and Delta readers take part where they can be had; see CONTRIBUTING.md.
test:
    cargo test --workspace

# Kill, freeze, cut off and starve real processes on real Kafka and S3, and count every row: short, long, negative,
# list, report FILE (a page made from a file of results). CI runs short and negative.
faults *arguments:
    cargo build --workspace --bins --test faults
    cargo test --workspace --test faults -- {{arguments}}

# The same on optimised programs, as they run in production: for the long set.
faults-optimised *arguments:
    cargo build --release --workspace --bins --features delivery/failpoints
    TAILWATER_PROGRAMS="${CARGO_TARGET_DIR:-$PWD/target}/release" cargo test --workspace --test faults -- {{arguments}}

# Licences, sources and versions of everything that is linked in.
deny:
    cargo deny check bans licenses sources

# All that CI does, with the time of each step.
ci:
    .ci/run

# All four services in one process, with the pipelines that ship.
up:
    cargo run --release -- up --pipelines pipelines

# See it run on real data, and end.
demo:
    cargo run --release -- demo --once

# Measure; benches/README.md says what and how.
bench *arguments:
    cargo build --profile dist -p tailwater -p benches
    "${CARGO_TARGET_DIR:-target}/dist/benches" {{arguments}}

# Kafka, an S3 server and the four services in containers; add `--profile observability` for dashboards.
compose *arguments:
    docker compose {{arguments}} up --build

# Work out the expected answers of the shop queries anew, from the raw data (needs the Python package duckdb).
expected:
    python3 pipelines/shop/expected.py --write
