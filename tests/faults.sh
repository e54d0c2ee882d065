#!/usr/bin/env bash
# Attacks the durable line: in the size of CI, or with --full for hours. With --publish the table of
# docs/guarantees.md is written anew.
set -euo pipefail
cd "$(dirname "$0")/.."

lifetimes=1000000 disk_lifetimes=20000 flips=10000 wires=200 kills=200 cuts=52 calls=60 step=3
agents=2000 minutes=1 gigabytes=1 fuzz=60 reproduce=no publish=no
for argument in "$@"; do
    case "$argument" in
    --full)
        lifetimes=100000000 disk_lifetimes=100000 flips=100000 wires=2000 kills=2000 cuts=4000 calls=500 step=1
        agents=10000 minutes=20 gigabytes=10 fuzz=3600 reproduce=yes
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
need g++ g++
need faketime faketime
need ip iproute2
need nft nftables

FUZZ_VERSION=0.13.2
tools="${CARGO_TARGET_DIR:-$PWD/target}/tools"
if ! "$tools/bin/cargo-fuzz" --version 2>/dev/null | grep -qF "$FUZZ_VERSION"; then
    cargo install cargo-fuzz --version "$FUZZ_VERSION" --locked --debug --quiet --root "$tools"
fi

cargo build --release --locked --quiet -p whrelay -p whrelay-tests --bin whrelay --bin whrelay-faults
target="${CARGO_TARGET_DIR:-$PWD/target}/release"
faults="$target/whrelay-faults"
# Coverage needs an unstable flag; the stable compiler takes it when asked like this.
RUSTC_BOOTSTRAP=1 "$tools/bin/cargo-fuzz" fuzz build --fuzz-dir tests/fuzz --target-dir "$target/fuzz" \
    --sanitizer none 2>"$target/fuzz-build.log" || { cat "$target/fuzz-build.log"; exit 1; }

export WHRELAY_FAULTS_REPORT="$target/faults.jsonl"
rm -f "$WHRELAY_FAULTS_REPORT"
failures="$target/failures" began=$SECONDS
: >"$failures"
keep() { # keep NAME LOG: the end of what a failed attack printed, to be shown last
    { printf '\n== %s\n' "$1" && tail -n 40 "$2"; } >>"$failures"
}

attack() { # attack ARGUMENT...: goes on after a failure, so that the table has every one
    printf '\n== %s\n' "$*"
    "$faults" "$@" 2>&1 | tee "$target/attack-log" || keep "$*" "$target/attack-log"
}

together() { # together "ARGUMENT..."...: attacks that mostly wait, at once
    local pids=() arguments log n=0
    for arguments in "$@"; do
        # shellcheck disable=SC2086 # each is several arguments
        "$faults" $arguments >"$target/together-${#pids[@]}" 2>&1 &
        pids+=($!)
    done
    for arguments in "$@"; do
        log="$target/together-$n"
        printf '\n== %s\n' "$arguments"
        wait "${pids[$n]}" || keep "$arguments" "$log"
        cat "$log"
        n=$((n + 1))
    done
}

attack sim --lifetimes "$lifetimes"
attack planted
attack disk --lifetimes "$disk_lifetimes"
attack flips --tries "$flips"
together "wire --seeds $wires" "network --binary $target/whrelay" \
    "soak --binary $target/whrelay --minutes $minutes" "clocks --binary $target/whrelay" \
    "full --binary $target/whrelay"
attack storm --binary "$target/whrelay" --kills "$kills"
attack storm --binary "$target/whrelay" --cuts "$cuts"
together "rollback --binary $target/whrelay" "hangups --binary $target/whrelay"
together "copies --binary $target/whrelay" "neighbours --binary $target/whrelay"
attack restart --binary "$target/whrelay" --gigabytes "$gigabytes"
attack receivers --binary "$target/whrelay"
attack senders --binary "$target/whrelay"
attack peers --binary "$target/whrelay" --agents "$agents"
attack inject --binary "$target/whrelay" --upto "$calls" --step "$step"

fuzz() { # fuzz INPUT...: all of them at once
    local pids=() input log n crashed
    for input in "$@"; do
        mkdir -p "$target/corpus/$input"
        RUSTC_BOOTSTRAP=1 "$tools/bin/cargo-fuzz" fuzz run --fuzz-dir tests/fuzz --target-dir "$target/fuzz" \
            --sanitizer none "$input" "$target/corpus/$input" "tests/fuzz/corpus/$input" \
            -- -max_total_time="$fuzz" -max_len=4096 2>"$target/fuzz-$input.log" &
        pids+=($!)
    done
    n=0
    for input in "$@"; do
        log="$target/fuzz-$input.log"
        crashed=0
        wait "${pids[$n]}" || crashed=1
        [ "$crashed" = 0 ] || tail -n 40 "$log"
        attack fuzzed --input "$input" --log "$log" --crashed "$crashed" --seconds "$fuzz"
        n=$((n + 1))
    done
}

fuzz frames requests
fuzz sessions records
fuzz targets arguments retry_after files webhooks

if [ "$reproduce" = yes ]; then
    tests/reproducible.sh 2>&1 | tee "$target/attack-log" || keep "reproducible builds" "$target/attack-log"
fi

printf '\nThe attack took %d min %d s.\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60))
if [ "$publish" = yes ]; then
    "$faults" publish "$WHRELAY_FAULTS_REPORT" docs/guarantees.md
fi
if [ -s "$failures" ]; then
    printf '\nFailed:\n'
    cat "$failures"
    exit 1
fi
