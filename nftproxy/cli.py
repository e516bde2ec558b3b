"""The command line: `nftproxy COMMAND`. Finds the command, tells errors, and nothing else.

Commands are imported when they are called, so that `--help` and completion answer at once. Exit codes: 0 done, 1 a check that says
no (`diff` found a difference, `lab demo` a wrong answer), 2 something is wrong with the input or the machine.
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

# Name -> where it is, and its sentence in the list of commands.
_COMMANDS = {
    "run": ("nftproxy.commands.run:run", "Keep this node's table in step with manifests, until told to stop."),
    "kube-proxy": (
        "nftproxy.commands.kube_proxy:kube_proxy",
        "Take the place of kube-proxy in a cluster; takes its flags and its file.",
    ),
    "render": ("nftproxy.commands.render:render", "Print what would be loaded, as nft syntax or JSON; needs no root."),
    "diff": ("nftproxy.commands.diff:diff", "Show what a sync would change in this machine's table."),
    "show": ("nftproxy.commands.show:show", "Show what is programmed now, read from the kernel."),
    "cleanup": ("nftproxy.commands.cleanup:cleanup", "Remove our table from this machine."),
    "bench": ("nftproxy.bench.cli:bench", "Measure what Services cost on this machine, and compare ways to proxy them."),
    "lab": ("nftproxy.lab.cli:lab", "Build a throw-away cluster out of network namespaces, and try things on it."),
}


class Commands(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order that a reader meets them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; say which ones are spelled like it when there is none."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in _COMMANDS:
            close = difflib.get_close_matches(name, _COMMANDS)
            raise NftproxyError(
                f"there is no command {name!r}",
                hint=f"did you mean {' or '.join(close)}?" if close else "nftproxy --help lists them",
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; end as programs do that SIGPIPE ends when the reader went away, as in `| head`."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _write_no_more()
            return 128 + signal.SIGPIPE

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names without importing the commands."""
        found = [CompletionItem(name, help=text) for name, (_, text) in _COMMANDS.items() if name.startswith(incomplete)]
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
    """Send connections to Kubernetes Services on to their endpoints, with nftables.

    The ruleset is a constant program, the services are data: nft list table inet nftproxy shows both.
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
        tell(NftproxyError(f"what was written is not complete: {error.strerror}"))
        return 2
    return result if isinstance(result, int) else 0


def _write_no_more() -> None:
    """Send standard output nowhere: what it still holds cannot be written, which Python would find out, and tell, at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(error: NftproxyError) -> None:
    """Print an error for a person: every problem on a line, then the hint; colour only on a terminal."""
    lines = error.problems if isinstance(error, ConfigError) else [str(error)]
    for line in lines:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {error.hint}", err=True)
