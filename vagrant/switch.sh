#!/usr/bin/env bash
# Change who serves Services in the running cluster: PROXY=nftproxy|kube-proxy-iptables|kube-proxy-nftables, RUN_AS=daemonset|systemd.
# `make switch PROXY=...` calls it. Connections stay: what leaves keeps its rules, and they go only when what enters serves.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here"

# setting NAME: from the environment, or else from variables.env.
setting() {
    local value=${!1:-}
    printf '%s' "${value:-$(sed -n "s/^$1=//p" variables.env)}"
}

main() {
    local settings=() name number
    for name in PROXY RUN_AS NETWORK POD_NETWORK; do
        settings+=("$name=$(setting "$name")")
    done
    for phase in leave enter wait tidy; do
        for number in $(seq "$(setting NODES)"); do
            echo "node$number: $phase"
            vagrant ssh "node$number" --command "sudo env ${settings[*]} NODE=$number /nftproxy/vagrant/provision/proxy.sh $phase" </dev/null
        done
    done
}

main
