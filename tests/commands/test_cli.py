"""The command line: help that answers at once, mistakes that are told in a line with a hint, and
exit codes.
"""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import pytest

from nftproxy import shipped
from nftproxy.cli import nftproxy as command
from nftproxy.cli import run
from tests.support.process import NFTPROXY, network, nftproxy

COMMANDS = ("run", "kube-proxy", "render", "diff", "show", "cleanup", "lab")
EXAMPLES = str(shipped.folder("examples"))
RENDER = ("render", "--manifests", EXAMPLES, "--node-name", "node1")


def modules(*arguments: str) -> set[str]:
    """The modules that a command loads."""
    script = (
        "import sys, os; from nftproxy.cli import nftproxy, run\n"
        f"out, sys.stdout = sys.stdout, open(os.devnull, 'w')\n"
        f"code = run(nftproxy, {list(arguments)!r})\n"
        "out.write('\\n'.join([str(code), *sys.modules])); out.flush()"
    )
    code, *loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert code == "0"
    return {name.partition(".")[0] for name in loaded}


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (
            ("--help",),
            {
                "pyroute2",
                "kubernetes",
                "rich",
                "yaml",
                "msgspec",
                "loguru",
                "asyncio",
                "nftables",
                "aiohttp",
            },
        ),
        (
            ("lab", "--help"),
            {"pyroute2", "kubernetes", "rich", "yaml", "loguru", "asyncio", "nftables", "aiohttp"},
        ),
        (
            ("show", "--help"),
            {"pyroute2", "kubernetes", "rich", "yaml", "loguru", "asyncio", "nftables", "aiohttp"},
        ),
        (
            ("render", "--help"),
            {"pyroute2", "kubernetes", "rich", "loguru", "asyncio", "nftables", "aiohttp"},
        ),
        (
            RENDER,
            {
                "pyroute2",
                "kubernetes",
                "rich",
                "loguru",
                "asyncio",
                "nftables",
                "aiohttp",
                "prometheus_client",
            },
        ),
        (("run", "--help"), {"kubernetes", "rich", "aiohttp", "prometheus_client"}),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, tuple) else "",
)
def test_a_command_loads_what_it_needs_and_no_more(
    arguments: Sequence[str], unwanted: set[str]
) -> None:
    assert modules(*arguments) & unwanted == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, [name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Usage: ")
    assert len(said.splitlines()) > 6


def test_help_lists_all_commands_and_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["--help"]) == 0
    said = capsys.readouterr().out
    assert [name for name in COMMANDS if f"  {name} " not in said] == []
    assert "nftproxy lab demo" in said
    assert '_NFTPROXY_COMPLETE=bash_source nftproxy)"' in said


def test_version() -> None:
    assert nftproxy("--version").stdout.startswith("nftproxy 0.")


@pytest.mark.parametrize(
    ("words", "number", "expected"),
    [
        ("nftproxy ", 1, "plain,render"),
        ("nftproxy re", 1, "plain,render"),
        ("nftproxy render --m", 2, "plain,--manifests"),
    ],
)
def test_completion(words: str, number: int, expected: str) -> None:
    environment = {
        **os.environ,
        "_NFTPROXY_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(number),
    }
    script = "import sys; sys.argv[0] = 'nftproxy'; from nftproxy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert expected in done.stdout.splitlines()


