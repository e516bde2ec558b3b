"""What tools decide: format, lint, types; and the layers, which a table here decides."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "nftproxy"

LAYERS = [
    "address annotations chunks columns errors kubeyaml log model shipped",
    "configuration",
    "store selection largeservice departures",
    "table routes sharing",
    "sources kernel",
    "node forwarder",
    "sync",
    "monitoring",
    "aftermath daemon path page",
    "trace doctor",
    "commands cli __main__",
]
"""Folders, and modules beside them, bottom first.

Each imports from its own layer, without a circle, and from those below.
"""
PURE = {
    *("annotations", "chunks", "departures", "largeservice"),
    *("store", "selection", "routes", "sharing", "table"),
}
IMPURE = {
    "asyncio",
    "loguru",
    "os",
    "pathlib",
    "random",
    "shutil",
    "subprocess",
    "sys",
    "tempfile",
    "time",
}

BESIDE = {"lab", "bench"}
"""Programs of their own, on top of everything or beside it."""
LAB_KNOWS = {"errors", "address"}
"""What the lab may know of a proxy; its demo and its commands may know all."""

ONLY_IN = {
    "nftables": {"kernel.library"},
    "kubernetes": set[str](),
    "watchdog": set[str](),
}


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
    """Every module of the package, and what it imports.

    Modules of the package stand without its name, others as `!name`.
    """
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    modules = {
        name.removesuffix(".__init__"): path
        for name, path in paths.items()
        if path.read_text().count("\n") > 1 and name != "__init__"
    }
    return {
        name: set(_imports(ast.parse(path.read_text()), modules.keys() - {name}))
        for name, path in modules.items()
    }


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
    """The folder of a module, or the module itself beside them."""
    return module.partition(".")[0]


def layer(module: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if entry(module) in names.split())


def test_no_module_is_forgotten() -> None:
    names = [name for names in LAYERS for name in names.split()]
    assert len(names) == len(set(names)), "a folder is in two layers"
    assert {entry(module) for module in imports()} - BESIDE == set(names)


def test_a_layer_imports_only_what_is_below() -> None:
    wrong = {
        f"{module} -> {other}"
        for module, others in imports().items()
        for other in others
        if not other.startswith("!")
        and entry(module) not in BESIDE
        and (entry(other) in BESIDE or layer(other) > layer(module))
    }
    assert wrong == set()


def test_nothing_goes_in_circles() -> None:
    order = TopologicalSorter(
        {m: {o for o in others if not o.startswith("!")} for m, others in imports().items()}
    )
    order.prepare()  # raises CycleError, which names the circle


def test_decisions_do_no_input_or_output() -> None:
    found = {
        f"{module} -> {name}"
        for module, others in imports().items()
        for name in IMPURE
        if f"!{name}" in others and entry(module) in PURE
    }
    assert found == set()


@pytest.mark.parametrize(("name", "allowed"), ONLY_IN.items(), ids=ONLY_IN)
def test_edges_are_crossed_in_one_place(name: str, allowed: set[str]) -> None:
    assert {module for module, others in imports().items() if f"!{name}" in others} == allowed


NAMES = (
    r"(?:nodeport[_-])?(?:sticky|program|(?:local_)?(?:endpoints|affinity)|(?:cluster_|local_)?members|cluster_ips"
    r"|service_cidrs|nodeport_ips|firewall|services|new_clients|no_endpoints|hairpin|learn(?:_local|_both)?|allowed"
    r"|pick|external|preserve|local)"
)
NAME = re.compile(rf"(?<![\w/-]){NAMES}(?:[46]|-?\{{)|\A{NAMES}-?\Z")
"""How names of sets, maps and chains begin; a family, something filled in or nothing follows."""
NAMING = {"startswith", "removeprefix", "fullmatch", "match", "partition", "get"}


def texts(tree: ast.AST) -> Iterator[str]:
    """The texts that code builds or takes apart.

    Formatted ones, and those given to methods that parse.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{" for part in node.values
            )
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in NAMING
        ):
            yield from (
                a.value
                for a in node.args
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )


def test_names_in_the_table_are_made_and_parsed_in_the_schema_alone() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in BESIDE and path.name != "schema.py"
        for text in texts(ast.parse(path.read_text()))
        if NAME.search(text)
    }
    assert found == set()
    assert {
        text
        for text in texts(ast.parse((PACKAGE / "table/schema.py").read_text()))
        if NAME.search(text)
    }


def test_the_lab_knows_no_proxy() -> None:
    wrong = {
        f"{module} -> {other}"
        for module, others in imports().items()
        if module.startswith("lab.") and module not in {"lab.demo", "lab.cli"}
        for other in others
        if not other.startswith(("!", "lab")) and other not in LAB_KNOWS
    }
    assert wrong == set()


def test_no_class_name_stands_twice() -> None:
    """Whoever reads a name knows whose it is, without a look at the imports."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
