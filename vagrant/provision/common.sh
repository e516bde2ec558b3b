# shellcheck shell=bash
# For all steps of provisioning: sourced by them, does nothing by itself.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

trap 'echo "provisioning failed at line $LINENO of ${BASH_SOURCE[0]:-$0}: $BASH_COMMAND" >&2' ERR

# fail MESSAGE: say why, and stop.
fail() {
    echo "provisioning failed: $*" >&2
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

# fingerprints FILE: of the keys in a file, one in a line.
fingerprints() {
    gpg --batch --show-keys --with-colons "$1" | awk -F: '$1 == "pub" { first = 1 } $1 == "fpr" && first { print $10; first = 0 }'
}

# check_sha256 FILE SUM
check_sha256() {
    local found
    found=$(sha256sum "$1" | cut -d ' ' -f 1)
    [ "$found" = "$2" ] || fail "$1 has the SHA-256 $found, expected $2"
}
