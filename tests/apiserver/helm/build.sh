#!/usr/bin/env bash
# Builds Helm, with which the chart is looked at, and prints where the program is.
#
#   tests/apiserver/helm/build.sh
#
# It lands in ${XDG_CACHE_HOME:-~/.cache}/warren/helm/VERSION. What is there is not built again and needs
# neither Go's compiler nor a network; what is not takes two to four minutes of two cores.
set -euo pipefail

version=v4.3.1

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/warren/helm
home=$cache/$version
if [ ! -x "$home/helm" ]; then
    command -v go >/dev/null ||
        fail "Helm is written in Go and there is no 'go' in PATH; install Go 1.26 or newer."
    mkdir -p "$cache"
    echo "build.sh: building Helm $version (two to four minutes)" >&2
    # In a scratch directory: what is in `home` is whole, also when this is cut off.
    scratch=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    # The checksum database of Go says what this version is.
    name=helm.sh/helm/v4/internal/version
    GOBIN=$scratch GOFLAGS=-trimpath CGO_ENABLED=0 go install \
        -ldflags "-s -w -X $name.version=$version" "helm.sh/helm/v4/cmd/helm@$version" >"$cache/build.log" 2>&1 || {
        tail -n 20 "$cache/build.log" >&2
        fail "the build failed (see $cache/build.log)."
    }
    rm -rf "$home"
    mv -T "$scratch" "$home"
fi
echo "$home/helm"
