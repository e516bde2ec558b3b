#!/usr/bin/env bash
# Debian as Kubernetes wants it: no swap, modules, forwarding, names of the other machines.
# shellcheck source=common.sh
source "${NFTPROXY_TREE:-/nftproxy}/vagrant/provision/common.sh"
need NODES NETWORK NODE

swapoff --all
sed -i '/^[^#].*[[:space:]]swap[[:space:]]/s/^/# /' /etc/fstab

printf '%s\n' overlay br_netfilter nf_conntrack | write /etc/modules-load.d/kubernetes.conf || true
modprobe --all overlay br_netfilter nf_conntrack

write /etc/sysctl.d/90-kubernetes.conf <<'END' || true
net.ipv4.ip_forward = 1
net.ipv6.conf.all.forwarding = 1
net.bridge.bridge-nf-call-iptables = 1
net.bridge.bridge-nf-call-ip6tables = 1
END
sysctl --quiet --load=/etc/sysctl.d/90-kubernetes.conf

# Boxes name the machine 127.0.1.1, which kubeadm would take for its address.
sed -i '/^127\.0\.1\.1/d; / # nftproxy lab$/d' /etc/hosts
for number in $(seq "$NODES"); do
    echo "$NETWORK.$((10 + number)) node$number # nftproxy lab" >>/etc/hosts
done

# kubelet takes the first address otherwise, which is the same on all machines of some providers.
write /etc/default/kubelet <<<"KUBELET_EXTRA_ARGS=--node-ip=$NETWORK.$((10 + NODE))" || true
