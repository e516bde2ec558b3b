#!/bin/sh
# enter.sh NODE FOLDER PLUGINS: become the first process of a node.
#
# Started in namespaces of its own (network, mounts, processes, host name): containers and programs of the node end with it.
# What a node writes to /etc, /opt and /var stays in FOLDER.
set -eu
node=$1 folder=$2 plugins=$3

hostname "$node"
mount --make-rprivate /
for each in etc opt var; do
    mkdir -p "$folder/$each" "$folder/.$each"
    mount -t overlay -o "lowerdir=/$each,upperdir=$folder/$each,workdir=$folder/.$each" overlay "/$each"
done
# sysfs shows the devices of the network namespace in which it was mounted.
mkdir -p "$folder/cgroup"
mount --rbind /sys/fs/cgroup "$folder/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$folder/cgroup" /sys/fs/cgroup
mount -t tmpfs tmpfs /run

# An overlay's files cannot be the lower part of another.
for each in containerd kubelet; do
    mkdir -p "$folder/$each" "/var/lib/$each"
    mount --bind "$folder/$each" "/var/lib/$each"
done
mkdir -p /opt/cni/bin /etc/cni/net.d /run/containerd /run/netns /var/log/pods /var/log/containers
mount --bind "$plugins" /opt/cni/bin
mount --make-rshared /
touch "$folder/entered"
while :; do sleep 1000; done
