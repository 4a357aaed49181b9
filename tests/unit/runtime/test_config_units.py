"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from td_runtime.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("1d", 86_400.0),
        ("1d2h3m4s5ms", 93_784.005),
        ("1.5s", 1.5),
        ("0s", 0.0),
    ],
)
def test_durations(text, seconds):
    """Parts add up, each with its unit."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "s",
        "30 s",
        "30S",
        "-1s",
        "+1s",
        "30s1m",
        "1s1s",
        "1w",
        "1m 30s",
        "\N{ARABIC-INDIC DIGIT ONE}s",
        "1e3s",
        ".5s",
    ],
)
def test_what_is_no_duration(text):
    """A guess is refused: bare numbers, foreign units, parts out of order or twice."""
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64KiB", 65_536), ("10MB", 10_000_000), ("1GiB", 1 << 30), ("1.5 KiB", 1536), ("7B", 7)],
)
def test_sizes(text, size):
    """Binary units count 1024, decimal ones 1000."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "64", "64K", "64kb", "KiB", "-1KiB", "1  KiB", "1KiB "])
def test_what_is_no_size(text):
    """A guess is refused."""
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(0, 10**11))
def test_durations_survive_a_round_trip(milliseconds):
    """What is written is read back as the same duration."""
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(0, 10**12 - 1))
def test_sizes_survive_a_round_trip(size):
    """What is written is read back as the same size."""
    assert parse_size(format_size(size)) == size
