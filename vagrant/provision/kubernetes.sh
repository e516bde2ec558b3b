#!/usr/bin/env bash
# kubeadm, kubelet and kubectl in one exact version, from a repository whose key is checked.
# shellcheck source=common.sh
source "${NFTPROXY_TREE:-/nftproxy}/vagrant/provision/common.sh"
need KUBERNETES_VERSION KUBERNETES_REPOSITORY KUBERNETES_REPOSITORY_END KUBERNETES_KEY

install_packages ca-certificates curl gpg iproute2 iptables conntrack nftables
repository=$KUBERNETES_REPOSITORY$(minor "$KUBERNETES_VERSION")$KUBERNETES_REPOSITORY_END
keyring=/etc/apt/keyrings/kubernetes.asc

if [ ! -f "$keyring" ] || [ "$(fingerprints "$keyring")" != "$KUBERNETES_KEY" ]; then
    mkdir -p /etc/apt/keyrings
    curl --fail --silent --show-error --location --retry 3 --output "$keyring.new" "$repository/Release.key"
    found=$(fingerprints "$keyring.new")
    [ "$found" = "$KUBERNETES_KEY" ] || fail "the repository's key has the fingerprint $found, expected $KUBERNETES_KEY"
    mv "$keyring.new" "$keyring"
fi
write /etc/apt/sources.list.d/kubernetes.sources <<END || true
Types: deb
URIs: $repository/
Suites: /
Signed-By: $keyring
END

if [ "$(dpkg-query --show --showformat '${Version}' kubelet 2>/dev/null)" != "$KUBERNETES_VERSION-1.1" ]; then
    apt-get -qq update
    apt-mark unhold kubeadm kubelet kubectl >/dev/null || true
    apt-get -qq install --yes --allow-downgrades \
        "kubeadm=$KUBERNETES_VERSION-*" "kubelet=$KUBERNETES_VERSION-*" "kubectl=$KUBERNETES_VERSION-*" >/dev/null
    apt-mark hold kubeadm kubelet kubectl >/dev/null
fi
systemctl enable --quiet --now kubelet
