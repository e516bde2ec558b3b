# shellcheck shell=bash
# For all steps of provisioning, and for collect.sh: sourced by them, does nothing by itself.
doing=${doing:-provisioning}
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

trap 'echo "$doing failed at line $LINENO of ${BASH_SOURCE[0]:-$0}: $BASH_COMMAND" >&2' ERR

# fail MESSAGE: say why, and stop.
fail() {
    echo "$doing failed: $*" >&2
    trap - ERR
    exit 1
}

# need VARIABLE...: they come from variables.env, by the Vagrantfile.
need() {
    local name
    for name in "$@"; do
        [ -n "${!name:-}" ] || fail "the variable $name is not set"
    done
}

# install_packages PACKAGE...: Debian's, or others whose repository is set up; does nothing when they are there.
install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query --show --showformat '${db:Status-Abbrev}' "${package%%=*}" 2>/dev/null | grep -q '^.i' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    apt-get -qq update
    apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
}

# write FILE: write standard input to a file; returns 1 when the file held that already.
write() {
    local new
    new=$(cat)
    if [ -f "$1" ] && [ "$new" = "$(cat "$1")" ]; then
        return 1
    fi
    mkdir -p "$(dirname "$1")"
    printf '%s\n' "$new" >"$1"
}

# minor VERSION: 1.35.6 -> 1.35
minor() {
    [[ $1 =~ ^([0-9]+\.[0-9]+)\.[0-9]+$ ]] || fail "KUBERNETES_VERSION is like 1.35.6, not $1"
    echo "${BASH_REMATCH[1]}"
}

# kubernetes_repository: the address, for the version that is wanted.
kubernetes_repository() { echo "$KUBERNETES_REPOSITORY$(minor "$KUBERNETES_VERSION")$KUBERNETES_REPOSITORY_END"; }

# kubernetes_key FILE: the key of that repository is in the file, and it is the one that is pinned.
kubernetes_key() {
    local found
    [ -f "$1" ] && [ "$(fingerprints "$1")" = "$KUBERNETES_KEY" ] && return
    mkdir -p "$(dirname "$1")"
    curl --fail --silent --show-error --location --retry 3 --output "$1.new" "$(kubernetes_repository)/Release.key" ||
        fail "Kubernetes' packages are out of reach; where there is no network, OFFLINE names a folder that has them"
    found=$(fingerprints "$1.new")
    [ "$found" = "$KUBERNETES_KEY" ] || fail "the repository's key has the fingerprint $found, expected $KUBERNETES_KEY"
    mv "$1.new" "$1"
}

# kubernetes_needs: Debian packages beside Kubernetes' own. What other steps install is short enough to stand there.
kubernetes_needs() { echo ca-certificates curl gpg iproute2 iptables conntrack nftables; }

# fingerprints FILE: of the keys in a file, one in a line.
fingerprints() {
    gpg --batch --show-keys --with-colons "$1" | awk -F: '$1 == "pub" { first = 1 } $1 == "fpr" && first { print $10; first = 0 }'
}

# check_offline FOLDER: it has all that it shall have, as it was collected.
check_offline() {
    local folder=$1 wrong
    [ -f "$folder/SHA256SUMS" ] || fail "$folder has no SHA256SUMS; collect.sh fills it, and README.md says what is in it"
    wrong=$(cd "$folder" && sha256sum --check --quiet SHA256SUMS 2>/dev/null) ||
        fail "$folder is not as it was collected: ${wrong//$'\n'/, }; fill it again with collect.sh"
    for wrong in 'packages/*.deb' 'images/*.tar' images/nftproxy.tar flannel.yml; do
        compgen -G "$folder/$wrong" >/dev/null || fail "$folder has no $wrong; fill it with collect.sh"
    done
}

# import_images FOLDER: its archives of images are in containerd; one that is there already is not read again.
import_images() {
    local archive sum known=${IMPORTED_FOLDER:-/var/lib/offline-images}
    mkdir -p "$known"
    for archive in "$1"/images/*.tar; do
        sum=$(sed -n "s|^\([0-9a-f]*\)  images/${archive##*/}\$|\1|p" "$1/SHA256SUMS")
        [ -n "$sum" ] || fail "$archive is not in SHA256SUMS"
        [ "$sum" != "$(cat "$known/${archive##*/}" 2>/dev/null)" ] || continue
        ctr --namespace k8s.io images import "$archive" >/dev/null
        echo "$sum" >"$known/${archive##*/}"
    done
}

# check_sha256 FILE SUM
check_sha256() {
    local found
    found=$(sha256sum "$1" | cut -d ' ' -f 1)
    [ "$found" = "$2" ] || fail "$1 has the SHA-256 $found, expected $2"
}
