#!/usr/bin/env bash
# containerd from Debian, with cgroups by systemd and plugins where Kubernetes' packages put them.
# shellcheck source=common.sh
source "${NFTPROXY_TREE:-/nftproxy}/vagrant/provision/common.sh"

install_packages containerd
# shellcheck disable=SC2310  # 1 means unchanged
if containerd config default |
    sed -e 's/SystemdCgroup = false/SystemdCgroup = true/' -e 's|bin_dir = "[^"]*/cni[^"]*"|bin_dir = "/opt/cni/bin"|' |
    write /etc/containerd/config.toml; then
    systemctl restart containerd
fi
grep -q 'SystemdCgroup = true' /etc/containerd/config.toml || fail "containerd's default configuration has changed: no SystemdCgroup"
grep -q "[\"']/opt/cni/bin[\"']" /etc/containerd/config.toml || fail "containerd's default configuration has changed: no bin_dir"
[ -z "${OFFLINE:-}" ] || import_images "$OFFLINE"
