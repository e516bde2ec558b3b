#!/usr/bin/env bash
# nftproxy from the working tree: as an image in containerd, and as a command on the machine.
# shellcheck source=common.sh
source "${NFTPROXY_TREE:-/nftproxy}/vagrant/provision/common.sh"
tree=${NFTPROXY_TREE:-/nftproxy}

install_packages python3 libnftables1
if [ -n "${OFFLINE:-}" ]; then
    # As it was built when the folder was filled; containerd has it already.
    digest=$(sed -n 's|  images/nftproxy.tar$||p' "$OFFLINE/SHA256SUMS")
    if [ "$digest" != "$(cat /var/lib/nftproxy-image 2>/dev/null)" ]; then
        rm -rf /opt/nftproxy
        tar --extract --to-stdout --file "$OFFLINE/images/nftproxy.tar" layer.tar | tar --extract --directory / ./opt/nftproxy
        ln -sf /opt/nftproxy/bin/nftproxy /usr/local/bin/nftproxy
        echo "$digest" >/var/lib/nftproxy-image
    fi
    nftproxy --version
    exit
fi

install_packages debootstrap python3-venv
# Building again is for changed trees only: it takes minutes.
digest=$(cd "$tree" && find nftproxy rulesets examples release share deploy pyproject.toml -type f -print0 | sort --zero-terminated |
    xargs --null sha256sum | sha256sum | cut -c 1-16)
if [ "$digest" != "$(cat /var/lib/nftproxy-image 2>/dev/null)" ]; then
    python3 "$tree/release/image.py" --folder /var/tmp/nftproxy-image --name docker.io/library/nftproxy:0.1.0 --output /var/tmp/nftproxy.tar
    ctr --namespace k8s.io images import /var/tmp/nftproxy.tar
    # The same files serve the host: it is a Debian 13, too.
    rm -rf /opt/nftproxy
    cp --archive /var/tmp/nftproxy-image/image/opt/nftproxy /opt/nftproxy
    ln -sf /opt/nftproxy/bin/nftproxy /usr/local/bin/nftproxy
    rm -rf /var/tmp/nftproxy.tar
    echo "$digest" >/var/lib/nftproxy-image
fi
nftproxy --version
