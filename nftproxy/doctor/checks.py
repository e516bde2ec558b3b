"""All checks, in the order in which they are shown.

Declarative: group, name, and the function that judges.
"""

from nftproxy.doctor import clusterchecks, kernelchecks, limitchecks, neighbourchecks, tablechecks
from nftproxy.doctor.judgement import Check

CHECKS = (
    Check("kernel", "version", kernelchecks.kernel),
    Check("kernel", "nf_tables", kernelchecks.nf_tables),
    Check("kernel", "nf_conntrack", kernelchecks.nf_conntrack),
    Check("kernel", "libnftables", kernelchecks.library),
    Check("kernel", "expressions", kernelchecks.program),
    Check("kernel", "IPv4 forwarding", kernelchecks.ipv4_forwarding),
    Check("kernel", "IPv6 forwarding", kernelchecks.ipv6_forwarding),
    Check("kernel", "rp_filter", kernelchecks.rp_filter),
    Check("kernel", "bridges", kernelchecks.bridge),
    Check("limits", "conntrack", limitchecks.conntrack),
    Check("limits", "conntrack drops", limitchecks.drops),
    Check("limits", "collisions", limitchecks.insert_failed),
    Check("neighbours", "other proxies", neighbourchecks.proxies),
    Check("neighbours", "other tables", neighbourchecks.foreign),
    Check("neighbours", "docker", neighbourchecks.docker),
    Check("neighbours", "ufw", neighbourchecks.ufw),
    Check("neighbours", "firewalld", neighbourchecks.firewalld),
    Check("neighbours", "flush ruleset", neighbourchecks.flush),
    Check("neighbours", "newer nft", neighbourchecks.library_neighbours),
    Check("neighbours", "nft", neighbourchecks.lister),
    Check("table", "present", tablechecks.present),
    Check("table", "program", tablechecks.program),
    Check("table", "process", tablechecks.running),
    Check("table", "health", tablechecks.health),
    Check("table", "syncs", tablechecks.sync),
    Check("table", "refused", tablechecks.refused),
    Check("table", "repairs", tablechecks.repairs),
    Check("cluster", "node address", clusterchecks.address),
    Check("cluster", "pod network", clusterchecks.pod_network),
    Check("cluster", "service network", clusterchecks.service_network),
    Check("cluster", "NodePorts", clusterchecks.node_ports),
    Check("cluster", "API server", clusterchecks.api),
    Check("probe", "Services", clusterchecks.probe),
)
