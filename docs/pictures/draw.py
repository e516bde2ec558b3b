"""Draw the pictures of the documentation.

    python docs/pictures/draw.py

Each picture is a function that yields boxes, arrows and words on a grid of 10 pixels. The SVG files
beside this one are what it writes, and a test says so.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path

INK, PAPER, PALE, BLUE, GREEN, RED = (
    "#333333",
    "#ffffff",
    "#f3f4f6",
    "#dbeafe",
    "#dcfce7",
    "#fee2e2",
)


def box(x: float, y: float, width: float, height: float, *lines: str, fill: str = PAPER) -> str:
    """Return a box with lines of text in its middle; the first is bold."""
    shape = (
        f'<rect x="{x * 10}" y="{y * 10}" width="{width * 10}" height="{height * 10}" '
        f'rx="6" fill="{fill}" stroke="{INK}"/>'
    )
    top = y * 10 + height * 5 - (len(lines) - 1) * 8 + 5
    texts = [
        word(x + width / 2, (top + n * 16) / 10, line, middle=True, bold=n == 0)
        for n, line in enumerate(lines)
    ]
    return "".join([shape, *texts])


def word(x: float, y: float, text: str, *, middle: bool = False, bold: bool = False) -> str:
    """Return a line of text whose left end, or middle, is at x."""
    style = (' text-anchor="middle"' if middle else "") + (' font-weight="bold"' if bold else "")
    return f'<text x="{x * 10:g}" y="{y * 10:g}"{style}>{escape(text)}</text>'


def arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    """Return a line through the points with a head at its end."""
    path = " ".join(f"{x * 10:g},{y * 10:g}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.5" '
        f'marker-end="url(#head)"{dash}/>'
    )


def overview() -> Iterable[str]:
    """Draw the README's: what is constant, what is data, and what a packet meets."""
    yield box(1, 1, 17, 5, "API server, or files", "Services, EndpointSlices", fill=PALE)
    yield arrow((18, 3.5), (23, 3.5))
    yield box(23, 1, 24, 5, "nftproxy, on each node", "which endpoints, which elements", fill=BLUE)
    yield arrow((47, 3.5), (52, 3.5))
    yield box(52, 1, 22, 5, "libnftables", "only what changed, in ms", fill=PALE)
    yield box(1, 9, 84, 20, fill=PALE)
    yield arrow((63, 6), (63, 9))
    yield word(2.5, 11.2, "the kernel's table inet nftproxy", bold=True)
    yield box(
        3, 13, 23, 6, "map services4", "10.96.0.10 . tcp . 80", ": goto pick4-tcp-3", fill=GREEN
    )
    yield box(
        31,
        13,
        23,
        6,
        "chain pick4-tcp-3",
        "dnat to one of 3",
        "the same for all Services",
        fill=BLUE,
    )
    yield box(
        59,
        13,
        24,
        6,
        "map endpoints4-tcp",
        "10.96.0.10 . 80 . 2",
        ": 10.244.2.2 . 8080",
        fill=GREEN,
    )
    yield arrow((26, 16), (31, 16))
    yield arrow((54, 16), (59, 16))
    yield box(15, 22, 24, 5, "program: 450 lines", "does not grow", fill=BLUE)
    yield box(
        43,
        22,
        30,
        5,
        "data: elements of maps",
        "a look-up costs the same, however many",
        fill=GREEN,
    )
    yield box(1, 32, 25, 5, "a client connects to", "10.96.0.10:80")
    yield arrow((9, 32), (9, 19))
    yield box(59, 32, 26, 5, "the pod answers", "10.244.2.2:8080")
    yield arrow((78, 19), (78, 32))


