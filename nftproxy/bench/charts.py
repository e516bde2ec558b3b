"""Charts of a run, as SVG and PNG, if the extra matplotlib is installed.

`latency` shows the whole distribution of connection times for each mode and number of services;
`syncs` shows the growth of the control plane's work, with logarithmic axes. Nothing here opens a
window or keeps state in pyplot.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nftproxy.bench.measures import Measure, MeasurePlace, Row, Unit
from nftproxy.bench.report import OURS, quantity
from nftproxy.bench.statistics import Summary, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: Final = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 11,
    "svg.hashsalt": "nftproxy",  # the same samples make the same file
}
_INK, _FAINT = "#333333", "#dddddd"
# Okabe and Ito's, which the colour-blind can distinguish, too.
_COLORS: Final = {
    OURS: "#d55e00",
    "nftproxy-netlink": "#8c3d00",
    "nftproxy-source-hash": "#e69f00",
    "nftproxy-maglev": "#f0c060",
    "nftproxy-affinity": "#a05000",
    "none": "#999999",
    "floor": "#666666",
    "iptables-legacy": "#0072b2",
    "iptables-nft": "#56b4e9",
    "kube-proxy-nftables": "#009e73",
    "ipvs": "#cc79a7",
    "userspace": "#b8a000",
    "real-nftables": "#004d3a",
    "real-iptables": "#00304d",
}
_SYNCS: Final = (Measure.FIRST_SYNC, Measure.UPDATE, Measure.RESTART)
_SHOWN: Final = (
    90.0  # percent of a mode's connections in the chart; the rest is in the table and in CSV
)
_BINS: Final = 160
_MICROSECONDS: Final = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


def available() -> bool:
    """Whether charts can be drawn."""
    return find_spec("matplotlib") is not None


def draw(figures: Summary, output: Path) -> list[str]:
    """Write all charts with samples; return the names of the files, none without matplotlib."""
    if not available():
        return []
    from matplotlib import rc_context

    written = []
    charts: dict[str, Callable[[Summary], Figure | None]] = {"latency": latency, "syncs": syncs}
    with rc_context(_STYLE):  # type: ignore[arg-type]
        for name, make in charts.items():
            chart = make(figures)
            if chart is not None:
                chart.savefig(output / f"{name}.svg", metadata={"Date": None})
                chart.savefig(output / f"{name}.png", dpi=160)
                written += [f"{name}.svg", f"{name}.png"]
    return written


def latency(figures: Summary) -> "Figure | None":
    """Draw the connection times to the last service of the list.

    A hill for each mode, a panel for each size.
    """
    import numpy as np
    from matplotlib.figure import Figure

    sizes = [
        size
        for size in figures.sizes
        if any(_connections(figures, size, mode) for mode in figures.modes)
    ]
    if not sizes:
        return None
    modes = [
        mode for mode in figures.modes if any(_connections(figures, size, mode) for size in sizes)
    ]
    found = [
        readings
        for size in sizes
        for mode in modes
        if (readings := _connections(figures, size, mode))
    ]
    low = 0.9 * min(percentile(each, 100 - _SHOWN) for each in found) * 1e6
    high = 1.6 * max(percentile(each, _SHOWN) for each in found) * 1e6
    edges = np.geomspace(low, high, _BINS + 1)
    centers = (edges[1:] + edges[:-1]) / 2
    chart = Figure(figsize=(4.3 * len(sizes) + 1.2, 0.8 * len(modes) + 2.0), layout="constrained")
    chart.suptitle(
        "Time to set up a connection, last service of the list",
        x=0.01,
        ha="left",
        fontsize=15,
        weight="bold",
    )
    for axes, size in zip(
        chart.subplots(1, len(sizes), sharex=True, sharey=True, squeeze=False)[0],
        sizes,
        strict=True,
    ):
        _panel(axes, f"{size:,} services".replace(",", "\u2009"))
        axes.set_xscale("log")
        axes.set_xticks(
            ticks := [tick for tick in _MICROSECONDS if low <= tick <= high], list(map(str, ticks))
        )
        axes.set_xticks([], minor=True)
        axes.set_xlabel("µs; the mark is the median")
        axes.set_yticks(range(len(modes)), modes[::-1])
        axes.tick_params(axis="y", length=0)
        for height, mode in enumerate(reversed(modes)):
            readings = _connections(figures, size, mode)
            if not readings:
                continue
            counts, _ = np.histogram(np.array(readings) * 1e6, bins=edges)
            smooth = np.convolve(counts, np.hanning(9) / np.hanning(9).sum(), mode="same")
            hill = height + 0.82 * smooth / max(smooth.max(), 1e-9)
            color = _COLORS.get(mode, _INK)
            axes.fill_between(
                centers,
                height,
                hill,
                color=color,
                alpha=0.85 if mode == OURS else 0.45,
                linewidth=0,
            )
            axes.plot(centers, hill, color=color, linewidth=1)
            median = percentile(readings, 50) * 1e6
            axes.plot([median, median], [height, height + 0.82], color=_INK, linewidth=1.4)
            axes.annotate(
                f"{median:.1f}", (high, height + 0.22), ha="right", color=color, weight="bold"
            )
    return chart


def syncs(figures: Summary) -> "Figure | None":
    """Draw the duration of syncs against the number of services, a panel for each kind."""
    from matplotlib.figure import Figure

    rows = [Row(measure, "", 50.0) for measure in _SYNCS]
    modes = [
        m
        for m in figures.modes
        if any(figures.value(size, m, row) is not None for size in figures.sizes for row in rows)
    ]
    if not modes:
        return None
    chart = Figure(figsize=(14.5, 5.2), layout="constrained")
    chart.suptitle("Time of the control plane", x=0.01, ha="left", fontsize=15, weight="bold")
    panels = chart.subplots(1, len(rows), sharex=True, sharey=True)
    for axes, row in zip(panels, rows, strict=True):
        _panel(axes, row.measure.value)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(
            figures.sizes, [f"{size:,}".replace(",", "\u2009") for size in figures.sizes]
        )
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
        axes.yaxis.set_minor_formatter(lambda *_: "")
        axes.set_xlabel("services")
        for mode in modes:
            points = [
                (size, value)
                for size in figures.sizes
                if (value := figures.value(size, mode, row)) is not None
            ]
            color, ours = _COLORS.get(mode, _INK), mode == OURS
            axes.plot(
                *zip(*points, strict=True),
                color=color,
                marker="o",
                markersize=7 if ours else 5,
                linewidth=3 if ours else 1.8,
                label=mode,
                zorder=3 if ours else 2,
            )
            if points and ours:
                axes.annotate(
                    quantity(points[-1][1], row.measure.unit),
                    points[-1],
                    xytext=(0, -18),
                    textcoords="offset points",
                    ha="right",
                    color=color,
                    weight="bold",
                )
    chart.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(modes),
        frameon=False,
    )
    return chart


def _connections(figures: Summary, size: int, mode: str) -> list[float]:
    return figures.readings(size, mode, Measure.CONNECT, MeasurePlace.END)


def _tick(seconds: float) -> str:
    """Return a power of ten without digits behind it."""
    return quantity(seconds, Unit.SECONDS).replace(".00", "").replace(".0", "")


def _panel(axes: "Axes", title: str) -> None:
    axes.set_title(title)
    axes.grid(visible=True, axis="both", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK)
