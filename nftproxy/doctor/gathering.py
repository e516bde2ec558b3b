"""All facts about this node; what fails is `Unknown` and stops nothing.

One after the other, apart from those that only wait: for a second look, and for a program.
"""

import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nftproxy.address import Network
from nftproxy.configuration import effective
from nftproxy.configuration.config import PRIMARY, KubeProxyConfiguration, build
from nftproxy.configuration.settings import (
    ALL,
    NodePortNetworks,
    NodeSettings,
    node_name,
    node_settings,
)
from nftproxy.configuration.validation import require_valid
from nftproxy.doctor import cluster, machine, probing, process, rules
from nftproxy.doctor.cluster import Objects
from nftproxy.doctor.endpoints import places, sample
from nftproxy.doctor.facts import Facts, Starter
from nftproxy.doctor.hostfiles import HostFiles
from nftproxy.doctor.model import Unknown
from nftproxy.errors import NftproxyError
from nftproxy.kernel.snapshot import Snapshot
from nftproxy.model import Node
from nftproxy.node import host, takeover
from nftproxy.sources.delivery import facts as node_facts
from nftproxy.table.program import Program

T = TypeVar("T")
CONFIG = "etc/nftproxy/config.conf"
_ENDPOINTS = 300
_NAME = "hostname_override"  # the parameter of --node-name
_LISTED_OR_NOT: tuple[NodePortNetworks, ...] = (ALL, ())


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says; flags are as `effective.node` takes them."""

    flags: Mapping[str, Any]
    manifests: Sequence[Path] = ()
    host_root: Path = Path("/")
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Configured:
    """The configuration, where it was found, and the addresses of the servers."""

    config: KubeProxyConfiguration | Unknown
    file: str
    health: str
    metrics: str


def gather(asked: Asked) -> Facts:
    """Return all facts; NftproxyError for flags or files that cannot be used."""
    with ThreadPoolExecutor(2, "aside") as aside:
        return _gather(asked, aside)


def _gather(asked: Asked, aside: ThreadPoolExecutor) -> Facts:
    tracking = aside.submit(machine.tracking)
    configured = configuration(asked)
    usable = build({}) if isinstance(configured.config, Unknown) else configured.config
    override = asked.flags.get(_NAME) or usable.hostname_override
    usable = msgspec.structs.replace(usable, hostname_override=override)
    hostname = host.hostname()
    name = node_name(usable, hostname)
    objects = (
        cluster.of_manifests(asked.manifests, name)
        if asked.manifests
        else cluster.of_api(configured.config, name)
    )
    settings = _settings(usable, objects.node, hostname)
    interfaces = rules.attempt(machine.interfaces)
    sysctls = machine.sysctls(_of(interfaces))
    seen = rules.attempt(rules.snapshot)
    table = None if isinstance(seen, Unknown) else seen
    lister = aside.submit(rules.lister) if table else None
    deadly = rules.attempt(rules.deadly)
    library = rules.library()
    blocked = Unknown("libnftables must not be called while the tables named above exist")
    files = HostFiles(asked.host_root)
    routes = rules.attempt(machine.routes)
    looked_at = sample(places(table), _of(routes), _of(interfaces), _ENDPOINTS) if table else []
    return Facts(
        release=platform.release(),
        netfilter=rules.netfilter(),
        library=library,
        program=(
            Unknown("libnftables cannot be loaded")
            if library
            else blocked
            if deadly and not isinstance(deadly, Unknown)
            else deadly
            if isinstance(deadly, Unknown)
            else rules.program(settings)
        ),
        sysctls=sysctls,
        interfaces=interfaces,
        routes=routes,
        filtered=machine.filtered(),
        fill=machine.fill(sysctls),
        tracking=tracking.result(),
        leftovers=rules.attempt(takeover.leftovers),
        barriers=rules.attempt(lambda: rules.found_barriers(looked_at)),
        unreached=rules.attempt(lambda: rules.unreached(looked_at)),
        deadly=deadly,
        lister=(
            seen
            if isinstance(seen, Unknown)
            else lister.result()
            if lister
            else Unknown("there is no table of ours to list")
        ),
        flushes=files.flushes(),
        firewalld=files.firewalld(),
        ufw=files.ufw(),
        snapshot=seen,
        programs=rules.attempt(rules.programs),
        wanted=_digests(configured.config, objects.node, settings),
        running=process.running(),
        health=process.health(configured.health),
        metrics=process.metrics(configured.metrics),
        configuration=configured.config,
        config_file=configured.file,
        node_name=name,
        node=objects.node,
        service_cidrs=_service_cidrs(objects, table),
        api=objects.api,
        probed=(
            Unknown("give --probe to make connections")
            if not asked.probe
            else seen
            if isinstance(seen, Unknown)
            else probing.probe(seen)
            if seen
            else Unknown("there is no table of ours to look Services up in")
        ),
        started_by=_starter(files, configured.config, asked.manifests),
        now=time.time(),
    )


def _of(found: tuple[T, ...] | Unknown) -> tuple[T, ...]:
    """Return what was found; nothing where that is not known."""
    return () if isinstance(found, Unknown) else found


def configuration(asked: Asked) -> Configured:
    """Return the configuration: of --config, of the process that runs, or of the usual file."""
    if file := str(asked.flags.get("config") or ""):
        config, _ = effective.node(asked.flags)
        require_valid(config)
        return Configured(config, file, config.healthz_bind_address, config.metrics_bind_address)
    defaults = build({})
    usual = asked.host_root / CONFIG
    served = process.served_configuration(defaults.metrics_bind_address)
    if not isinstance(served, Unknown):
        return Configured(
            served,
            str(usual) if usual.is_file() else "",
            served.healthz_bind_address,
            served.metrics_bind_address,
        )
    if usual.is_file():
        held = rules.attempt(lambda: effective.node({"config": str(usual)})[0])
        servers = defaults if isinstance(held, Unknown) else held
        return Configured(
            held, str(usual), servers.healthz_bind_address, servers.metrics_bind_address
        )
    return Configured(
        Unknown(
            f"no configuration: no nftproxy serves one, and there is no {usual}; give --config"
        ),
        "",
        defaults.healthz_bind_address,
        defaults.metrics_bind_address,
    )


def _settings(config: KubeProxyConfiguration, node: Node | Unknown, hostname: str) -> NodeSettings:
    """Return the settings of the node; without those that need a Node which is not known."""
    facts = None if isinstance(node, Unknown) else node_facts(node)
    supported = host.supported_families()
    try:
        return node_settings(config, facts, hostname=hostname, supported=supported)[0]
    except NftproxyError:
        return node_settings(build({}), None, hostname=hostname, supported=supported)[0]


def _digests(
    config: KubeProxyConfiguration | Unknown, node: Node | Unknown, settings: NodeSettings
) -> frozenset[str] | Unknown:
    """Return the digests that the table may name; without the Node there are several."""
    if isinstance(config, Unknown):
        return config
    if config.detect_local_mode == "NodeCIDR" and settings.detector is None:
        return Unknown("detectLocalMode NodeCIDR needs the Node, which is not known")
    possible = [settings]
    if PRIMARY in config.node_port_addresses and isinstance(node, Unknown):
        # Whether a family has an address of its own decides whether its NodePorts are listed.
        possible = [
            replace(settings, nodeport_addresses=dict(zip(settings.families, chosen, strict=True)))
            for chosen in product(_LISTED_OR_NOT, repeat=len(settings.families))
        ]
    return frozenset(
        Program(replace(each, families=order, log_refusals=logs)).digest
        for each in possible
        for logs in (False, True)  # no configuration says whether
        for order in (settings.families, tuple(reversed(settings.families)))
    )


def _starter(
    files: HostFiles, config: KubeProxyConfiguration | Unknown, manifests: Sequence[Path]
) -> Starter:
    if files.has_unit:
        return Starter.SYSTEMD
    by_hand = not isinstance(config, Unknown) and not config.client_connection.kubeconfig
    if manifests or (by_hand and not cluster.in_cluster()):
        return Starter.HAND
    return Starter.CLUSTER


def _service_cidrs(objects: Objects, seen: Snapshot | None) -> tuple[Network, ...] | Unknown:
    if not isinstance(objects.service_cidrs, Unknown):
        return objects.service_cidrs
    held = tuple(machine.networks(seen.service_cidrs)) if seen else ()
    return held or objects.service_cidrs
