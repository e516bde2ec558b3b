#!/usr/bin/env bash
# With OFFLINE, Debian packages come from that folder alone; without it, from where the box has them.
# shellcheck source=common.sh
source "${NFTPROXY_TREE:-/nftproxy}/vagrant/provision/common.sh"

apt=${APT_FOLDER:-/etc/apt}

# index: what apt wants to know of the packages in this folder, whose sums are in the one above.
index() {
    local package
    for package in *.deb; do
        dpkg-deb --field "$package"
        echo "Filename: ./$package"
        echo "Size: $(stat --format %s "$package")"
        echo "SHA256: $(sed -n "s|  packages/$package\$||p" ../SHA256SUMS)"
        echo
    done
}

# only_from FOLDER: apt knows the packages of that folder, and no others.
only_from() {
    (cd "$1/packages" && index >Packages.new && mv Packages.new Packages)
    # The packages are what SHA256SUMS says; who signed them was looked at when they were collected.
    echo "deb [trusted=yes] file:$1/packages ./" | write "$apt/offline.list" || true
    write "$apt/apt.conf.d/90offline" <<END || true
Dir::Etc::sourcelist "$apt/offline.list";
Dir::Etc::sourceparts "/dev/null";
END
    apt-get -qq update
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    if [ -z "${OFFLINE:-}" ]; then
        rm -f "$apt/apt.conf.d/90offline" "$apt/offline.list"
    else
        check_offline "$OFFLINE"
        only_from "$OFFLINE"
    fi
fi
