#!/usr/bin/env bash
# Tries install.sh as users would: from the checkout, from an archive, twice, damaged, and back out.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0

fail() { echo "install test: $*" >&2; exit 1; }
pass() { passed=$((passed + 1)); echo "ok  $*"; }

for shell in dash bash; do
    prefix="$scratch/$shell checkout"
    "$shell" ./install.sh --prefix "$prefix" >"$scratch/said" || fail "$shell: from the checkout"
    "$prefix/bin/whrelay" --version >/dev/null || fail "$shell: the installed binary does not run"
    grep -qF "$prefix/bin/whrelay" "$scratch/said" || fail "$shell: it does not say what it did"
    "$shell" ./install.sh --prefix "$prefix" >/dev/null || fail "$shell: not idempotent"
    "$shell" ./install.sh --prefix "$prefix" --uninstall >/dev/null || fail "$shell: uninstall"
    [ ! -e "$prefix/bin/whrelay" ] || fail "$shell: uninstall leaves the binary"
    "$shell" ./install.sh --prefix "$prefix" --uninstall >/dev/null || fail "$shell: uninstall twice"
    pass "$shell: from the checkout, twice, and out again"
done

target=$(rustc -vV | sed -n 's/^host: //p')
release="$scratch/release"
mkdir -p "$release/pack" "$scratch/alone"
cp "${CARGO_TARGET_DIR:-target}/release/whrelay" "$release/pack/"
tar -czf "$release/whrelay-9.9.9-$target.tar.gz" -C "$release/pack" whrelay
(cd "$release" && sha256sum ./*.tar.gz | sed 's| \./| |' >SHA256SUMS)
cp install.sh "$scratch/alone/"
alone() {
    (cd "$scratch/alone" && sh ./install.sh --version 9.9.9 --base-url "file://$release" --prefix "$scratch/archive" "$@")
}

alone >/dev/null || fail "from an archive"
"$scratch/archive/bin/whrelay" --version >/dev/null || fail "the archive's binary does not run"
pass "from an archive whose checksum fits"

alone --uninstall >/dev/null
printf 'x' >>"$release/whrelay-9.9.9-$target.tar.gz"
if alone >/dev/null 2>"$scratch/said"; then fail "a damaged archive was installed"; fi
grep -q '^error: ' "$scratch/said" || fail "a damaged archive gets no error"
[ ! -e "$scratch/archive/bin/whrelay" ] || fail "a damaged archive was left behind"
pass "a damaged archive is refused"

if sh ./install.sh --no-such-flag >/dev/null 2>"$scratch/said"; then fail "a wrong flag passed"; fi
grep -q '^hint: ' "$scratch/said" || fail "a wrong flag gets no hint"
pass "a wrong flag gets a hint"

echo "$passed passed, 0 failed"
