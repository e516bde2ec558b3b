import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.configuration.duration import HOUR, MILLISECOND, MINUTE, SECOND, Duration

# The spellings and values of Go's own documentation and tests of time.ParseDuration.
READ = {
    "0": 0,
    "-0": 0,
    "+0": 0,
    "0s": 0,
    "30s": 30 * SECOND,
    "15m0s": 15 * MINUTE,
    "1h30m": 90 * MINUTE,
    "1.5h": 90 * MINUTE,
    "100ms": 100 * MILLISECOND,
    "-5.5s": -5_500_000_000,
    "+5s": 5 * SECOND,
    ".5s": 500 * MILLISECOND,
    "5.s": 5 * SECOND,
    "10ns": 10,
    "11us": 11_000,
    "12µs": 12_000,
    "12μs": 12_000,
    "10.5s4m": 4 * MINUTE + 10_500_000_000,
    "1h1m1s1ms1us1ns": HOUR + MINUTE + SECOND + 1_001_001,
    "0.3333333333333333333h": 20 * MINUTE,
    "0.830103483285477580700h": 49 * MINUTE + 48 * SECOND + 372_539_827,
    "9007199254740993ns": (1 << 53) + 1,
    "9223372036854775807ns": (1 << 63) - 1,
    "-9223372036854775808ns": -(1 << 63),
}

PRINTED = {
    0: "0s",
    1: "1ns",
    1_100: "1.1µs",
    2_200_000: "2.2ms",
    100 * MILLISECOND: "100ms",
    3_300_000_000: "3.3s",
    30 * SECOND: "30s",
    MINUTE: "1m0s",
    4 * MINUTE + 5 * SECOND: "4m5s",
    4 * MINUTE + 5_001_000_000: "4m5.001s",
    8 * MINUTE + 1: "8m0.000000001s",
    24 * HOUR: "24h0m0s",
    5 * HOUR + 6 * MINUTE + 7_001_000_000: "5h6m7.001s",
    -90 * MINUTE: "-1h30m0s",
    (1 << 63) - 1: "2562047h47m16.854775807s",
    -(1 << 63): "-2562047h47m16.854775808s",
}

REFUSED = {
    "empty": "",
    "no unit": "3",
    "no number": "s",
    "a dot alone": ".s",
    "a sign alone": "-",
    "two signs": "--1s",
    "days": "1d",
    "blank inside": "1 s",
    "blank before": " 1s",
    "another alphabet's digit": "\u0661s",
    "scientific": "1e3s",
    "hexadecimal": "0x1s",
    "beyond 63 bits": "9223372036854775808ns",
    "far beyond 63 bits": "9" * 200 + "h",
    "too long to be meant": "9" * 5000 + "h",
}


@pytest.mark.contract("8.2")
@pytest.mark.parametrize(("text", "nanoseconds"), READ.items(), ids=READ)
def test_reads_what_go_reads(text: str, nanoseconds: int) -> None:
    assert Duration.parse(text) == nanoseconds


@pytest.mark.contract("8.2")
@pytest.mark.parametrize(("nanoseconds", "text"), PRINTED.items(), ids=PRINTED.values())
def test_prints_as_go_prints(nanoseconds: int, text: str) -> None:
    assert str(Duration(nanoseconds)) == text


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_refuses_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 30s"):
        Duration.parse(text)


@given(st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1))
def test_what_is_printed_parses_back(nanoseconds: int) -> None:
    assert Duration.parse(str(Duration(nanoseconds))) == nanoseconds


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = Duration.parse(text)
    except ValueError:
        return
    assert Duration.parse(str(parsed)) == parsed


def test_seconds_are_for_timers() -> None:
    assert Duration.parse("1m0.05s").seconds == 60.05
    assert repr(Duration(0)) == "Duration('0s')"
