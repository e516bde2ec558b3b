"""The command line: `nftproxy COMMAND`. Finds the command and prints errors, nothing else.

Commands are imported when they are called, so that `--help` and completion answer at once. Exit
codes: 0 success, 1 a negative check (`diff` found a difference, `doctor` something bad, `lab demo`
a wrong answer), 2 an error of the input or the machine.
"""

import difflib
import errno
import os
import signal
import sys
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.errors import ConfigError, NftproxyError

# Name -> its module and function, and its sentence in the list of commands.
_COMMANDS = {
    "run": (
        "nftproxy.commands.run:run",
        "Keep this node's table in step with manifests, until stopped.",
    ),
    "kube-proxy": (
        "nftproxy.commands.kube_proxy:kube_proxy",
        "Replace kube-proxy in a cluster; accepts its flags and its file.",
    ),
    "render": (
        "nftproxy.commands.render:render",
        "Print the whole table, as nft syntax or JSON; needs no root.",
    ),
    "diff": (
        "nftproxy.commands.diff:diff",
        "Show what a sync would change in this machine's table.",
    ),
    "show": (
        "nftproxy.commands.show:show",
        "Show the Services in the table, read from the kernel.",
    ),
    "explain": (
        "nftproxy.commands.explain:explain",
        "Explain why a Service answers a client, or why not.",
    ),
    "trace": (
        "nftproxy.commands.trace:trace",
        "Show which rules real connections meet, and who answers.",
    ),
    "top": (
        "nftproxy.commands.top:top",
        "Show who is asked how often, and who refuses.",
    ),
    "page": ("nftproxy.commands.page:page", "Show the Services of this node in a browser."),
    "doctor": (
        "nftproxy.commands.doctor:doctor",
        "Say what is wrong with this node, and the command that cures it.",
    ),
    "report": (
        "nftproxy.commands.report:report",
        "Write one archive for whoever helps, without secrets.",
    ),
    "cleanup": ("nftproxy.commands.cleanup:cleanup", "Remove our table from this machine."),
    "bench": (
        "nftproxy.bench.cli:bench",
        "Measure what Services cost on this machine, and compare ways to proxy them.",
    ),
    "lab": (
        "nftproxy.lab.cli:lab",
        "Build a throw-away cluster out of network namespaces, for experiments.",
    ),
}


class Commands(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; the error for an unknown one suggests similar ones."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in _COMMANDS:
            close = difflib.get_close_matches(name, _COMMANDS)
            raise NftproxyError(
                f"there is no command {name!r}",
                hint=f"did you mean {' or '.join(close)}?"
                if close
                else "nftproxy --help lists them",
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; when the reader closes the pipe, as in `| head`, end as by SIGPIPE."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _write_no_more()
            return 128 + signal.SIGPIPE

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names without importing the commands."""
        found = [
            CompletionItem(name, help=text)
            for name, (_, text) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in _COMMANDS.items()])


_EPILOG = """\b
Try it without a cluster:   nftproxy lab demo
Completion by the tab key:  eval "$(_NFTPROXY_COMPLETE=bash_source nftproxy)"
                            in ~/.bashrc; likewise zsh_source, fish_source
"""


@click.group(cls=Commands, context_settings=CONTEXT_SETTINGS, epilog=_EPILOG)
@click.version_option(package_name="nftproxy", message="nftproxy %(version)s")
def nftproxy() -> None:
    """Forward connections to Kubernetes Services to their endpoints, with nftables.

    The ruleset is a constant program, the services are data: nft list table inet nftproxy shows
    both.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(nftproxy, arguments))


def run(command: click.Command, arguments: list[str] | None = None, **options: Any) -> int:
    """Run a command; errors become a line and a hint on standard error. Returns the exit code."""
    try:
        result = command.main(arguments, standalone_mode=False, **options)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except NftproxyError as error:
        tell(error)
        return 2
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        _write_no_more()
        tell(NftproxyError(f"the output is incomplete: {error.strerror}"))
        return 2
    return result if isinstance(result, int) else 0


def _write_no_more() -> None:
    """Redirect standard output to nowhere.

    Else Python would report the unwritten rest at the exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(error: NftproxyError) -> None:
    """Print an error for a person.

    Every problem on a line, then the hint; colour only on a terminal.
    """
    lines = error.problems if isinstance(error, ConfigError) else [str(error)]
    for line in lines:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {error.hint}", err=True)
