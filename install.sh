#!/bin/sh
# Installs whrelay with its manual pages and completions: built from the checkout this script stands in, or from a
# release archive when it stands alone. Run it again to update; --uninstall takes it away.
set -eu

usage() {
    cat <<'TEXT'
usage: install.sh [--prefix DIR] [--version X.Y.Z --base-url URL [--signed-by KEY]] [--uninstall]

  --prefix DIR     install below DIR [default: ~/.local, so ~/.local/bin/whrelay]
  --version X.Y.Z  install this release instead of building the checkout
  --base-url URL   where release archives and their SHA256SUMS are (https, or file)
  --signed-by KEY  the public SSH key that must have signed SHA256SUMS, as in 'ssh-ed25519 AAAA…'
  --uninstall      remove what was installed; events and settings stay

The checksum shows that an archive arrived as it is at that address. Who made it shows only a signature: give
--signed-by with a key that you have from elsewhere (checked by ssh-keygen).
TEXT
}

fail() { # fail MESSAGE HINT
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

say() { printf '%s\n' "$*"; }

fetch() { # fetch URL FILE
    # No redirect may leave https.
    if command -v curl >/dev/null; then
        curl -fsSL --retry 3 --proto '=https,file' --proto-redir '=https' --tlsv1.2 -o "$2" "$1"
    elif command -v wget >/dev/null; then
        case "$1" in file://*) fail "wget cannot read $1" "install curl" ;; esac
        wget -q --max-redirect=0 -O "$2" "$1"
    else
        fail "neither curl nor wget is here" "install one of them"
    fi || fail "cannot download $1" "is the address right, and the network there?"
}

platform() {
    case "$(uname -sm)" in
        "Linux x86_64") say x86_64-unknown-linux-gnu ;;
        "Linux aarch64") say aarch64-unknown-linux-gnu ;;
        "Darwin arm64") say aarch64-apple-darwin ;;
        "Darwin x86_64") say x86_64-apple-darwin ;;
        *) fail "there is no archive for $(uname -sm)" "build from a checkout: cargo build --release" ;;
    esac
}

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

from_archive() { # from_archive: leaves the binary at $scratch/whrelay
    [ -n "$base_url" ] || fail "where are the archives of $version?" "say so with --base-url URL"
    case "$base_url" in
        https://* | file://*) ;;
        *) fail "$base_url is not https" "whoever is on the way could replace what comes from there" ;;
    esac
    archive="whrelay-$version-$(platform).tar.gz"
    fetch "$base_url/$archive" "$scratch/$archive"
    fetch "$base_url/SHA256SUMS" "$scratch/SHA256SUMS"
    expected=$(awk -v name="$archive" '$2 == name || $2 == "*" name { print $1 }' "$scratch/SHA256SUMS")
    [ -n "$expected" ] || fail "SHA256SUMS does not name $archive" "is the release complete?"
    if [ "$(sha256 "$scratch/$archive")" != "$expected" ]; then
        fail "the checksum of $archive does not fit" "download it again; if that does not help, do not trust it"
    fi
    check_signature
    tar -xzf "$scratch/$archive" -C "$scratch" whrelay
}

check_signature() { # check_signature: of $scratch/SHA256SUMS, and says what is known now
    say "verified: $archive has the checksum in SHA256SUMS of $base_url"
    if [ -z "$signed_by" ]; then
        say "not verified: who made it (--signed-by KEY checks the signature of SHA256SUMS)"
        return
    fi
    command -v ssh-keygen >/dev/null || fail "ssh-keygen is not here" "install openssh-client, or leave --signed-by away"
    fetch "$base_url/SHA256SUMS.sig" "$scratch/SHA256SUMS.sig"
    printf 'whrelay namespaces="file" %s\n' "$signed_by" >"$scratch/signers"
    ssh-keygen -Y verify -q -n file -I whrelay -f "$scratch/signers" -s "$scratch/SHA256SUMS.sig" \
        <"$scratch/SHA256SUMS" >/dev/null 2>&1 ||
        fail "SHA256SUMS was not signed by the key of --signed-by" "do not trust this release, or check the key"
    say "verified: SHA256SUMS was signed by the key of --signed-by"
}

