"""Draw what bench.sh measured.

`python3 chart.py FOLDER` reads FOLDER/*.json and writes FOLDER/results.svg and results.csv.
"""

import csv
import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

Results = Mapping[str, Mapping[str, float]]

MEASURES = {
    "per_second": "connections per second (more is better)",
    "p50_us": "connection, median, us",
    "p99_us": "connection, 99th percentile, us",
    "gone_ms": "until a Service without endpoints refuses, ms",
    "back_ms": "until it answers again, ms",
}


def read(folder: Path) -> Results:
    """Return the figures by proxy."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def svg(results: Results) -> str:
    """Return a picture: for every measure a group of bars, each group with a scale of its own."""
    body: list[str] = []
    y = 30
    for measure, title in MEASURES.items():
        body.append(f'<text x="20" y="{y}" font-weight="bold">{escape(title)}</text>')
        highest = max((found.get(measure, 0.0) for found in results.values()), default=0.0) or 1.0
        for proxy, found in results.items():
            y += 22
            value = found.get(measure, 0.0)
            width = 400 * value / highest
            body.append(f'<text x="20" y="{y}">{escape(proxy)}</text>')
            body.append(
                f'<rect x="190" y="{y - 12}" width="{width:.1f}" height="15" fill="#60a5fa"/>'
            )
            body.append(f'<text x="{196 + width:.1f}" y="{y}">{value:g}</text>')
        y += 38
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {y}" width="700" height="{y}"'
    style = 'font-family="DejaVu Sans, sans-serif" font-size="12" fill="#333"'
    return "\n".join(
        [f"{head} {style}>", f'<rect width="700" height="{y}" fill="#fff"/>', *body, "</svg>\n"]
    )


def main(folder: Path) -> int:
    """Read, and write both files."""
    results = read(folder)
    if not results:
        print(f"no results in {folder}: run bench.sh first", file=sys.stderr)
        return 1
    (folder / "results.svg").write_text(svg(results))
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["proxy", *MEASURES, "failed"])
        for proxy, found in results.items():
            writer.writerow([proxy, *(found.get(measure, "") for measure in (*MEASURES, "failed"))])
    print(f"wrote {folder}/results.svg and {folder}/results.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
