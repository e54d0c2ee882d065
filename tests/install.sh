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
    for file in man/man1/whrelay.1 man/man1/whrelay-listen.1 bash-completion/completions/whrelay \
        fish/vendor_completions.d/whrelay.fish zsh/site-functions/_whrelay; do
        [ -s "$prefix/share/$file" ] || fail "$shell: share/$file is missing"
    done
    "$shell" ./install.sh --prefix "$prefix" >/dev/null || fail "$shell: not idempotent"
    "$shell" ./install.sh --prefix "$prefix" --uninstall >/dev/null || fail "$shell: uninstall"
    left=$(find "$prefix" ! -type d)
    [ -z "$left" ] || fail "$shell: uninstall leaves $left"
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

alone >"$scratch/said" || fail "from an archive"
grep -q '^not verified: who made it' "$scratch/said" || fail "it does not say what is not verified"
"$scratch/archive/bin/whrelay" --version >/dev/null || fail "the archive's binary does not run"
pass "from an archive whose checksum fits"

alone --uninstall >/dev/null
for who in maker stranger; do ssh-keygen -q -t ed25519 -N '' -f "$scratch/$who"; done
ssh-keygen -q -Y sign -n file -f "$scratch/maker" "$release/SHA256SUMS" 2>/dev/null
alone --signed-by "$(cut -d ' ' -f 1-2 "$scratch/maker.pub")" >"$scratch/said" || fail "a good signature is refused"
grep -q '^verified: SHA256SUMS was signed' "$scratch/said" || fail "it does not say that it is signed"
alone --uninstall >/dev/null
if alone --signed-by "$(cat "$scratch/stranger.pub")" >/dev/null 2>"$scratch/said"; then
    fail "a stranger's signature was taken"
fi
grep -q '^error: SHA256SUMS was not signed by' "$scratch/said" || fail "a wrong signature gets no error"
[ ! -e "$scratch/archive/bin/whrelay" ] || fail "what was not signed was installed"
pass "a signature is checked where a key is given"

if sh "$scratch/alone/install.sh" --version 9.9.9 --base-url http://127.0.0.1:1 >/dev/null 2>"$scratch/said"; then
    fail "http passed"
fi
grep -q 'is not https' "$scratch/said" || fail "http gets no error"
mkdir "$scratch/decoy" && cp -r Cargo.toml crates "$scratch/decoy/"
if (cd "$scratch/decoy" && sh <"$OLDPWD/install.sh") >/dev/null 2>"$scratch/said"; then fail "a pipe built what lay there"; fi
grep -q 'choose a release' "$scratch/said" || fail "a script from a pipe gets no error"
if alone --signed-by "" >/dev/null 2>"$scratch/said"; then fail "an empty key passed"; fi
pass "only https, and nothing of the working directory"

printf 'x' >>"$release/whrelay-9.9.9-$target.tar.gz"
if alone >/dev/null 2>"$scratch/said"; then fail "a damaged archive was installed"; fi
grep -q '^error: ' "$scratch/said" || fail "a damaged archive gets no error"
[ ! -e "$scratch/archive/bin/whrelay" ] || fail "a damaged archive was left behind"
pass "a damaged archive is refused"

if sh ./install.sh --no-such-flag >/dev/null 2>"$scratch/said"; then fail "a wrong flag passed"; fi
grep -q '^hint: ' "$scratch/said" || fail "a wrong flag gets no hint"
pass "a wrong flag gets a hint"

echo "$passed passed, 0 failed"
