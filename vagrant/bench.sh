#!/usr/bin/env bash
# How fast connections are made, and how fast changes arrive; writes results/NAME.json here, next to this script.
#
#   bench.sh lab NAME        in a lab of network namespaces, made for it (root; nftproxy on the PATH)
#   bench.sh cluster NAME    in the Vagrant cluster, from the host; NAME is the proxy that runs there now
#
# SECONDS_EACH (10) is how long connections are made. `make bench` does it for each proxy and draws the chart.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=places.sh
source "$here/places.sh"

# milliseconds since some moment, on this machine.
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# reaction true|false OUTCOME ADDRESS: milliseconds from changing web's readiness to that outcome, with the way there and back.
reaction() {
    local started
    started=$(now_ms)
    set_ready web "$1"
    run "$POD" "${LOAD[@]}" until "$2" "$3" 80 || return 1
    echo $(($(now_ms) - started))
}

main() {
    if [ $# -ne 2 ]; then
        sed -n 's/^#   //p' "$0" >&2
        exit 2
    fi
    case $1 in
        lab) places_lab ;;
        cluster) places_cluster ;;
        *) exit 2 ;;
    esac
    local web figures gone back
    web=$(address web)
    run "$POD" "${LOAD[@]}" until answered "$web" 80
    figures=$(run "$POD" "${LOAD[@]}" connect "$web" 80 "${SECONDS_EACH:-10}")
    gone=$(reaction false refused "$web")
    back=$(reaction true answered "$web")
    mkdir -p "${RESULTS:-$here/results}"
    printf '%s\n' "${figures%\}}, \"gone_ms\": $gone, \"back_ms\": $back}" | tee "${RESULTS:-$here/results}/$2.json"
}

main "$@"
