#!/usr/bin/env bash
# Attacks the durable line: `tests/faults.sh` in the size of CI, `tests/faults.sh --full` for hours.
# What each ring does and what it found is in docs/guarantees.md.
set -euo pipefail
cd "$(dirname "$0")/.."

lifetimes=1000000 disk_lifetimes=20000 flips=10000
case "${1-}" in
"") ;;
--full) lifetimes=100000000 disk_lifetimes=100000 flips=100000 ;;
*)
    echo "usage: tests/faults.sh [--full]" >&2
    exit 2
    ;;
esac

cargo build --release --locked --quiet -p whrelay-tests --bin whrelay-faults
faults="${CARGO_TARGET_DIR:-target}/release/whrelay-faults"

ring() { printf '\n== ring %s\n' "$*"; }

ring "1: simulation"
"$faults" sim --lifetimes "$lifetimes"
"$faults" planted

ring "2: the real store on a disk that lies"
"$faults" disk --lifetimes "$disk_lifetimes"
"$faults" flips --tries "$flips"
