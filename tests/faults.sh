#!/usr/bin/env bash
# Attacks the durable line: in the size of CI, or with --full for hours. With --publish the table of
# docs/guarantees.md is written anew.
set -euo pipefail
cd "$(dirname "$0")/.."

lifetimes=1000000 disk_lifetimes=20000 flips=10000 wires=200 kills=200 cuts=52 calls=60 step=3 publish=no
for argument in "$@"; do
    case "$argument" in
    --full)
        lifetimes=100000000 disk_lifetimes=100000 flips=100000 wires=2000 kills=2000 cuts=2000 calls=500 step=1
        ;;
    --publish) publish=yes ;;
    *)
        echo "usage: tests/faults.sh [--full] [--publish]" >&2
        exit 2
        ;;
    esac
done

need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "tests/faults.sh: please install: $2" >&2
        exit 1
    fi
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >/dev/null
}

if [ "$(id -u)" != 0 ]; then
    echo "tests/faults.sh: power cuts need root: file systems are mounted and shut down" >&2
    exit 1
fi
need mkfs.ext4 e2fsprogs
need xfs_io xfsprogs
need strace strace
need kill procps

cargo build --release --locked --quiet -p whrelay -p whrelay-tests --bin whrelay --bin whrelay-faults
target="${CARGO_TARGET_DIR:-$PWD/target}/release"
faults="$target/whrelay-faults"

export WHRELAY_FAULTS_REPORT="$target/faults.jsonl"
rm -f "$WHRELAY_FAULTS_REPORT"
failed=0
attack() { # attack ARGUMENT...: goes on after a failure, so that the table has every one
    printf '\n== %s\n' "$*"
    "$faults" "$@" || failed=1
}

attack sim --lifetimes "$lifetimes"
attack planted
attack disk --lifetimes "$disk_lifetimes"
attack flips --tries "$flips"
attack wire --seeds "$wires"
attack storm --binary "$target/whrelay" --kills "$kills"
attack storm --binary "$target/whrelay" --cuts "$cuts"
attack full --binary "$target/whrelay"
attack inject --binary "$target/whrelay" --upto "$calls" --step "$step"

if [ "$publish" = yes ]; then
    "$faults" publish "$WHRELAY_FAULTS_REPORT" docs/guarantees.md
fi
exit "$failed"
