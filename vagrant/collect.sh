#!/usr/bin/env bash
# Fill a folder with all that the cluster installs, for machines without a network: OFFLINE=FOLDER vagrant up.
#
#   collect.sh FOLDER    root on Debian 12 or later (amd64), where Debian's mirror and the addresses in variables.env can be reached
#
# What is complete already is not fetched again. Needs curl, debootstrap, debian-archive-keyring, gpg, python3 and skopeo.
# The settings are those of variables.env and the environment, as for `vagrant up`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
doing=collecting
# shellcheck source=provision/common.sh
source "$here/provision/common.sh"

# use_settings: those of variables.env that the environment does not give.
use_settings() {
    local name value
    while IFS='=' read -r name value; do
        [ -n "${!name:-}" ] || declare -gx "$name=$value"
    done < <(grep '^[A-Z0-9_]*=' "$here/variables.env")
}

# apt_of FOLDER COMMAND...: apt-get for a machine on which nothing is installed, with sources of its own, all in that folder.
apt_of() {
    local folder=$1
    shift
    apt-get -qq -o "Dir::Etc::parts=/dev/null" -o "Dir::Etc::sourcelist=$folder/sources.list" -o "Dir::Etc::sourceparts=/dev/null" \
        -o "Dir::Etc::preferencesparts=/dev/null" -o "Dir::State::status=$folder/status" -o "Dir::State::lists=$folder/lists" \
        -o "Dir::Cache=$folder/cache" -o APT::Sandbox::User=root -o APT::Architecture=amd64 -o APT::Install-Recommends=false "$@"
}

# packages FOLDER WORK: what the steps of provisioning install, with all that it depends on.
packages() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror suite
    [ -f "$keyring" ] || fail "$keyring is not there; apt-get install debian-archive-keyring"
    mirror=$(cd "$here/../release" && python3 -c 'import image; print(image.mirror())')
    mkdir -p "$2/lists/partial" "$1/packages/partial"
    touch "$2/status"
    kubernetes_key "$2/kubernetes.asc"
    for suite in trixie trixie-updates; do
        echo "deb [signed-by=$keyring] $mirror $suite main"
    done >"$2/sources.list"
    echo "deb [signed-by=$2/kubernetes.asc] $(kubernetes_repository)/ /" >>"$2/sources.list"
    apt_of "$2" update
    # shellcheck disable=SC2046  # one word each
    apt_of "$2" -o "Dir::Cache::archives=$1/packages" install --yes --download-only $(kubernetes_needs) containerd python3 libnftables1 \
        "kubeadm=$KUBERNETES_VERSION-*" "kubelet=$KUBERNETES_VERSION-*" "kubectl=$KUBERNETES_VERSION-*" >/dev/null
    rm -rf "$1/packages/partial" "$1/packages/lock"
}

# flannel_images FILE: those that its manifest names.
flannel_images() { sed -n "s|^[ -]*image: *||p" "$1" | sort --unique; }

# kubeadm_images FOLDER WORK: the control plane's, asked of the kubeadm that was collected.
kubeadm_images() {
    dpkg-deb --fsys-tarfile "$1"/packages/kubeadm_*.deb | tar --extract --directory "$2" ./usr/bin/kubeadm
    "$2/usr/bin/kubeadm" config images list --kubernetes-version "v$KUBERNETES_VERSION"
}

# archive_of IMAGE: the name of its file.
archive_of() {
    local file=${1##*/}
    echo "${file//[:@]/_}.tar"
}

# images FOLDER IMAGE...: an archive of each.
images() {
    local folder=$1/images image file number=0
    shift
    for image in "$@"; do
        number=$((number + 1)) file=$folder/$(archive_of "$image")
        echo "image $number of $#: $image"
        [ ! -f "$file" ] || continue
        rm -f "$file.part"
        skopeo --override-os linux --override-arch amd64 copy --quiet --retry-times 3 "docker://$image" "docker-archive:$file.part:$image" ||
            fail "$image cannot be fetched; what is complete stays, so run this again"
        mv "$file.part" "$file"
    done
}

# sums FOLDER: of all in it. A folder without this file is not complete.
sums() { (cd "$1" && sha256sum packages/*.deb images/*.tar flannel.yml >SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS); }

main() {
    if [ $# -ne 1 ]; then
        sed -n 's/^#   //p' "$0" >&2
        exit 2
    fi
    local folder work tool
    [ "$(id -u)" = 0 ] || fail "must be root, for debootstrap"
    for tool in apt-get curl debootstrap gpg python3 skopeo; do
        command -v "$tool" >/dev/null || fail "$tool is missing; apt-get install ${tool/apt-get/apt}"
    done
    use_settings
    mkdir -p "$1/images" "$1/packages"
    folder=$(realpath "$1") work=$(mktemp --directory)
    # shellcheck disable=SC2064  # work is this function's own
    trap "rm -rf '$work'" EXIT
    rm -f "$folder/SHA256SUMS"
    echo "packages of Debian 13 and Kubernetes $KUBERNETES_VERSION"
    packages "$folder" "$work"
    echo "flannel's manifest"
    curl --fail --silent --show-error --location --retry 3 --output "$folder/flannel.yml" "$FLANNEL_MANIFEST"
    check_sha256 "$folder/flannel.yml" "$FLANNEL_SHA256"
    local kubernetes flannel
    kubernetes=$(kubeadm_images "$folder" "$work") flannel=$(flannel_images "$folder/flannel.yml")
    # shellcheck disable=SC2086  # one word each
    images "$folder" $kubernetes $flannel
    echo "nftproxy's image, from this working tree: some minutes"
    python3 "$here/../release/image.py" --folder "$work/image" --name docker.io/library/nftproxy:0.1.0 --output "$folder/images/nftproxy.tar" >"$work/log" 2>&1 ||
        fail "$(tail -n 3 "$work/log")"
    sums "$folder"
    echo "$folder: $(du --summarize --block-size=1000000 "$folder" | cut -f 1) MB; OFFLINE=$folder vagrant up"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main "$@"
fi
