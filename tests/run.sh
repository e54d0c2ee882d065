#!/usr/bin/env bash
# Installs what the tests need and runs all of them: style, documents, dependencies, tests.
# Needs Rust; as root it installs missing Debian packages itself.
set -euo pipefail
cd "$(dirname "$0")/.."

DENY_VERSION=0.20.2
tools="${CARGO_TARGET_DIR:-$PWD/target}/tools"

need() { # need COMMAND PACKAGE...
    command -v "$1" >/dev/null && return
    shift
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "tests/run.sh: please install: $*" >&2
        exit 1
    fi
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

step() { printf '\n== %s\n' "$*"; }

step "what the tests need"
need cc gcc libc6-dev
need npm nodejs npm
need shellcheck shellcheck
need curl curl
need dash dash
need ps procps
need tmux tmux
need ssh-keygen openssh-client
need script bsdutils
need faketime faketime
need python3 python3
python3 -c 'import ensurepip, venv' 2>/dev/null || need ensurepip python3-venv
# Of every platform: the dependencies are checked for all.
cargo fetch --locked --quiet
npm ci --prefix tests/vendors --ignore-scripts --no-audit --no-fund --loglevel=error
python3 -m venv tests/vendors/venv
tests/vendors/venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r tests/vendors/requirements.txt
if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -qF "$DENY_VERSION"; then
    cargo install cargo-deny --version "$DENY_VERSION" --locked --debug --quiet --root "$tools"
fi

step "style"
cargo fmt --all --check
cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
shellcheck install.sh tests/*.sh .ci/run

step "documents of the code"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

step "dependencies: licences, sources, bans"
"$tools/bin/cargo-deny" --offline --log-level error --all-features check bans licenses sources

step "tests"
cargo test --workspace --locked --quiet

step "agent and forwarder on another store"
WHRELAY_STORE=model cargo test --package whrelay-tests --test line --locked --quiet

step "the attack"
tests/faults.sh

step "the installer"
cargo build --release --locked --quiet
tests/install.sh

step "all passed"
