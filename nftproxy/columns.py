"""Tables for people: bold and fitted to the width on a terminal, plain columns in a pipe."""

import sys
from collections.abc import Sequence

import click

_READABLE = 30  # columns that a text needs to be wrapped in
Rows = Sequence[Sequence[str]]


def show(header: Sequence[str], rows: Rows, *, indent: int = 0) -> None:
    """Print rows under a header.

    On a terminal the last column wraps if there is room; else the terminal wraps the lines.
    """
    if sys.stdout.isatty():
        _rich(header, rows, indent)
    else:
        _plain(header, rows, indent)


def _rich(header: Sequence[str], rows: Rows, indent: int) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(header, 1):
        table.add_column(title, no_wrap=number < len(header), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    *fixed, last = _widths(header, rows)
    used = indent + sum(fixed) + 2 * len(fixed)
    console = Console(highlight=False)
    console.width = max(console.width, used + (last if console.width - used < _READABLE else 0))
    console.print(Padding(table, (0, 0, 0, indent), expand=False))


def _plain(header: Sequence[str], rows: Rows, indent: int) -> None:
    widths = _widths(header, rows)
    for row in (header, *rows):
        click.echo(
            " " * indent
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _widths(header: Sequence[str], rows: Rows) -> list[int]:
    return [max(map(len, column)) for column in zip(header, *rows, strict=True)]
