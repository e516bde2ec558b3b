"""Kernel settings at the start.

What is written where, on copies of /proc and /sys and for real in a network namespace.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from nftproxy.configuration.config import ConntrackSection
from nftproxy.configuration.duration import HOUR, SECOND, Duration
from nftproxy.errors import KernelError, UnusableError
from nftproxy.kernel.reader import Reader
from nftproxy.lab import namespace
from nftproxy.node.sysctl import (
    Setting,
    apply,
    cpu_count,
    load_conntrack,
    max_entries,
    set_oom_score,
    wanted,
)
from tests.support.world import unique_name

LEAVE_ALONE = ConntrackSection(
    max_per_core=0, tcp_established_timeout=Duration(0), tcp_close_wait_timeout=Duration(0)
)


@pytest.mark.parametrize(
    ("per_core", "at_least", "cpus", "expected"),
    [
        pytest.param(32768, 131072, 2, 131072, id="the default on a small machine: the minimum"),
        pytest.param(32768, 131072, 4, 131072, id="exactly the minimum"),
        pytest.param(32768, 131072, 5, 163840, id="the default on a larger one"),
        pytest.param(32768, 131072, 32, 1048576, id="exactly the ceiling"),
        pytest.param(32768, 131072, 33, 1048576, id="never above the ceiling"),
        pytest.param(32768, 2000000, 2, 2000000, id="but a minimum above it counts"),
        pytest.param(32768, 2000000, 33, 1048576, id="unless the CPUs alone reach the ceiling"),
        pytest.param(0, 131072, 64, 0, id="0 leaves it alone, whatever the minimum"),
    ],
)
@pytest.mark.contract("6.1.1")
def test_max_entries(per_core: int, at_least: int, cpus: int, expected: int) -> None:
    assert max_entries(per_core, at_least, cpus) == expected


@pytest.mark.parametrize(
    ("conntrack", "expected"),
    [
        pytest.param(
            ConntrackSection(),
            [
                ("nf_conntrack_max", 131072),
                ("nf_conntrack_tcp_timeout_established", 86400),
                ("nf_conntrack_tcp_timeout_close_wait", 3600),
            ],
            id="the defaults",
        ),
        pytest.param(
            ConntrackSection(
                max_per_core=100000,
                min=1,
                tcp_established_timeout=Duration(2 * HOUR),
                tcp_close_wait_timeout=Duration(60 * SECOND),
                tcp_be_liberal=True,
                udp_timeout=Duration(31 * SECOND),
                udp_stream_timeout=Duration(181 * SECOND),
            ),
            [
                ("nf_conntrack_max", 200000),
                ("nf_conntrack_tcp_timeout_established", 7200),
                ("nf_conntrack_tcp_timeout_close_wait", 60),
                ("nf_conntrack_tcp_be_liberal", 1),
                ("nf_conntrack_udp_timeout", 31),
                ("nf_conntrack_udp_timeout_stream", 181),
            ],
            id="everything, in order",
        ),
        pytest.param(LEAVE_ALONE, [], id="nothing"),
    ],
)
@pytest.mark.contract("6.1", "6.1.1", "6.1.6")
def test_what_is_set(conntrack: ConntrackSection, expected: list[tuple[str, int]]) -> None:
    assert wanted(conntrack, 2) == [Setting(*each) for each in expected]


class Machine:
    """Copies of the files below /proc and /sys, with values that nobody wants."""

    def __init__(self, root: Path, cpus: int = 5, hashsize: int = 1024) -> None:
        self.proc, self.sys = root / "proc", root / "sys"
        self.netfilter = self.proc / "sys/net/netfilter"
        self.hashsize = self.sys / "module/nf_conntrack/parameters/hashsize"
        for setting in wanted(
            ConntrackSection(
                tcp_be_liberal=True,
                udp_timeout=Duration(SECOND),
                udp_stream_timeout=Duration(SECOND),
            ),
            1,
        ):
            self.put(self.netfilter / setting.name, 7)
        self.put(self.hashsize, hashsize)
        for number in range(cpus):
            (self.sys / f"devices/system/cpu/cpu{number}/topology").mkdir(parents=True)
        for other in (
            "cpufreq/topology",
            "cpuidle",
            f"cpu{cpus}",
        ):  # the last one is offline: it has no topology
            (self.sys / "devices/system/cpu" / other).mkdir(parents=True)

    def put(self, path: Path, value: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")

    def apply(self, conntrack: ConntrackSection) -> dict[str, int]:
        return dict(apply(conntrack, proc=self.proc, sys=self.sys))

    def values(self) -> dict[str, int]:
        return {path.name: int(path.read_text()) for path in self.netfilter.iterdir()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    yield lines
    logger.remove(sink)


@pytest.mark.contract("6.1.2")
def test_cpus_are_those_in_sysfs(machine: Machine, tmp_path: Path) -> None:
    assert cpu_count(machine.sys) == 5
    import os

    assert cpu_count(tmp_path / "nothing") == len(os.sched_getaffinity(0))


@pytest.mark.contract("6.1.4")
def test_settings_and_hash_table_are_written(machine: Machine) -> None:
    written = machine.apply(ConntrackSection())
    assert written == {
        "nf_conntrack_max": 163840,
        "hashsize": 40960,
        "nf_conntrack_tcp_timeout_established": 86400,
        "nf_conntrack_tcp_timeout_close_wait": 3600,
    }
    assert list(written) == [
        "nf_conntrack_max",
        "hashsize",
        "nf_conntrack_tcp_timeout_established",
        "nf_conntrack_tcp_timeout_close_wait",
    ]
    untouched = {
        "nf_conntrack_tcp_be_liberal": 7,
        "nf_conntrack_udp_timeout": 7,
        "nf_conntrack_udp_timeout_stream": 7,
    }
    assert machine.values() == {k: v for k, v in written.items() if k != "hashsize"} | untouched
    assert machine.hashsize.read_text().strip() == "40960"


@pytest.mark.contract("6.1.3")
def test_what_is_right_is_not_written(machine: Machine) -> None:
    machine.apply(ConntrackSection())
    before = {
        path: path.stat().st_mtime_ns for path in (*machine.netfilter.iterdir(), machine.hashsize)
    }
    assert machine.apply(ConntrackSection()) == {}
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(("hashsize", "after"), [(40959, 40960), (40960, 40960), (50000, 50000)])
@pytest.mark.contract("6.1.4")
def test_hash_table_only_grows(tmp_path: Path, hashsize: int, after: int) -> None:
    machine = Machine(tmp_path, hashsize=hashsize)
    machine.apply(ConntrackSection())
    assert int(machine.hashsize.read_text()) == after


@pytest.mark.contract("6.1.5")
class TestFailures:
    @pytest.mark.parametrize(
        "name", ["nf_conntrack_tcp_timeout_established", "nf_conntrack_udp_timeout"]
    )
    def test_a_missing_file_is_fatal_and_named(self, machine: Machine, name: str) -> None:
        (machine.netfilter / name).unlink()
        with pytest.raises(UnusableError, match=f"{name} cannot be read: No such file"):
            machine.apply(ConntrackSection(udp_timeout=Duration(SECOND)))

    @pytest.mark.parametrize(
        ("content", "reason"), [(None, "No such file"), ("many", "invalid literal")]
    )
    def test_an_unreadable_hashsize_is_fatal_and_named(
        self, machine: Machine, content: str | None, reason: str
    ) -> None:
        machine.hashsize.unlink()
        if content:
            machine.hashsize.write_text(content)
        with pytest.raises(UnusableError, match=f"hashsize cannot be read: {reason}") as caught:
            machine.apply(ConntrackSection())
        assert "conntrack.maxPerCore: 0" in caught.value.hint

    def test_nothing_wanted_needs_no_file(self, tmp_path: Path) -> None:
        assert apply(LEAVE_ALONE, proc=tmp_path, sys=tmp_path) == []

    def test_the_kernel_refuses(self) -> None:
        """Only the host's own namespace may change the size of the table.

        The real error, and the real way round it.
        """
        name = unique_name()
        namespace.create(name)
        try:
            with namespace.enter(name):
                held = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
                with pytest.raises(
                    UnusableError, match=r"nf_conntrack_max cannot be set to \d+: "
                ) as caught:
                    apply(ConntrackSection(max_per_core=1, min=held + 1))
                assert "conntrack.maxPerCore: 0" in caught.value.hint
                assert int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text()) == held
        finally:
            namespace.delete(name)


class TestWithoutConntrack:
    """The module is not loaded yet, so there are no files: RHEL 10, minimal images."""

    def test_the_module_is_loaded_and_then_set(self, machine: Machine) -> None:
        held = {path.name: path.read_text() for path in machine.netfilter.iterdir()}
        shutil.rmtree(machine.netfilter)
        machine.hashsize.unlink()

        def load() -> None:
            for name, text in held.items():
                machine.put(machine.netfilter / name, text)
            machine.put(machine.hashsize, 1024)

        written = dict(apply(ConntrackSection(), proc=machine.proc, sys=machine.sys, load=load))
        assert written["nf_conntrack_max"] == machine.values()["nf_conntrack_max"] == 163840
        assert written["hashsize"] == 40960

    def test_a_module_that_cannot_be_loaded_is_a_warning(
        self, machine: Machine, warnings: list[str]
    ) -> None:
        shutil.rmtree(machine.netfilter)

        def load() -> None:
            raise KernelError("Operation not supported")

        assert apply(ConntrackSection(), proc=machine.proc, sys=machine.sys, load=load) == []
        assert len(warnings) == 1
        assert "nf_conntrack cannot be loaded: Operation not supported" in warnings[0]
        assert "modprobe nf_conntrack" in warnings[0]

    def test_the_kernel_takes_the_rule_and_keeps_nothing(self) -> None:
        name = unique_name()
        namespace.create(name)
        try:
            with namespace.enter(name), contextlib.closing(Reader()) as reader:
                load_conntrack()
                assert not reader.table_exists("nftproxy-probe")
        finally:
            namespace.delete(name)


def test_for_real_in_a_network_namespace() -> None:
    conntrack = ConntrackSection(
        max_per_core=0,
        tcp_established_timeout=Duration(7201 * SECOND),
        tcp_close_wait_timeout=Duration(61 * SECOND),
        tcp_be_liberal=True,
        udp_timeout=Duration(32 * SECOND),
        udp_stream_timeout=Duration(182 * SECOND),
    )
    name = unique_name()
    namespace.create(name)
    try:
        with namespace.enter(name):
            written = apply(conntrack)
            assert [setting.value for setting in written] == [7201, 61, 1, 32, 182]
            for setting in written:
                assert (
                    int(Path("/proc/sys/net/netfilter", setting.name).read_text()) == setting.value
                )
            assert apply(conntrack) == []
    finally:
        namespace.delete(name)


@pytest.mark.contract("6.1.7")
class TestOomScore:
    def test_is_set(self, tmp_path: Path) -> None:
        (tmp_path / "self").mkdir()
        (tmp_path / "self/oom_score_adj").write_text("0\n")
        set_oom_score(-999, proc=tmp_path)
        assert (tmp_path / "self/oom_score_adj").read_text() == "-999"

    def test_a_failure_is_only_logged(self, tmp_path: Path) -> None:
        lines: list[str] = []
        sink = logger.add(lines.append, format="{level} {message}")
        try:
            set_oom_score(-999, proc=tmp_path)
        finally:
            logger.remove(sink)
        assert len(lines) == 1
        assert lines[0].startswith(
            f"WARNING {tmp_path}/self/oom_score_adj cannot be set to -999: No such file"
        )
