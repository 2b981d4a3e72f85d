#!/usr/bin/env bash
# Builds the API server of Kubernetes and its etcd, that the tests of Kubernetes run against, and
# prints the folder in which `kube-apiserver` and `etcd` are.
#
#   tests/apiserver/build.sh
#
# They land in ${XDG_CACHE_HOME:-~/.cache}/warren/apiserver/KEY, where KEY is a hash of the three files
# of server/ and of Go's version. What is there is not built again and needs neither Go's compiler
# nor a network; what is not takes three to five minutes of two cores and 2 GiB of memory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/server"

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

command -v go >/dev/null ||
    fail "the API server is written in Go and there is no 'go' in PATH; install Go 1.26 or newer," \
        "or set KUBEBUILDER_ASSETS to a folder with kube-apiserver and etcd."

cache=${XDG_CACHE_HOME:-$HOME/.cache}/warren/apiserver
key=$(cat main.go go.mod go.sum <(go env GOVERSION) | sha256sum | cut -c1-16)
home=$cache/$key
if [ ! -x "$home/kube-apiserver" ]; then
    mkdir -p "$cache"
    log=$cache/build.log
    version=$(sed -n 's|^\tk8s.io/kubernetes \(v[0-9.]*\).*|\1|p' go.mod)
    [ -n "$version" ] || fail "go.mod names no version of k8s.io/kubernetes."
    IFS=. read -r major minor _ <<<"${version#v}"
    echo "build.sh: building kube-apiserver $version (three to five minutes)" >&2
    # In a scratch directory: what is in `home` is whole, also when this is cut off.
    scratch=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    # Without these the server calls itself v0.0.0-master.
    name=k8s.io/component-base/version
    CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$scratch/kube-apiserver" \
        -ldflags "-s -w -X $name.gitVersion=$version -X $name.gitMajor=$major -X $name.gitMinor=$minor" \
        . >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "the build failed (see $log)."
    }
    ln -s kube-apiserver "$scratch/etcd"
    rm -rf "$home"
    mv -T "$scratch" "$home"
fi
echo "$home"
