"""The oldest mode.

A process listens for every service port and forwards; iptables redirects the service's addresses to
it.

    KUBE-PORTALS-CONTAINER   packets to a ClusterIP, external IP or VIP: REDIRECT to our port
    KUBE-PORTALS-HOST        the same from this node: DNAT to that port on the node's own address
    KUBE-NODEPORT-*          the same for NodePorts

A changed endpoint changes no rule. Endpoints always see the node as the source, and external policy
Local has no effect, as in the original. One difference is in its favour: one iptables-restore
writes all rules, not one iptables for each, which took minutes.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from nftproxy.bench.modes.baseline import Baseline
from nftproxy.bench.modes.served import FAMILY, ServedPort, node_addresses
from nftproxy.bench.modes.xtables import Jump, Xtables, restore
from nftproxy.errors import NftproxyError
from nftproxy.lab.namespace import enter
from nftproxy.model import ObjectName

# By path: it needs nothing of the package, and its memory is measured.
_FORWARDER = str(Path(__file__).with_name("forwarder.py"))
_LOCAL = ("-m", "addrtype", "--dst-type", "LOCAL")
JUMPS = (  # each is inserted before the earlier ones: ClusterIPs are first
    Jump("nat", "PREROUTING", "KUBE-NODEPORT-CONTAINER", _LOCAL, "handle service NodePorts"),
    Jump("nat", "PREROUTING", "KUBE-PORTALS-CONTAINER", (), "handle ClusterIPs"),
    Jump("nat", "OUTPUT", "KUBE-NODEPORT-HOST", _LOCAL, "handle service NodePorts"),
    Jump("nat", "OUTPUT", "KUBE-PORTALS-HOST", (), "handle ClusterIPs"),
)
CHAINS = tuple(jump.target for jump in JUMPS)


class Listening(NamedTuple):
    """The process's view of a service port, and the matches that redirect to it."""

    key: str
    protocol: str
    endpoints: tuple[tuple[str, int], ...]
    seconds: int
    portals: tuple[str, ...]
    nodeports: tuple[str, ...]


Services = Iterable[Sequence[Listening]]


class Userspace(Baseline[tuple[Listening, ...]]):
    """The mode."""

    name = "userspace"
    needs = {"iptables-restore": "iptables"}  # noqa: RUF012
    _process: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Start empty, and end the process."""
        super().prepare()
        self.tables = Xtables(self.programs)
        self.nodes = node_addresses(self.place.settings)
        self.node = self.place.settings.node_ips[FAMILY].text
        self.ports: dict[str, int] = {}
        self._end()

    def render(self, ports: Sequence[ServedPort]) -> tuple[Listening, ...]:
        """Render a service."""
        return tuple(
            Listening(
                key=f"{port.service}:{port.port_name}/{port.proto}",
                protocol=port.proto,
                endpoints=port.cluster or port.local,
                seconds=port.affinity_seconds or 0,
                portals=tuple(
                    f"-d {address}/32 -p {port.proto} --dport {port.port}"
                    for address in (port.cluster_ip, *port.outside)
                ),
                nodeports=tuple(
                    f"-d {address}/32 -p {port.proto} --dport {port.node_port}"
                    for address in self.nodes
                    if port.node_port
                ),
            )
            for port in ports
        )

    def full(self) -> None:
        """Start the process, and write all rules."""
        with enter(self.place.namespace):
            self._process = subprocess.Popen(
                [sys.executable, _FORWARDER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the bench, which then stops it
            )
        self._tell(self.rendered.values(), ())
        self.tables.ensure(JUMPS)
        self.tables.restore(restore("nat", CHAINS, self._rules(self.rendered.values())))

    def partial(
        self, put: Sequence[ObjectName], gone: Mapping[ObjectName, tuple[Listening, ...]]
    ) -> None:
        """Update the process; write rules where addresses changed."""
        changed = [self.rendered[name] for name in put]
        stay = {each.key for service in changed for each in service}
        old_rules = list(self._rules(gone.values()))
        self._tell(
            changed,
            [each.key for service in gone.values() for each in service if each.key not in stay],
        )
        new_rules = list(self._rules(changed))
        undone, added = _without(old_rules, new_rules), _without(new_rules, old_rules)
        if undone or added:
            self.tables.restore(restore("nat", (), added, undone=undone))

    def stop(self) -> None:
        """Remove the rules and end the process."""
        self.tables.remove()
        self._end()

    def processes(self) -> tuple[int, ...]:
        """Return the process that forwards."""
        return (self._process.pid,) if self._process else ()

    def _rules(self, services: Services) -> Iterator[str]:
        for each in (each for service in services for each in service):
            port = self.ports[each.key]
            title = each.key.rpartition("/")[0]
            for kind, matches in (("PORTALS", each.portals), ("NODEPORT", each.nodeports)):
                for match in matches:
                    rule = f'{match} -m comment --comment "{title}"'
                    yield f"KUBE-{kind}-CONTAINER {rule} -j REDIRECT --to-ports {port}"
                    yield f"KUBE-{kind}-HOST {rule} -j DNAT --to-destination {self.node}:{port}"

    def _tell(self, services: Services, gone: Sequence[str]) -> None:
        """Let the process listen, and learn its ports; counts as a program."""
        if self._process is None:
            raise NftproxyError("this mode was not started")
        listening = [each for service in services for each in service]
        order = json.dumps(
            {
                "put": {
                    each.key: (each.protocol, each.endpoints, each.seconds) for each in listening
                },
                "gone": gone,
            }
        )
        began = time.perf_counter()
        orders, answers = (
            cast("IO[str]", self._process.stdin),
            cast("IO[str]", self._process.stdout),
        )
        orders.write(order + "\n")
        orders.flush()
        answer = json.loads(answers.readline() or '"it ended"')
        self.programs.count(time.perf_counter() - began, len(order))
        if isinstance(answer, str):
            raise NftproxyError(
                f"the userspace proxy cannot listen: {answer}", hint="fewer services, or ulimit -n"
            )
        for key in gone:
            del self.ports[key]
        self.ports |= answer

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _without(rules: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [rule for rule in rules if rule not in known]
