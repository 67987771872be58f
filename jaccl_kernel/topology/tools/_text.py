"""Small parsers for words and numbers that the tool parsers share; None for invalid input."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address

_LONGEST_NUMBER = 18  # digits: a longer number is noise, and Python refuses more than 4300 digits


def lines(text: str) -> Iterator[str]:
    """The lines without line ends and indentation; NUL and no-break spaces count as spaces."""
    for line in text.replace("\r", "").split("\n"):
        yield line.replace("\0", " ").replace("\u00a0", " ").strip()


def word(value: object) -> str | None:
    """The stripped text, if it is a non-blank string."""
    return value.strip() or None if isinstance(value, str) else None


def integer(value: object) -> int | None:
    """An integer, from JSON or from a string of digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 10**_LONGEST_NUMBER else None
    if isinstance(value, str) and re.fullmatch(rf"\d{{1,{_LONGEST_NUMBER}}}", value.strip(), re.ASCII):
        return int(value)
    return None


def ipv4(text: str) -> str | None:
    """An IPv4 address in dotted form."""
    try:
        return str(IPv4Address(text))
    except ValueError:
        return None


def is_mac(text: str) -> bool:
    """Whether it is an Ethernet address, with or without leading zeros."""
    return re.fullmatch(r"(?:[0-9a-fA-F]{1,2}:){5}[0-9a-fA-F]{1,2}", text) is not None
