"""The templates: every text in them is escaped, so that no name of a Service becomes markup."""

from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from nftproxy.page import charts
from nftproxy.page.rates import KEPT

_TEMPLATES = Environment(
    loader=PackageLoader("nftproxy.page"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: object) -> bytes:
    """Return a page."""
    return _TEMPLATES.get_template(template).render(**values).encode()


def rate(value: float) -> str:
    """Return a number of events a second, in a few characters."""
    if not value:
        return "0"
    if value < 0.1:
        return "<0.1"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def address_of(service: str) -> str:
    """Return the address of a Service's page."""
    return "/service/" + quote(service, safe="/:")


def _sparkline(values: Sequence[float]) -> str:
    return charts.sparkline(values, KEPT)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")


_TEMPLATES.filters |= {
    "rate": rate,
    "address_of": address_of,
    "sparkline": _sparkline,
    "bar": charts.bar,
    "clock": _clock,
}
