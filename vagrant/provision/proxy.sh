#!/usr/bin/env bash
# Who serves Services, set up or changed in the running cluster. On every machine, in this order:
#
#   proxy.sh leave    what must not run any more ends; its rules stay, so that Services go on
#   proxy.sh enter    what shall run begins
#   proxy.sh wait     until it serves (node1 only)
#   proxy.sh tidy     rules that nobody keeps up any more go
#
# Without an argument, as at `vagrant up`: leave and enter.
# shellcheck source=common.sh
source "${NFTPROXY_TREE:-/nftproxy}/vagrant/provision/common.sh"
tree=${NFTPROXY_TREE:-/nftproxy}
need PROXY RUN_AS NODE NETWORK POD_NETWORK

case $PROXY in
    nftproxy | kube-proxy-iptables | kube-proxy-nftables) ;;
    *) fail "PROXY is nftproxy, kube-proxy-iptables or kube-proxy-nftables, not $PROXY" ;;
esac
case $RUN_AS in
    daemonset | systemd) ;;
    *) fail "RUN_AS is daemonset or systemd, not $RUN_AS" ;;
esac
export KUBECONFIG=/etc/kubernetes/admin.conf

# wanted KIND: whether that is what shall run: kube-proxy, daemonset or systemd.
wanted() {
    case $1 in
        kube-proxy) [ "$PROXY" != nftproxy ] ;;
        *) [ "$PROXY" = nftproxy ] && [ "$RUN_AS" = "$1" ] ;;
    esac
}

# manifests FOLDER: deploy/ for this cluster.
manifests() {
    cp --recursive "$tree/deploy/." "$1"
    sed -i "s|API_SERVER=.*|API_SERVER=https://$NETWORK.11:6443|" "$1/kustomization.yaml"
    sed -i "s|^clusterCIDR: .*|clusterCIDR: $POD_NETWORK|" "$1/base/config.conf"
    sed -i "s|newName: .*|newName: docker.io/library/nftproxy|" "$1/image/kustomization.yaml"
}

# kube_proxy_configuration MODE: what kubeadm makes its DaemonSet from.
kube_proxy_configuration() {
    sed "/^skipPhases:/,/^[^ ]/{/^skipPhases:/d; /^  - addon/d}" /etc/kubernetes/kubeadm.yaml
    cat <<END
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $1
clusterCIDR: $POD_NETWORK
END
}

remove_daemonset() {
    kubectl --namespace kube-system delete daemonset "$1" --ignore-not-found --cascade=foreground --timeout=600s
}

leave() {
    if ! wanted systemd && systemctl is-active --quiet nftproxy; then
        systemctl disable --quiet --now nftproxy
    fi
    [ "$NODE" = 1 ] || return 0
    wanted daemonset || remove_daemonset nftproxy
    # From one mode of kube-proxy to the other, too: its pods read their configuration only when they start.
    remove_daemonset kube-proxy
    kubectl --namespace kube-system delete configmap kube-proxy --ignore-not-found
}

enter() {
    if [ "$NODE" = 1 ]; then
        if wanted kube-proxy; then
            kube_proxy_configuration "${PROXY#kube-proxy-}" >/etc/kubernetes/kubeadm-proxy.yaml
            kubeadm init phase addon kube-proxy --config /etc/kubernetes/kubeadm-proxy.yaml
        elif wanted daemonset; then
            local folder
            folder=$(mktemp --directory)
            manifests "$folder"
            kubectl apply --kustomize "$folder"
            rm -r "$folder"
        else
            # Kubelets' own credentials serve: they may read Services' objects by this binding.
            kubectl create clusterrolebinding nftproxy-nodes --clusterrole=system:node-proxier --group=system:nodes \
                --dry-run=client --output=yaml | kubectl apply --filename -
        fi
    fi
    if wanted systemd; then
        mkdir -p /etc/nftproxy
        sed "s|^clusterCIDR: .*|clusterCIDR: $POD_NETWORK|; s|kubeconfig: .*|kubeconfig: /etc/kubernetes/kubelet.conf|" \
            "$tree/deploy/base/config.conf" | write /etc/nftproxy/config.conf || true
        write /etc/systemd/system/nftproxy.service <"$tree/deploy/nftproxy.service" || true
        systemctl daemon-reload
        systemctl enable --quiet nftproxy
        systemctl restart --no-block nftproxy
    fi
}

wait_until_it_serves() {
    if wanted systemd; then
        timeout 600 bash -c 'until curl --fail --silent --output /dev/null localhost:10256/livez && nftproxy show >/dev/null 2>&1; do sleep 1; done' ||
            fail "nftproxy does not serve; journalctl -u nftproxy says why"
    fi
    [ "$NODE" = 1 ] || return 0
    if wanted kube-proxy; then
        kubectl --namespace kube-system rollout status daemonset/kube-proxy --timeout=900s
    elif wanted daemonset; then
        kubectl --namespace kube-system rollout status daemonset/nftproxy --timeout=900s
    fi
}

# kube-proxy does not know our table; the other way round nftproxy removes what it finds. A first sync takes kube-proxy a moment after its
# pod is there: its health answers tell.
tidy() {
    if wanted kube-proxy; then
        timeout 600 bash -c 'until curl --fail --silent --output /dev/null localhost:10256/healthz; do sleep 1; done' ||
            fail "kube-proxy does not serve; our table stays"
        nftproxy cleanup
    fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    case ${1:-} in
        "") leave && enter ;;
        leave) leave ;;
        enter) enter ;;
        wait) wait_until_it_serves ;;
        tidy) tidy ;;
        *) fail "unknown: $1" ;;
    esac
fi
