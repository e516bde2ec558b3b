#!/usr/bin/env bash
# Services of every kind, asked from a pod, a node and outside; prints a table. Exit code: 0 if all answers are right, else 1.
#
#   smoke.sh lab        in a lab of network namespaces, made for it (root; nftproxy on the PATH)
#   smoke.sh cluster    in the Vagrant cluster, from the host
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=places.sh
source "$here/places.sh"

# ask PLACE PROTOCOL ADDRESS PORT: one connection; prints what came back, which is a line of JSON, `refused` or `nothing`.
ask() {
    local said
    if [ "$2" = tcp ]; then
        said=$(run "$1" timeout 10 bash -c "head -n 1 </dev/tcp/$3/$4" 2>&1) || true
    else
        said=$(run "$1" timeout 10 bash -c "exec 3<>/dev/udp/$3/$4; echo hello >&3; head -n 1 <&3" 2>&1) || true
    fi
    case $said in
        *'"name"'*) printf '%s\n' "$said" | grep --max-count=1 '"name"' ;;
        *refused*) echo refused ;;
        *) echo nothing ;;
    esac
}

# field NAME: of the JSON line on standard input.
field() { sed -n "s/.*\"$1\": \"\([^\"]*\)\".*/\1/p"; }

wrong=0
# row WHAT FROM TO RESULT RIGHT
row() {
    local verdict=ok
    if [ "$5" != yes ]; then
        verdict=WRONG
        wrong=$((wrong + 1))
    fi
    printf '%-34s %-8s %-24s %-36s %s\n' "$1" "$2" "$3" "$4" "$verdict"
}

# answers WHAT PLACE PROTOCOL ADDRESS PORT [SOURCE]: it has to answer, and to see that source if one is given.
answers() {
    local answer source right=yes
    answer=$(ask "$2" "$3" "$4" "$5")
    source=$(field source <<<"$answer")
    [ -n "$source" ] || right=no
    [ -z "${6:-}" ] || [ "$source" = "$6" ] || right=no
    row "$1" "$2" "$4:$5/$3" "${source:+$(field name <<<"$answer"), seeing }${source:-$answer}" "$right"
}

# refuses WHAT PLACE PROTOCOL ADDRESS PORT
refuses() {
    local answer
    answer=$(ask "$2" "$3" "$4" "$5")
    row "$1" "$2" "$4:$5/$3" "$answer" "$([ "$answer" = refused ] && echo yes || echo no)"
}

# keeps WHAT PLACE PROTOCOL ADDRESS PORT: the same endpoint five times.
keeps() {
    local names
    names=$(for _ in 1 2 3 4 5; do ask "$2" "$3" "$4" "$5" | field name; done | sort | uniq --count | sed 's/^ *//')
    row "$1" "$2" "$4:$5/$3" "${names//$'\n'/, }" "$([[ $names =~ ^5\ [^[:space:]]+$ ]] && echo yes || echo no)"
}

main() {
    case ${1:-} in
        lab) places_lab ;;
        cluster) places_cluster ;;
        *)
            sed -n 's/^#   //p' "$0" >&2
            exit 2
            ;;
    esac
    local web cart batch
    web=$(address web) cart=$(address cart) batch=$(address batch)
    printf '%-34s %-8s %-24s %-36s\n' WHAT FROM TO RESULT
    answers "ClusterIP, source kept" "$POD" tcp "$web" 80 "$POD_ADDRESS"
    answers "ClusterIP, UDP" "$POD" udp "$web" 514 "$POD_ADDRESS"
    answers "ClusterIP" "$NODE" tcp "$web" 80
    keeps "ClientIP" "$POD" tcp "$cart" 80
    refuses "no endpoints" "$POD" tcp "$batch" 80
    refuses "no endpoints" "$NODE" tcp "$batch" 80
    answers "NodePort" "$OUTSIDE" tcp "$NODE_ADDRESS" 30080
    answers "NodePort, another node" "$OUTSIDE" tcp "$OTHER_NODE_ADDRESS" 30080
    answers "NodePort" "$POD" tcp "$NODE_ADDRESS" 30080
    answers "NodePort" "$NODE" tcp "$OTHER_NODE_ADDRESS" 30080
    answers "NodePort, Local: source kept" "$OUTSIDE" tcp "$NODE_ADDRESS" 30025 "$OUTSIDE_ADDRESS"
    echo
    if [ "$wrong" -gt 0 ]; then
        echo "$wrong wrong"
        return 1
    fi
    echo "all right"
}

main "$@"
