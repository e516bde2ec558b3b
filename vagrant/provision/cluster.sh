#!/usr/bin/env bash
# The first machine makes the cluster, the others join it. Neither is done twice.
# shellcheck source=common.sh
source "${NFTPROXY_TREE:-/nftproxy}/vagrant/provision/common.sh"
need NODE NETWORK JOIN_TOKEN KUBERNETES_VERSION POD_NETWORK SERVICE_NETWORK FLANNEL_MANIFEST FLANNEL_SHA256
[[ $JOIN_TOKEN =~ ^[a-z0-9]{6}\.[a-z0-9]{16}$ ]] || fail "JOIN_TOKEN is not what kubeadm takes"

control=$NETWORK.11

# patience: how long kubeadm waits, beyond its defaults: a processor in software starts an API server in minutes.
patience() {
    cat <<'END'
timeouts:
  controlPlaneComponentHealthCheck: 20m0s
  kubeletHealthCheck: 10m0s
  kubernetesAPICall: 20m0s
  etcdAPICall: 10m0s
  tlsBootstrap: 20m0s
  discovery: 20m0s
END
}

# configuration: what kubeadm gets on the first machine. There is one control plane: an election that nobody else stands in would only end
# its programs where they are slow.
configuration() {
    cat <<END
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens:
  - token: $JOIN_TOKEN
    ttl: 24h0m0s
localAPIEndpoint:
  advertiseAddress: $control
skipPhases:
  - addon/kube-proxy
$(patience)
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v$KUBERNETES_VERSION
controlPlaneEndpoint: $control:6443
networking:
  podSubnet: $POD_NETWORK
  serviceSubnet: $SERVICE_NETWORK
controllerManager:
  extraArgs:
    - name: leader-elect
      value: "false"
scheduler:
  extraArgs:
    - name: leader-elect
      value: "false"
END
}

# join_configuration: what kubeadm gets on the others. Who could answer in the control plane's place has to know the token: its answer is
# signed with it.
join_configuration() {
    cat <<END
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken:
    apiServerEndpoint: $control:6443
    token: $JOIN_TOKEN
    unsafeSkipCAVerification: true
$(patience)
END
}

# with_interface FILE: flannel's manifest, told to use the network between the machines, not the one to the outside.
with_interface() {
    local pattern
    pattern="^$(printf '%s' "$NETWORK" | sed 's/\./\\\\./g')\\\\."
    sed "s/^\( *\)- --kube-subnet-mgr\$/&\n\1- --iface-regex=$pattern/; s|\"Network\": \"[^\"]*\"|\"Network\": \"$POD_NETWORK\"|" "$1"
}

# initialise CONFIGURATION KUBECONFIG COPY: kubeadm init, once. The copy is made when all went well; what an init that failed leaves behind
# would be taken for a cluster.
initialise() {
    [ ! -f "$3" ] || return 0
    [ ! -f "$2" ] || kubeadm reset --force
    kubeadm init --config "$1"
    install -D --mode 600 "$2" "$3"
}

make_cluster() {
    export KUBECONFIG=/etc/kubernetes/admin.conf
    configuration | write /etc/kubernetes/kubeadm.yaml || true
    chmod 600 /etc/kubernetes/kubeadm.yaml
    initialise /etc/kubernetes/kubeadm.yaml "$KUBECONFIG" /root/.kube/config
    if [ -n "${OFFLINE:-}" ]; then
        cp "$OFFLINE/flannel.yml" /var/tmp/flannel.yml
    else
        curl --fail --silent --show-error --location --retry 3 --output /var/tmp/flannel.yml "$FLANNEL_MANIFEST"
    fi
    check_sha256 /var/tmp/flannel.yml "$FLANNEL_SHA256"
    with_interface /var/tmp/flannel.yml | kubectl apply --filename -
}

# The token is made anew when a machine is added later: vagrant up on it asks for `kubeadm token create` on node1.
join_cluster() {
    [ -f /etc/kubernetes/kubelet.conf ] && return
    [ ! -f /etc/kubernetes/pki/ca.crt ] || kubeadm reset --force # a join that failed
    join_configuration | write /etc/kubernetes/kubeadm.yaml || true
    chmod 600 /etc/kubernetes/kubeadm.yaml
    kubeadm join --config /etc/kubernetes/kubeadm.yaml
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    if [ "$NODE" = 1 ]; then
        make_cluster
    else
        join_cluster
    fi
fi
