#!/usr/bin/env bash
# kubeadm, kubelet and kubectl in one exact version, from a repository whose key is checked, or from OFFLINE.
# shellcheck source=common.sh
source "${NFTPROXY_TREE:-/nftproxy}/vagrant/provision/common.sh"
need KUBERNETES_VERSION KUBERNETES_REPOSITORY KUBERNETES_REPOSITORY_END KUBERNETES_KEY

# sandbox_image: what holds a pod's namespaces, by the configuration of containerd 1 or 2.
sandbox_image() { containerd config dump | sed -n "s/^ *sandbox\(_image\)\? = ['\"]\([^'\"]*\)['\"].*/\2/p"; }

# require_images: those of the control plane are here, so that nothing is asked of a registry. containerd names a version of pause, kubeadm
# another; it is one program.
require_images() {
    local wanted image here
    wanted=$(kubeadm config images list --kubernetes-version "v$KUBERNETES_VERSION" | grep -v /kube-proxy:)
    here=$(ctr --namespace k8s.io images list --quiet)
    for image in $wanted; do
        grep --quiet --line-regexp --fixed-strings "$image" <<<"$here" || fail "no archive in $OFFLINE/images has $image; fill it with collect.sh"
    done
    ctr --namespace k8s.io images tag --force "$(grep /pause: <<<"$wanted")" "$(sandbox_image)" >/dev/null
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    # shellcheck disable=SC2046  # one word each
    install_packages $(kubernetes_needs)
    if [ -z "${OFFLINE:-}" ]; then
        keyring=/etc/apt/keyrings/kubernetes.asc
        kubernetes_key "$keyring"
        write /etc/apt/sources.list.d/kubernetes.sources <<END || true
Types: deb
URIs: $(kubernetes_repository)/
Suites: /
Signed-By: $keyring
END
    fi
    if [ "$(dpkg-query --show --showformat '${Version}' kubelet 2>/dev/null)" != "$KUBERNETES_VERSION-1.1" ]; then
        apt-get -qq update
        apt-mark unhold kubeadm kubelet kubectl >/dev/null || true
        # /etc/default/kubelet is written already, and the package has one, too: dpkg would ask which to keep, and nobody answers.
        apt-get -qq install --yes --allow-downgrades -o Dpkg::Options::=--force-confold \
            "kubeadm=$KUBERNETES_VERSION-*" "kubelet=$KUBERNETES_VERSION-*" "kubectl=$KUBERNETES_VERSION-*" >/dev/null
        apt-mark hold kubeadm kubelet kubectl >/dev/null
    fi
    [ -z "${OFFLINE:-}" ] || require_images
    systemctl enable --quiet --now kubelet
fi