from_checkout() { # from_checkout: leaves the binary at $scratch/whrelay
    command -v cargo >/dev/null || fail "Rust is not installed" "install it from https://rustup.rs, or use --version"
    say "building whrelay in $here"
    (cd "$here" && cargo build --release --locked --quiet --bin whrelay) ||
        fail "the build failed" "cargo build --release shows why"
    cp "${CARGO_TARGET_DIR:-$here/target}/release/whrelay" "$scratch/whrelay"
}

install_binary() {
    mkdir -p "$prefix/bin" || fail "cannot create $prefix/bin" "choose another place with --prefix"
    chmod 755 "$scratch/whrelay"
    # A rename replaces the old binary in one step, also while it runs.
    cp "$scratch/whrelay" "$prefix/bin/.whrelay.new" || fail "cannot write to $prefix/bin" "choose another place with --prefix"
    mv -f "$prefix/bin/.whrelay.new" "$prefix/bin/whrelay"
    install_pages
    say "installed $("$prefix/bin/whrelay" --version) as $prefix/bin/whrelay"
    case ":$PATH:" in
        *":$prefix/bin:"*) say "next: whrelay listen --to localhost:3000" ;;
        *) say "$prefix/bin is not on your PATH; add it: export PATH=\"$prefix/bin:\$PATH\"" ;;
    esac
}

completions() { # completions: a shell and its file, a line each
    say "bash share/bash-completion/completions/whrelay"
    say "fish share/fish/vendor_completions.d/whrelay.fish"
    say "zsh share/zsh/site-functions/_whrelay"
}

install_pages() { # install_pages: manual pages and completions, as this binary has them
    pages="$prefix/share/man/man1"
    rm -f "$pages"/whrelay.1 "$pages"/whrelay-*.1
    if ! { mkdir -p "$pages" && "$prefix/bin/whrelay" man --dir "$pages"; }; then
        fail "cannot write to $pages" "choose another place with --prefix"
    fi
    completions | while read -r shell file; do
        if ! { mkdir -p "$(dirname "$prefix/$file")" &&
            "$prefix/bin/whrelay" completions "$shell" >"$prefix/$file"; }; then
            fail "cannot write $prefix/$file" "choose another place with --prefix"
        fi
    done
}

uninstall() {
    rm -f "$prefix/share/man/man1"/whrelay.1 "$prefix/share/man/man1"/whrelay-*.1
    completions | while read -r _ file; do rm -f "$prefix/$file"; done
    if [ -e "$prefix/bin/whrelay" ]; then
        rm "$prefix/bin/whrelay"
        say "removed $prefix/bin/whrelay; events and settings were left where they are"
    else
        say "there is no $prefix/bin/whrelay: nothing to remove"
    fi
}

main() {
    prefix="${HOME:-}/.local" version="" base_url="${WHRELAY_INSTALL_BASE_URL:-}" signed_by="" action=install
    while [ $# -gt 0 ]; do
        case "$1" in
            --prefix | --version | --base-url | --signed-by)
                [ $# -ge 2 ] || fail "$1 needs a value" "install.sh --help"
                case "$1" in
                    --prefix) prefix=$2 ;;
                    --version) version=$2 ;;
                    --base-url) base_url=${2%/} ;;
                    --signed-by)
                        [ -n "$2" ] || fail "--signed-by has no key" "is a variable unset?"
                        signed_by=$2
                        ;;
                esac
                shift
                ;;
            --uninstall) action=uninstall ;;
            -h | --help) usage && exit 0 ;;
            *) fail "unknown flag $1" "install.sh --help lists them" ;;
        esac
        shift
    done
    if [ "$action" = uninstall ]; then
        uninstall
        return
    fi
    here=""
    # Read from a pipe, this script stands nowhere: what is in the working directory may be anybody's.
    case "$0" in
        *install.sh) here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) ;;
    esac
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    if [ -n "$version" ]; then
        from_archive
    elif [ -n "$here" ] && [ -f "$here/crates/whrelay/Cargo.toml" ]; then
        from_checkout
    else
        fail "choose a release with --version" "install.sh --version X.Y.Z --base-url URL"
    fi
    install_binary
}

# On the last line, so that a script cut off on its way does nothing.
main "$@"