MISTAKES: dict[str, tuple[Sequence[str], str]] = {
    "no command of that name": (
        ["rendr"],
        "error: there is no command 'rendr'\nhint: did you mean render?\n",
    ),
    "nothing like it": (
        ["xyz"],
        "error: there is no command 'xyz'\nhint: nftproxy --help lists them\n",
    ),
    "no flag of that name": (["render", "--manifest", EXAMPLES], "Did you mean --manifests?"),
    "manifests missing": (["render"], "Missing option '--manifests'"),
    "no value": (["render", "--manifests"], "requires an argument"),
    "another output": ([*RENDER, "--output", "xml"], "'xml' is not one of 'nft', 'json'"),
    "no such folder": (
        ["render", "--manifests", "/nowhere"],
        "error: /nowhere: no such file or folder\nhint: --manifests takes folders and files\n",
    ),
    "pods nowhere": (
        [*RENDER, "--cluster-cidr", "10.244.0.0/33"],
        "error: clusterCIDR: '10.244.0.0/33' has an impossible prefix length",
    ),
    "pods somehow": ([*RENDER, "--detect-local-mode", "Guess"], "error: detectLocalMode: "),
    "no interface": (
        [*RENDER, "--detect-local-mode", "BridgeInterface"],
        "error: detectLocal.bridgeInterface: ",
    ),
    "an interface that is nft syntax": (
        [*RENDER, "--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", 'x" accept'],
        "error: detectLocal.bridgeInterface: ",
    ),
    "a bit that is none": ([*RENDER, "--masquerade-bit", "32"], "error: nftables.masqueradeBit: "),
    "no node of that name for its networks": (
        ["render", "--manifests", EXAMPLES, "--node-name", "x", "--detect-local-mode", "NodeCIDR"],
        "error: detectLocalMode: NodeCIDR needs the Node object",
    ),
    "no such config": (
        [*RENDER, "--config", "/nowhere"],
        "error: /nowhere: cannot be read: No such file or directory\nhint: ",
    ),
    "lab without a command": (["lab", "exec", "node1"], "Missing argument '-- CMD...'"),
    "an impossible lab": (
        ["lab", "up", "--name", "x.y"],
        "error: 'x.y' cannot be the name of a lab\nhint: ",
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_a_line(
    arguments: Sequence[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, list(arguments)) == 2
    said = capsys.readouterr()
    lines = "".join(
        f"{line}\n" for line in said.err.splitlines() if not line.startswith("warning: ")
    )
    assert expected.replace("'--manifests'", "--manifests") in lines.replace(
        "'--manifests'", "--manifests"
    )
    assert said.out == ""
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (["--manifests", "{empty}"], "{empty}: no Service in there"),
        (["--manifests", EXAMPLES, "--node-name", "nodeone"], "no Node 'nodeone' in the manifests"),
    ],
)
def test_what_is_probably_a_mistake_is_a_warning(
    arguments: Sequence[str], warning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(command, ["render", *(argument.format(empty=tmp_path) for argument in arguments)]) == 0
    )
    assert f"warning: {warning.format(empty=tmp_path)}" in capsys.readouterr().err


# --- machines that lack something -----------------------------------------------------------------

BARE = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
"""Root without its capabilities.

What any other user is, who might not reach the interpreter and the checkout.
"""
OLD_LIBRARY = """
class Nftables:
    def set_json_output(self, on): ...
    def cmd(self, text): return 1, "", "internal:0:0-0: Error: syntax error, unexpected typeof"
"""
NEEDS_THE_KERNEL: tuple[tuple[str, ...], ...] = (
    ("run", "--manifests", EXAMPLES),
    ("diff", "--manifests", EXAMPLES),
    ("show",),
    ("cleanup",),
    ("top", "--once"),
    ("trace", "10.96.0.10:80"),
    ("page", "--listen", "127.0.0.1:0"),
)


def complaint(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 2, done
    assert done.stdout == ""
    return [line for line in done.stderr.splitlines() if "WARNING" not in line]


@pytest.mark.parametrize(
    "before",
    [BARE, ("unshare", "--user"), ("unshare", "--user", "--map-root-user")],
    ids=lambda b: " ".join(b[:3]),
)
@pytest.mark.parametrize("arguments", NEEDS_THE_KERNEL, ids=lambda a: a[0])
def test_without_the_permission(arguments: Sequence[str], before: Sequence[str]) -> None:
    with network() as where:
        error, hint = complaint(nftproxy(*arguments, where=where, before=before))
    assert error in {
        "error: not allowed to change nftables",
        "error: reading nftables is not permitted: it needs the capability NET_ADMIN",
    }
    assert hint == "hint: run as root or with the capability NET_ADMIN"


def test_a_user_namespace_with_a_network_of_its_own_is_enough() -> None:
    done = nftproxy(
        "diff",
        "--manifests",
        EXAMPLES,
        "--node-name",
        "node1",
        before=("unshare", "--map-root-user", "--net"),
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("+ program ")


def test_a_lab_without_root() -> None:
    error, hint = complaint(nftproxy("lab", "demo", before=("unshare", "--user")))
    assert (error, hint) == (
        "error: a lab is made of network namespaces, which needs root",
        "hint: run the command with sudo",
    )


def test_without_the_library(tmp_path: Path) -> None:
    (tmp_path / "libnftables.so.1").write_text("this is no library")
    with network() as where:
        done = nftproxy(
            "cleanup", where=where, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
        )
    error, hint = complaint(done)
    assert error.startswith("error: libnftables cannot be loaded: ")
    assert hint == "hint: apt-get install libnftables1"


@pytest.mark.parametrize(
    ("module", "error", "hint"),
    [
        (
            "raise ImportError",
            "error: the Python module nftables is not installed",
            "pip install pip-nftables",
        ),
        (
            OLD_LIBRARY,
            (
                "error: this kernel or libnftables cannot hold the table: internal:0:0-0: Error: "
                "syntax error, unexpected typeof"
            ),
            "libnftables 1.0.1 or later (apt-get install libnftables1)",
        ),
    ],
    ids=["no binding", "too old"],
)
def test_with_another_library(tmp_path: Path, module: str, error: str, hint: str) -> None:
    (tmp_path / "nftables.py").write_text(module)
    with network() as where:
        done = nftproxy("cleanup", where=where, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    told, mended_by = complaint(done)
    assert told == error
    assert mended_by.startswith("hint: ")
    assert mended_by.endswith(hint)


def test_files_that_may_not_be_read() -> None:
    with TemporaryDirectory() as name:
        parent = Path(name)
        parent.chmod(0o755)
        folder, file = parent / "closed", parent / "closed.yaml"
        folder.mkdir(mode=0)
        file.touch(mode=0)
        for path in (folder, folder / "a.yaml", file):
            # As another user, because root may read everything; a first run loads what that user
            # might not reach.
            script = (
                "import os; from nftproxy.cli import main, nftproxy, run; run(nftproxy, "
                f"{list(RENDER)!r}); os.setuid(65534); "
                f"main(['render', '--manifests', {str(path)!r}])"
            )
            done = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, check=False
            )
            done.stdout = ""  # of the first run
            assert f"error: {path}: Permission denied" in [
                line.partition(";")[0] for line in complaint(done)
            ]


def test_a_reader_that_goes_away() -> None:
    process = subprocess.Popen([*NFTPROXY, *RENDER], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.close()
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, b"Traceback" in errors) == (128 + signal.SIGPIPE, False)


def test_a_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*NFTPROXY, *RENDER], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert errors == ["error: the output is incomplete: No space left on device"]


def test_colour_is_for_terminals() -> None:
    argv = [*NFTPROXY, "render", "--manifests", "/nowhere"]
    assert (
        "\x1b[" not in subprocess.run(argv, stderr=subprocess.PIPE, text=True, check=False).stderr
    )
    screen, end = pty.openpty()
    subprocess.run(argv, stderr=end, check=False)
    os.close(end)
    assert b"\x1b[31m" in os.read(screen, 4096)
    os.close(screen)


DIFF = ("diff", "--manifests", EXAMPLES, "--node-name", "node1")


@pytest.mark.parametrize(
    ("arguments", "loaded", "code"),
    [
        pytest.param(RENDER, False, 0, id="render"),
        pytest.param(DIFF, False, 1, id="diff, no table"),
        pytest.param(DIFF, True, 1, id="diff, another table"),
        pytest.param(("show",), True, 0, id="show"),
    ],
)
def test_what_scripts_read_is_json(arguments: Sequence[str], loaded: bool, code: int) -> None:
    with network() as where:
        if loaded:
            rules = nftproxy(*RENDER).stdout
            subprocess.run(
                ["ip", "netns", "exec", where, "nft", "-f", "-"], input=rules, text=True, check=True
            )
        done = nftproxy(*arguments, "--output", "json", where=where)
    assert done.returncode == code, done.stderr
    json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments", [("show",), ("lab", "status", "--name", "nonesuch")], ids=lambda a: a[0]
)
def test_scripts_that_read_json_find_no_half_of_it(arguments: Sequence[str]) -> None:
    with network() as where:
        done = nftproxy(*arguments, "--output", "json", where=where)
    assert (done.returncode, done.stdout) == (2, "")


STOPPED = (
    "import os, signal; os.kill(os.getpid(), signal.{})"  # in the place of what is loaded first
)
KUBE_PROXY = ("-c", "from nftproxy.__main__ import kube_proxy; kube_proxy()")
OURS = ("-m", "nftproxy")


@pytest.mark.contract("8.1.1")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("argv", "in_good_order"),
    [
        ((*OURS, "run", "--manifests", EXAMPLES), True),
        ((*OURS, "kube-proxy", "--config=x"), True),
        ((*KUBE_PROXY, "--config=x"), True),
        ((*KUBE_PROXY, "--config=x", "--init-only"), False),
        ((*KUBE_PROXY, "--cleanup=true"), False),
        ((*OURS, "kube-proxy", "--write_config_to", "x"), False),
        ((*OURS, *RENDER), False),
    ],
    ids=lambda value: " ".join(value[2:4]) if isinstance(value, tuple) else "",
)
def test_a_stop_at_the_very_start(
    tmp_path: Path, argv: Sequence[str], number: signal.Signals, in_good_order: bool
) -> None:
    """While most of the program is still to be loaded."""
    (tmp_path / "click.py").write_text(STOPPED.format(number.name))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *argv], env=environment, capture_output=True, check=False
    )
    assert done.returncode == (0 if in_good_order else -number)
    assert not done.stderr or not in_good_order


# --- help -----------------------------------------------------------------------------------------


def every_command(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    """The names of all commands, those of groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        yield (*names, name)
        if isinstance(found, click.Group):
            yield from every_command(found, *names, name)


@pytest.mark.parametrize("names", [(), *every_command(command)], ids=" ".join)
def test_help_shows_examples_on_lines_of_their_own(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, [*names, "--help"]) == 0
    said = capsys.readouterr().out
    assert "\\" not in said
    assert "\b" not in said
    examples = [
        line.strip() for line in said.partition("For example")[2].splitlines()[1:] if line.strip()
    ]
    assert all(line.startswith(("nftproxy ", "kubectl ")) for line in examples)
    assert "For example" not in said or examples
