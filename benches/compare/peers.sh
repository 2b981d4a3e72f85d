#!/usr/bin/env bash
# Builds the WireGuard implementations that Warren is compared with and tested against, and prints
# where they are, one `NAME PATH` a line.
#
#   benches/compare/peers.sh                            all of them
#   benches/compare/peers.sh wireguard-go boringtun-cli these
#
# They land in ${XDG_CACHE_HOME:-~/.cache}/warren/peers/NAME-VERSION/NAME. What is there is not built
# again and needs no network. Versions are pinned so that two runs compare the same programs;
# WIREGUARD_GO, GOTATUN and BORINGTUN choose others (WIREGUARD_GO=latest asks the module proxy).
set -euo pipefail

wireguard_go=${WIREGUARD_GO:-v0.0.0-20260522210424-ecfc5a8d5446} # the newest on 2026-11-21
gotatun=${GOTATUN:-0.10.2}
boringtun=${BORINGTUN:-0.7.1}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/warren/peers
mkdir -p "$cache"
log=$cache/build.log

fail() {
    echo "peers.sh: $*" >&2
    exit 1
}

# build_go NAME MODULE VERSION: the program that a Go module's root package is.
build_go() {
    local name=$1 module=$2 version=$3
    command -v go >/dev/null || fail "$name is written in Go and there is no 'go' in PATH; install Go 1.23 or newer."
    if [ "$version" = latest ]; then
        version=$(go list -m -f '{{.Version}}' "$module@latest" 2>"$log") ||
            fail "the Go module proxy did not tell the newest version of $module (see $log)."
    fi
    local home=$cache/$name-$version
    if [ ! -x "$home/$name" ]; then
        echo "peers.sh: building $name $version (about half a minute)" >&2
        # GOBIN in a scratch directory: what is in `home` is whole, also when this is cut off.
        local scratch
        scratch=$(mktemp -d "$cache/build.XXXXXX")
        if ! GOBIN=$scratch go install -trimpath "$module@$version" >"$log" 2>&1; then
            rm -rf "$scratch"
            fail "'go install $module@$version' failed (see $log)."
        fi
        mkdir -p "$home"
        mv "$scratch/$(basename "$module")" "$home/$name"
        rm -rf "$scratch"
    fi
    echo "$name $home/$name"
}

# build_crate NAME CRATE VERSION: the program NAME of a crate, with the crate's own lock file.
build_crate() {
    local name=$1 crate=$2 version=$3
    local home=$cache/$name-$version
    if [ ! -x "$home/$name" ]; then
        command -v cargo >/dev/null || fail "$name is written in Rust and there is no 'cargo' in PATH."
        echo "peers.sh: building $crate $version (one to two minutes)" >&2
        local scratch
        scratch=$(mktemp -d "$cache/build.XXXXXX")
        if ! CARGO_TARGET_DIR=$scratch/target cargo install --locked --quiet --no-track \
            --root "$scratch" "$crate@$version" >"$log" 2>&1; then
            rm -rf "$scratch"
            fail "'cargo install $crate@$version' failed (see $log)."
        fi
        mkdir -p "$home"
        mv "$scratch/bin/$name" "$home/$name"
        rm -rf "$scratch"
    fi
    echo "$name $home/$name"
}

[ $# -gt 0 ] || set -- wireguard-go gotatun boringtun-cli
for name in "$@"; do
    case $name in
        wireguard-go) build_go wireguard-go golang.zx2c4.com/wireguard "$wireguard_go" ;;
        gotatun) build_crate gotatun gotatun-cli "$gotatun" ;;
        boringtun-cli) build_crate boringtun-cli boringtun-cli "$boringtun" ;;
        *) fail "no peer is called '$name'; there are wireguard-go, gotatun and boringtun-cli." ;;
    esac
done
