"""What tools decide: format, lint, types; and the layers, which a table here decides."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nftproxy"

# Bottom first. A module imports from its own layer, without a circle, and from those below. A package stands for all its modules.
LAYERS: dict[str, set[str]] = {
    "values: no rule of a proxy, only what things are": {
        "errors", "address", "configuration.duration", "configuration.gotypes", "model", "sources.resources", "sources.wire",
        "table.netlink",
    },
    "settings: what node this is": {"configuration", "settings", "sources.kubeyaml"},
    "select: which endpoints": {"sources.admission", "store", "selection", "monitoring.trigger"},
    "compile: which elements": {"compiler", "difference", "table.packing", "node.udpflows"},
    "program: which rules": {"shipped", "table.program", "table.preview"},
    "edges: the kernel, this machine, the sources": {
        "columns", "log", "monitoring.events", "node", "sources", "table.channel", "table.copies", "table.foreign", "table.grace",
        "table.kernel", "table.library", "table.neighbours", "table.readback", "table.writer",
    },
    "figures: what the kernel counted": {"monitoring.connections", "monitoring.tablefigures", "table.snapshot"},
    "syncs: when, in which order": {"runner", "firstload", "syncer", "proxy"},
    "servers: what others ask": {"monitoring.health", "monitoring.healthcheck", "monitoring.metrics", "monitoring.http"},
    "daemon: all of it in one process": {"aftermath", "daemon"},
    "command line": {"__main__", "cli", "commands"},
}  # fmt: skip
PURE = ("select: which endpoints", "compile: which elements")
IMPURE = {"asyncio", "loguru", "os", "pathlib", "random", "shutil", "subprocess", "sys", "tempfile", "time"}

BESIDE = {"lab", "bench"}
"""Programs of their own, on top of everything or beside it."""
LAB_KNOWS = {"errors", "address"}
"""What the lab may know of a proxy; its demo and its commands may know all."""

ONLY_IN = {"nftables": {"table.library"}, "kubernetes": {"sources.apiserver"}, "watchdog": set[str]()}


def test_format() -> None:
    tool("ruff", "format", "--check")


def test_lint() -> None:
    tool("ruff", "check")


def test_types() -> None:
    tool("mypy")


def tool(name: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout


@cache
def imports() -> dict[str, set[str]]:
    """Every module of the package without its first name, and what it imports: modules of the package so too, others as `!name`."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    modules = {
        name.removesuffix(".__init__"): path
        for name, path in paths.items()
        if path.read_text().count("\n") > 1 and name != "__init__"
    }
    return {name: set(_imports(ast.parse(path.read_text()), modules.keys() - {name})) for name, path in modules.items()}


def _imports(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "absolute imports only: the table below reads them"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first != "nftproxy":
                yield f"!{first}"
            elif found := {rest, rest.rpartition(".")[0]} & modules:
                yield max(found, key=len)


def entry(module: str) -> str:
    """The entry of the table that a module belongs to: its own, or that of the nearest package above it."""
    while module not in {name for entries in LAYERS.values() for name in entries} | BESIDE:
        assert module, "no layer has this module"
        module = module.rpartition(".")[0]
    return module


def layer(module: str) -> int:
    return next(number for number, entries in enumerate(LAYERS.values()) if entry(module) in entries)


def test_no_module_is_forgotten() -> None:
    entries = [name for layer in LAYERS.values() for name in layer]
    assert len(entries) == len(set(entries)), "a module is in two layers"
    assert {entry(module) for module in imports()} - BESIDE == set(entries)


def test_a_layer_imports_only_what_is_below() -> None:
    wrong = {
        f"{module} -> {other}"
        for module, others in imports().items()
        for other in others
        if not other.startswith("!") and entry(module) not in BESIDE and (entry(other) in BESIDE or layer(other) > layer(module))
    }
    assert wrong == set()


def test_nothing_goes_in_circles() -> None:
    order = TopologicalSorter({m: {o for o in others if not o.startswith("!")} for m, others in imports().items()})
    order.prepare()  # raises CycleError, which names the circle


def test_decisions_do_no_input_or_output() -> None:
    found = {
        f"{module} -> {name}"
        for module, others in imports().items()
        for name in IMPURE
        if f"!{name}" in others and any(module in LAYERS[pure] for pure in PURE)
    }
    assert found == set()


@pytest.mark.parametrize(("name", "allowed"), ONLY_IN.items(), ids=ONLY_IN)
def test_edges_are_crossed_in_one_place(name: str, allowed: set[str]) -> None:
    assert {module for module, others in imports().items() if f"!{name}" in others} == allowed


def test_the_lab_knows_no_proxy() -> None:
    wrong = {
        f"{module} -> {other}"
        for module, others in imports().items()
        if module.startswith("lab.") and module not in {"lab.demo", "lab.cli"}
        for other in others
        if not other.startswith(("!", "lab")) and other not in LAB_KNOWS
    }
    assert wrong == set()
