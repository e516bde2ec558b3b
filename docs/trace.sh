#!/usr/bin/env bash
# The way of a connection's first packet through the rules of one node of a lab, as the kernel reports it.
#
#   docs/trace.sh NODE FROM ADDRESS PORT      for example: docs/trace.sh node2 pod2-3 10.96.0.10 80
#
# On a real node the same is done by hand: a rule that sets nftrace on the packets in question, then `nft monitor trace`.
set -euo pipefail

if [ $# -ne 4 ]; then
    sed -n 's/^#   //p' "$0" >&2
    exit 2
fi
node=$1 from=$2 address=$3 port=$4

on_node() { nftproxy lab exec "$node" -- "$@"; }

table() {
    cat <<END
table inet trace {
    chain arriving { type filter hook prerouting priority -300; ip daddr $address tcp dport $port tcp flags & (syn | ack) == syn meta nftrace set 1; }
    chain created { type filter hook output priority -300; ip daddr $address tcp dport $port tcp flags & (syn | ack) == syn meta nftrace set 1; }
}
END
}

# One line for each base chain with the packet as it is there, below it the rules that matched, and what they decided.
readable() {
    awk '$4 == "inet" && $5 == "nftproxy" {
        chain = $6
        if ($7 == "packet:") {
            for (i = 8; i <= NF; i++) {
                if ($i == "ip" && $(i + 1) == "saddr") source = $(i + 2)
                if ($i == "ip" && $(i + 1) == "daddr") destination = $(i + 2)
                if ($i == "dport") port = $(i + 1)
            }
            printf "%s: from %s to %s port %s\n", chain, source, destination, port
        } else if ($7 == "rule") {
            rule = substr($0, index($0, " rule ") + 6)
            verdict = substr(rule, match(rule, / \(verdict /) + 10)
            sub(/ \(verdict .*/, "", rule)
            sub(/\)[[:space:]]*$/, "", verdict)
            printf "    %s: %s  => %s\n", chain, rule, verdict
        }
    }'
}

lines=$(mktemp)
trap 'rm -f "$lines"; on_node nft delete table inet trace' EXIT
table | on_node nft -f -
on_node nft monitor trace >"$lines" &
monitor=$!
sleep 1
nftproxy lab exec "$from" -- timeout 1 bash -c "head -n 1 </dev/tcp/$address/$port" >/dev/null 2>&1 || true
sleep 0.3
kill "$monitor"
wait "$monitor" || true
readable <"$lines"
