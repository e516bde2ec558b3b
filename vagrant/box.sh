#!/usr/bin/env bash
# Make a box for Vagrant's libvirt provider from Debian's mirror, where a registry of boxes is out of reach: a bare Debian 13 with sshd and
# the user vagrant, who has Vagrant's insecure key (Vagrant puts another in its place at the first start).
#
#   box.sh FILE         root; the mirror is that of this machine's apt. Then, with the name and version that variables.env gives:
#                       vagrant box add --name debian/trixie64 FILE; BOX_LIBVIRT_VERSION=0 vagrant up
#
# Needs debootstrap, e2fsprogs, fdisk, grub-common, grub-pc-bin, python3, qemu-utils and vagrant, all Debian's. ROOT_FOLDER may name a folder
# that debootstrap has filled before; it is used up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
size_gb=20
packages=systemd,systemd-sysv,systemd-resolved,dbus,udev,kmod,linux-image-amd64,iproute2,openssh-server,sudo,rsync
packages+=,ca-certificates,curl,procps,less

fail() {
    echo "box.sh: $*" >&2
    exit 1
}

# public_key: of the pair that every Vagrant has.
public_key() {
    local file
    file=$(find /usr/share /opt/vagrant -path '*/vagrant-[0-9]*/keys/vagrant.pub' 2>/dev/null | head -n 1) || true
    [ -n "$file" ] || fail "no vagrant.pub below /usr/share and /opt/vagrant; install vagrant"
    cat "$file"
}

# configure ROOT UUID: what makes a bare Debian a machine that Vagrant can log in to.
configure() {
    local root=$1
    echo trixie >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 trixie\n::1 localhost\n' >"$root/etc/hosts"
    echo "UUID=$2 / ext4 defaults 0 1" >"$root/etc/fstab"
    # Vagrant writes files that come before this one for the networks that it sets up.
    printf '[Match]\nName=eth*\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\n' >"$root/etc/systemd/network/80-dhcp.network"
    # No two machines of one box may have the same keys and the same identity.
    rm -f "$root"/etc/ssh/ssh_host_*_key*
    : >"$root/etc/machine-id"
    # The first boot would take this one over.
    rm -f "$root/var/lib/dbus/machine-id"
    cat >"$root/etc/systemd/system/host-keys.service" <<'END'
[Unit]
Description=SSH host keys of this machine
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
END
    echo 'UseDNS no' >"$root/etc/ssh/sshd_config.d/vagrant.conf"
    echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
    chmod 440 "$root/etc/sudoers.d/vagrant"
    chroot "$root" useradd --create-home --shell /bin/bash --password '*' vagrant
    install -d -m 700 "$root/home/vagrant/.ssh"
    public_key >"$root/home/vagrant/.ssh/authorized_keys"
    chroot "$root" chown -R vagrant:vagrant /home/vagrant/.ssh
    chroot "$root" systemctl --quiet enable systemd-networkd systemd-resolved ssh host-keys serial-getty@ttyS0
    # Until an address is there from DHCP, nothing has to wait: sshd listens on all that will be.
    chroot "$root" systemctl --quiet disable systemd-networkd-wait-online
    ln -sf /run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    # Debian keeps /vmlinuz and /initrd.img pointing to the newest kernel, so this file need not change.
    mkdir -p "$root/boot/grub"
    cat >"$root/boot/grub/grub.cfg" <<END
set timeout=0
linux /vmlinuz root=UUID=$2 ro quiet net.ifnames=0 console=tty0 console=ttyS0
initrd /initrd.img
boot
END
}

# disk ROOT UUID FILE: a disk with one partition, and GRUB before it: its first sector loads the ones that follow.
disk() {
    rm -f "$3"
    truncate --size "${size_gb}G" "$3"
    echo '2048,,83,*' | sfdisk --quiet "$3"
    # GRUB of Debian 12 cannot read what these two features write.
    mke2fs -q -F -t ext4 -U "$2" -O '^metadata_csum_seed,^orphan_file' -E offset=1048576 -d "$1" "$3" "$((size_gb * 1024 - 1))M"
    grub-mkimage --format=i386-pc --prefix='(hd0,msdos1)/boot/grub' --output="$3.core" biosdisk part_msdos ext2 normal linux boot
    [ "$(stat --format %s "$3.core")" -lt $((2047 * 512)) ] || fail "GRUB does not fit before the partition"
    dd status=none conv=notrunc if=/usr/lib/grub/i386-pc/boot.img of="$3" bs=440 count=1
    dd status=none conv=notrunc if="$3.core" of="$3" bs=512 seek=1
    rm "$3.core"
}

main() {
    if [ $# -ne 1 ]; then
        sed -n 's/^#   //p' "$0" >&2
        exit 2
    fi
    [ "$(id -u)" = 0 ] || fail "must be root, for debootstrap"
    local box tool work root uuid
    box=$(realpath "$1")
    for tool in debootstrap mke2fs sfdisk grub-mkimage qemu-img python3; do
        command -v "$tool" >/dev/null || fail "no $tool on the PATH; this script's head names the packages"
    done
    work=$(mktemp --directory --tmpdir="$(dirname "$box")")
    # shellcheck disable=SC2064  # work is this function's own
    trap "rm -rf '$work'" EXIT
    root=${ROOT_FOLDER:-$work/root}
    uuid=$(cat /proc/sys/kernel/random/uuid)
    if [ ! -e "$root/vmlinuz" ]; then
        echo "debootstrap: a few minutes"
        debootstrap --variant=minbase --include="$packages" trixie "$root" \
            "$(cd "$here/../release" && python3 -c 'import image; print(image.mirror())')" >"$work/log" || fail "$(tail -n 3 "$work/log")"
    fi
    configure "$root" "$uuid"
    echo "the disk"
    disk "$root" "$uuid" "$work/disk"
    qemu-img convert -O qcow2 "$work/disk" "$work/box.img"
    echo "{\"provider\": \"libvirt\", \"format\": \"qcow2\", \"virtual_size\": $size_gb}" >"$work/metadata.json"
    echo 'Vagrant.configure("2") { |config| }' >"$work/Vagrantfile"
    tar --create --file "$box" --directory "$work" metadata.json Vagrantfile box.img
    echo "$box: $(($(stat --format %s "$box") / 1000000)) MB"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main "$@"
fi
