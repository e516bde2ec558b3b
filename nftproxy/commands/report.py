"""`nftproxy report`: one archive for whoever helps."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from nftproxy.commands.doctor import asked_of, asking_options, examined, lines
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.errors import NftproxyError
from nftproxy.node import memory

_WIDTH = 100
_EXAMPLES = """\b
For example:
  nftproxy report
  nftproxy report --log /var/log/nftproxy.log --output /tmp/report.tar.gz
  nftproxy report --output - > report.tar.gz
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@asking_options
@click.option(
    "--log",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, readable=True),
    multiple=True,
    metavar="FILE",
    help="A file with nftproxy's log, of which the end is added; may be repeated.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Where to write the archive; - is standard output. [default: "
    "nftproxy-report-NODE-TIME.tar.gz]",
)
def report(log: tuple[Path, ...], output: Path | None, **options: Any) -> None:
    """Write one archive for whoever helps: doctor, table, metrics, configuration, versions.

    Secrets stay here: credentials and environments are not read, the configuration is written field
    by field, and tokens, keys, certificates and passwords are removed from logs and all other
    texts. Names and addresses of Services, endpoints and of this node are in it, and names of other
    programs' tables and chains, without their rules. Read it before you pass it on: it is text.

    In a cluster: kubectl -n kube-system exec POD -- nftproxy report --output - > report.tar.gz

    Each file in it is 4 MB at most. What cannot be read is named with the reason; the table and
    other programs' chains need the capability NET_ADMIN.
    """
    from nftproxy.doctor import archive, gathering
    from nftproxy.doctor.checks import CHECKS
    from nftproxy.doctor.judgement import judge

    memory.collect_seldom()
    asked = asked_of(options)
    configured = gathering.configuration(asked)
    facts = gathering.gather(asked)
    results = judge(CHECKS, facts)
    text = "\n".join(click.unstyle(line) for line in lines(results, _WIDTH))
    judged = [
        archive.Part("doctor.txt", "what `nftproxy doctor` says", f"{text}\n"),
        archive.Part("doctor.json", "the same for programs", f"{examined(results)}\n"),
    ]
    collected = archive.collect(asked, facts, configured, judged, log)
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    name = f"nftproxy-report-{facts.node_name}-{stamp}"
    data = archive.pack(collected, name, now)
    target = output or Path(f"{name}.tar.gz")
    if str(target) == "-":
        sys.stdout.buffer.write(data)
    else:
        _write(target, data)
    _say(f"wrote {'the archive' if str(target) == '-' else target} ({len(data) / 1024:.0f} kB):")
    for part in collected.parts:
        _say(f"  {part.name:<20} {part.what}")
    _say("left out:")
    for line in collected.missing:
        _say(f"  {line}")


def _say(line: str) -> None:
    """Print for a person: standard output may be the archive."""
    click.echo(line, err=True)


def _write(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
    except FileExistsError:
        raise NftproxyError(
            f"{path} exists already", hint="name another file with --output, or remove it"
        ) from None
    except OSError as error:
        raise NftproxyError(
            f"{path} cannot be written: {error.strerror}",
            hint="name another file with --output, or - for standard output",
        ) from error
