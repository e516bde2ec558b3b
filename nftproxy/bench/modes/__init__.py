"""The modes to compare: ways to lay out rules for Services, each rendered here.

    mode = make("iptables", ModePlace(namespace, workload.node_settings(), workload.service_cidr()))
    if reason := mode.unavailable(): ...
    try:
        load = [Load(workload.service(n), (workload.slice(n),)) for n in range(workload.services)]
        work = mode.start(load)
        changed = Load(workload.service(17), (workload.slice(17, replaced=1),))
        work = mode.update(put=[changed])    # one endpoint changes
        added = Load(new.service(1000), (new.slice(1000),))
        work = mode.update(put=[added])      # a service is added
        work = mode.update(deleted=[added])  # ... and deleted
        work = mode.restart(load)            # a new process, rules there
        print(work.own, work.programs, work.commands, work.sent)
    finally:
        mode.stop()

    none                   routed, no proxy: the cost of the network alone
    floor                  one chain with one rule, `dnat to`: the least that translating costs
    nftproxy               our own table, written by the code of `nftproxy run`
    nftproxy-netlink       the same, with elements written through netlink instead of libnftables
    nftproxy-source-hash   the same as nftproxy, with an endpoint by the client's address
    nftproxy-maglev        the same, by a table that changes little when the endpoints do
    nftproxy-affinity      the same as nftproxy, with ClientIP affinity for all Services
    iptables               kube-proxy's iptables mode, by iptables-restore; `backend` legacy or nft
    kube-proxy-nftables    kube-proxy's nftables mode, through nft (contract 5)
    ipvs                   kube-proxy's ipvs mode, through ipvsadm, where the kernel has ip_vs
    userspace              the oldest: a process that accepts and forwards
    real-nftables          the real kube-proxy in nftables mode; this and the next need a
                           `KubeProxyProgram` and its API server
    real-iptables          ... in iptables mode, with the same `backend`

All but the first two serve ClusterIPs, NodePorts, load-balancer VIPs, external policy Local,
ClientIP affinity and masquerading, in IPv4. Services stand in the rules in the given order; the
originals have no order. The baselines remember their rules in the calling process, and `nftproxy`
does all its work there: measure memory in a process of its own. For a baseline `Work.programs` is
time that the original spends as well, and `Work.own` is Python in the place of its Go.
"""

from typing import Final, Literal

from nftproxy.bench.modes.floor import Floor
from nftproxy.bench.modes.iptables import IptablesLegacy, IptablesNft
from nftproxy.bench.modes.ipvs import Ipvs
from nftproxy.bench.modes.kube_nftables import KubeNftables
from nftproxy.bench.modes.mode import Load, Mode, ModePlace, Work
from nftproxy.bench.modes.none import Nothing
from nftproxy.bench.modes.original import KubeProxyProgram, OriginalIptables, OriginalNftables
from nftproxy.bench.modes.ours import (
    Ours,
    OursByAffinity,
    OursByMaglev,
    OursByNetlink,
    OursBySourceHash,
)
from nftproxy.bench.modes.userspace import Userspace
from nftproxy.errors import NftproxyError

_KINDS: Final[tuple[type[Mode], ...]] = (
    Nothing,
    Floor,
    Ours,
    OursByNetlink,
    OursBySourceHash,
    OursByMaglev,
    OursByAffinity,
    IptablesLegacy,
    IptablesNft,
    KubeNftables,
    Ipvs,
    Userspace,
)
MODES: Final[dict[str, type[Mode]]] = {kind.name: kind for kind in _KINDS}
REAL: Final = (OriginalNftables.name, OriginalIptables.name)
"""The modes of a `KubeProxyProgram`."""


def make(
    name: str,
    place: ModePlace,
    iptables_backend: Literal["legacy", "nft"] = "legacy",
    program: KubeProxyProgram | None = None,
) -> Mode:
    """Return a new mode; `iptables` names the one with the given backend."""
    chosen = f"iptables-{iptables_backend}" if name == "iptables" else name
    if chosen in REAL:
        if program is None:
            raise NftproxyError(f"the mode {name} needs a kube-proxy", hint="--kube-proxy PATH")
        return (
            OriginalNftables(place, program)
            if chosen == OriginalNftables.name
            else OriginalIptables(place, program, iptables_backend)
        )
    if chosen not in MODES:
        raise NftproxyError(
            f"there is no mode {name!r}", hint=f"modes: {', '.join([*MODES, 'iptables', *REAL])}"
        )
    return MODES[chosen](place)


__all__ = ["MODES", "REAL", "KubeProxyProgram", "Load", "Mode", "ModePlace", "Work", "make"]
