#!/usr/bin/env bash
# Builds what is committed twice, in two directories, and compares the programs bit by bit.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cargo_home="${CARGO_HOME:-$HOME/.cargo}"

for name in one another-one; do
    mkdir "$scratch/$name"
    git archive HEAD | tar -x -C "$scratch/$name"
    # Where it was built is the only thing that may differ, so it is left out.
    (
        cd "$scratch/$name"
        export CARGO_TARGET_DIR="$scratch/$name/target"
        export RUSTFLAGS="--remap-path-prefix=$scratch/$name=/whrelay --remap-path-prefix=$cargo_home=/cargo"
        export CFLAGS="-ffile-prefix-map=$scratch/$name=/whrelay -ffile-prefix-map=$cargo_home=/cargo"
        export SOURCE_DATE_EPOCH=0
        cargo build --release --locked --quiet
    )
done
sha256sum "$scratch"/*/target/release/whrelay | sed "s|$scratch/||"
cmp "$scratch"/*/target/release/whrelay
echo "the two are the same, bit by bit"
