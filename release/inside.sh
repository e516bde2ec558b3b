#!/bin/sh
# inside.sh FOLDER COMMAND...: run a command in a folder as if the folder were the machine.
#
# Started in a mount and a pid namespace of its own (image.py, tests/tools/versions/folder.py): whatever is mounted or left running here is gone with the command.
# Nothing that a package manager writes to is shared with this machine.
set -eu
folder=$1
shift

mount --bind "$folder" "$folder" # the new root has to be a mount point: `ip netns exec` changes how it propagates
mount -t proc proc "$folder/proc"
mount -t sysfs sysfs "$folder/sys"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$folder/dev/pts"
ln -sf pts/ptmx "$folder/dev/ptmx"
mount -t tmpfs tmpfs "$folder/run"
mount -t tmpfs tmpfs "$folder/tmp"
mount --bind "$(readlink -f /etc/resolv.conf)" "$folder/etc/resolv.conf"

# What this machine trusts, pip trusts in there, too.
if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
    cp /etc/ssl/certs/ca-certificates.crt "$folder/run/trusted.crt"
    export PIP_CERT=/run/trusted.crt
fi

# The folder becomes the root of this mount namespace. In a mere chroot nobody could make a user namespace, and tests do.
cd "$folder"
pivot_root . . # the old root is now mounted over the new one
umount --lazy .
exec "$@"
