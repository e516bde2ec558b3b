"""The picture of the dashboard in the docs: python -m tests.tools.dashboard [FILE].

The panels of `deploy/monitoring/dashboard.json`, at their places, with what a real Prometheus
answers to their queries while Services answer, refuse and change. Drawn here, not by Grafana.
"""

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from tests.support.machine import started
from tests.support.paths import ROOT
from tests.support.prometheus import Prometheus, dashboard, queries, scraped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WATCHED: Final = 90.0  # seconds of load in the picture
_UNITS: Final = {
    "s": "s",
    "bytes": "B",
    "cps": "a second",
    "pps": "a second",
    "ops": "a second",
    "reqps": "a second",
}


def main(file: Path) -> None:
    """Run what is measured, and draw it."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        started(Path(scratch)) as machine,
        scraped(machine, Path(scratch)) as prometheus,
    ):
        time.sleep(WATCHED)
        draw(dashboard(), prometheus).savefig(file, dpi=110)


def draw(shown: dict[str, Any], prometheus: Prometheus) -> Figure:
    """Return the dashboard with the data of the last minutes."""
    panels = shown["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(12, height / 3.6), facecolor="white")
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / 24, place["w"] / 24
        top, tall = 1 - place["y"] / height, place["h"] / height
        if panel["type"] == "row":
            figure.text(
                left + 0.01, top - tall / 2, panel["title"], fontsize=12, weight="bold", va="center"
            )
        else:
            axes = figure.add_axes(
                (left + 0.06, top - tall * 0.72, width - 0.08, tall * 0.56)  # legend below
            )
            _draw_panel(axes, panel, prometheus)
    return figure


def _draw_panel(axes: "Axes", panel: dict[str, Any], prometheus: Prometheus) -> None:
    axes.set_title(panel["title"], loc="left", fontsize=9)
    now = time.time()
    for legend, query in queries(panel).items():
        for series in prometheus.over(query, WATCHED):
            points = [(float(at) - now, float(value)) for at, value in series["values"]]
            axes.plot(*zip(*points, strict=True), linewidth=1.2, label=_label(legend, series))
    unit = _UNITS.get(panel.get("fieldConfig", {}).get("defaults", {}).get("unit", ""))
    if unit in {"s", "B"}:
        axes.yaxis.set_major_formatter(EngFormatter(unit=unit))
    axes.set_ylabel("" if unit in {"s", "B", None} else unit, fontsize=7)
    axes.set_xlim(-WATCHED, 0)
    axes.set_ylim(bottom=0)
    axes.set_xticks([])
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.03), ncols=4
    )


def _label(legend: str, series: dict[str, Any]) -> str:
    """Fill the labels of a series into the legend."""
    return re.sub(r"\{\{(\w+)\}\}", lambda name: series["metric"].get(name[1], ""), legend)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/pictures/dashboard.png")