def hooks() -> Iterable[str]:
    """Draw the way of a connection's first packet, from pod, node and outside."""
    yield box(1, 8, 16, 6, "pod, or client", "packet arrives", fill=PALE)
    yield box(1, 28, 16, 6, "process on the node", "packet is made", fill=PALE)
    yield box(22, 2, 20, 7, "filter-prerouting", "priority -110", "source ranges: drop", fill=RED)
    yield box(22, 13, 20, 7, "nat-prerouting", "priority -100", "choose an endpoint", fill=GREEN)
    yield box(22, 24, 20, 6, "filter-output-early", "source ranges: drop", fill=RED)
    yield box(22, 33, 20, 6, "nat-output", "choose an endpoint", fill=GREEN)
    yield box(47, 13, 13, 7, "route", "to the endpoint", fill=PALE)
    yield box(
        65, 3, 20, 8, "filter-input", "no endpoint: refuse", "else remember (ClientIP)", fill=RED
    )
    yield box(
        65, 15, 20, 8, "filter-forward", "no endpoint: refuse", "else remember (ClientIP)", fill=RED
    )
    yield box(
        65, 32, 20, 8, "filter-output", "no endpoint: refuse", "else remember (ClientIP)", fill=RED
    )
    yield box(90, 24, 20, 7, "nat-postrouting", "marked, or hairpin:", "masquerade", fill=BLUE)
    yield box(115, 24, 12, 7, "endpoint", fill=PALE)
    yield box(115, 3, 12, 8, "endpoint", "on the node", fill=PALE)
    yield arrow((17, 10), (19.5, 10), (19.5, 5.5), (22, 5.5))
    yield arrow((32, 9), (32, 13))
    yield arrow((42, 16.5), (47, 16.5))
    yield arrow((60, 16.5), (65, 16.5))
    yield arrow((62.5, 16.5), (62.5, 7), (65, 7))
    yield arrow((85, 7), (115, 7))
    yield arrow((85, 19), (100, 19), (100, 24))
    yield arrow((17, 31), (19.5, 31), (19.5, 27), (22, 27))
    yield arrow((32, 30), (32, 33))
    yield arrow((42, 36), (65, 36))
    yield arrow((85, 36), (100, 36), (100, 31))
    yield arrow((110, 27.5), (115, 27.5))
    yield word(
        1,
        43.5,
        "Only the first packet of a connection is asked for an endpoint; connection tracking "
        "repeats the answer for all others.",
    )


def flow() -> Iterable[str]:
    """Draw where in the code a change becomes an element."""
    steps = (
        ("kubesource, manifests", "list, watch, files"),
        ("store", "typed objects, dirty keys"),
        ("selection", "two endpoint lists"),
        ("routes", "elements of maps"),
        ("difference", "against what was committed"),
        ("syncer", "when, in which order"),
        ("transactions", "libnftables"),
    )
    for number, (name, what) in enumerate(steps):
        column, row = (number, 0) if number < 4 else (7 - number, 1)
        x, y = 1 + column * 25, 5 + row * 12
        pure = name in {"selection", "routes", "difference"}
        yield box(x, y, 20, 5, name, what, fill=GREEN if pure else BLUE)
    for column in range(3):
        yield arrow((21 + column * 25, 7.5), (26 + column * 25, 7.5))
    yield arrow((86, 10), (86, 17))
    yield arrow((76, 19.5), (71, 19.5))
    yield arrow((51, 19.5), (46, 19.5))
    yield box(1, 17, 20, 5, "reader", "at start, after surprises", fill=BLUE)
    yield arrow((26, 21), (21, 21))
    yield arrow((11, 22), (11, 25), (86, 25), (86, 22), dashed=True)
    yield word(1, 2.5, "Green: pure functions without I/O or clock. Blue: the edges.")


PICTURES = {"overview": (overview, 860, 380), "hooks": (hooks, 1280, 450), "flow": (flow, 970, 260)}


def svg(name: str) -> str:
    """Return a picture as text."""
    make, width, height = PICTURES[name]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"'
    )
    return "\n".join(
        [
            f'{head} font-family="DejaVu Sans, sans-serif" font-size="12" fill="{INK}">',
            (
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                'markerHeight="7" orient="auto">'
            ),
            f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
            *make(),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    for picture in PICTURES:
        Path(__file__).with_name(f"{picture}.svg").write_text(svg(picture))
