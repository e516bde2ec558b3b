#!/bin/sh
# The first process of a virtual machine (machine.py): prepare the system, run /command, say how it ended, power off.
export PATH=/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t devpts devpts /dev/pts
ln -s /proc/self/fd /dev/fd
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
ulimit -Hn 524288 # as systemd gives every service
ip link set lo up
modprobe -a br_netfilter sctp nf_tables # the kernel fetches what else it needs by itself

cd /project || exit
sh /command </dev/null 2>&1
echo "exit code $? of the command"
echo o >/proc/sysrq-trigger
sleep 60 # the power goes off meanwhile; if this process ended, that would be a kernel panic
