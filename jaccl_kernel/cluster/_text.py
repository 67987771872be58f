"""Small readers of words and numbers that the parsers share; None for what is not one."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address

_LONGEST_NUMBER = 18  # digits: more is noise, and Python refuses to read 4301 of them


def lines(text: str) -> Iterator[str]:
    """The lines without their ends and indents; NUL and no-break spaces count as spaces."""
    for line in text.replace("\r", "").split("\n"):
        yield line.replace("\0", " ").replace("\u00a0", " ").strip()


def word(value: object) -> str | None:
    """A text that is not blank."""
    return value.strip() or None if isinstance(value, str) else None


def integer(value: object) -> int | None:
    """A whole number, as JSON's own or written in digits."""
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
