"""System ssh: the command line that asks it, and what its words mean when it fails.

Pure: builds argument lists and reads text. Knows OpenSSH's messages, on macOS and on Linux, and the far login
shells that we quote for; nothing of processes: see `child.py` and `shell.py`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaccl_kernel.errors import InputError

CONNECT_TIMEOUT = 10
"""Seconds that ssh gives to connecting and to the first handshake."""

_OPTIONS = (
    "-T",
    *("-o", "BatchMode=yes"),  # a question would wait for ever: there is nobody to answer
    *("-o", f"ConnectTimeout={CONNECT_TIMEOUT}"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),  # a Mac that sleeps is noticed in 15 s
    *("-o", "LogLevel=INFO"),  # QUIET in somebody's config would hide the reasons that we read
    *("-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none"),  # theirs are for their own sessions
)

_PLAIN = re.compile(r"[A-Za-z0-9_@+:,./-]+")


def command(options: Iterable[str] = ()) -> list[str]:
    """The ssh command line up to the host: the user's own config, but never a question and never a hang.

    Raises:
        InputError: an option holds white space or quotes: rsync's `-e` carries bare words only.
    """
    words = ["ssh", *_OPTIONS, *options]
    for word in words:
        if not word or re.search(r"[\s'\"]", word):
            raise InputError(
                f"ssh option {word!r} is empty, or holds white space or quotes",
                fix="Write it as -o Name=value, or put it in your ssh config.",
            )
    return words


def check_host(host: str) -> str:
    """The name, if it can be one that ssh takes: `name`, `user@name`, an alias of the ssh config, an address.

    Raises:
        InputError: it is empty, begins with a dash or holds white space.
    """
    if not host or host.startswith("-") or re.search(r"[\s\x00-\x1f]", host):
        raise InputError(
            f"{host!r} cannot be an ssh host name",
            fix="Give what you would give to ssh: a name, user@name, or an alias of your ssh config.",
        )
    return host


def quote(word: str) -> str:
    """One word for the far login shell: sh, bash, zsh, dash, ksh and fish read it back to the letter.

    Not csh. fish takes a backslash in single quotes for an escape, so it stands in double quotes.
    """
    if _PLAIN.fullmatch(word):
        return word
    return "'" + re.sub(r"(['\\])", lambda found: _OUTSIDE[found[1]], word) + "'"


_OUTSIDE = {"'": "'\"'\"'", "\\": "'\"\\\\\"'"}


def command_line(argv: Sequence[str]) -> str:
    """What the far login shell is given: it becomes the command, so that their process group is one."""
    return "exec " + " ".join(map(quote, argv))


@dataclass(frozen=True)
class Trouble:
    """Why ssh failed, and what to do about it."""

    what: str
    fix: str


@dataclass(frozen=True)
class _Case:
    """One message of ssh's; `{0}` is the pattern's group, `{line}` the line where it stands."""

    pattern: re.Pattern[str]
    what: str
    fix: str


def _case(pattern: str, what: str, fix: str) -> _Case:
    return _Case(re.compile(pattern, re.MULTILINE), what, fix)


_REMOTE_LOGIN = "on that Mac, System Settings → General → Sharing → Remote Login"

# The first that matches tells: causes stand before what follows from them.
_CASES = (
    _case(
        r"[Bb]ad configuration option|Bad owner or permissions on ",
        "ssh does not take the ssh config: {line}",
        "Mend that file; `ssh -G {host}` shows how ssh reads it.",
    ),
    _case(
        r"Could not resolve hostname (\S+?):",
        "the name {0} is not known here",
        "Check the spelling. A Mac's own name ends in .local and is found on its own network only; another "
        "name needs a Host entry in ~/.ssh/config.",
    ),
    _case(
        r"connect to host \S+ port (\d+): Connection refused",
        "it answers, but nothing listens on port {0}",
        f"Turn on {_REMOTE_LOGIN}.",
    ),
    _case(
        r"connect to host \S+ port \d+: (?:Connection|Operation) timed out|^ssh: connect .*[Hh]ost is down",
        "it does not answer",
        "Is it on, awake and on this network? Does a firewall drop ssh?",
    ),
    _case(
        r"connect to host \S+ port \d+: (No route to host|Network is unreachable)",
        "there is no way to it from here ({0})",
        "Is it on, and on this network? macOS says so too to programs that Local Network privacy keeps out: "
        "try from Terminal, or allow the program in System Settings → Privacy & Security → Local Network.",
    ),
    _case(
        r"timed out during banner exchange|Connection to \S+ port \d+ timed out",
        "it takes the connection, but no ssh server speaks there",
        "Is that port really ssh's? Is the Mac overloaded, or just waking up? Try again in a minute.",
    ),
    _case(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that this machine knows{known}",
        "If you know that the Mac was reinstalled or replaced: `ssh-keygen -R {name}{file}`, then once "
        "`ssh {host}`, and compare the fingerprint. If you don't, stop: another machine may be posing as it, "
        "and would get everything that is sent.",
    ),
    _case(
        r"Host key verification failed|No \S+ host key is known for",
        "this machine has never met it: its host key is not known yet",
        "Run `ssh {host}` once in a terminal, compare the fingerprint, and answer yes.",
    ),
    _case(
        r"UNPROTECTED PRIVATE KEY FILE(?:.|\n)*?Permissions \S+ for '([^']+)'",
        "ssh will not use the key {0}: others can read it",
        "chmod 600 {0}",
    ),
    _case(
        r"Too many authentication failures",
        "it hung up after too many keys were tried",
        "Name the right one in ~/.ssh/config: IdentityFile and IdentitiesOnly yes under Host {host}.",
    ),
    _case(
        r"Permission denied \(([^)]*)\)",
        "it does not let us in: none of our keys is accepted, and a password cannot be asked for here ({0})",
        "Run `ssh-copy-id {host}` once in a terminal; then `ssh {host} true` must work without a question. "
        f"The user must be allowed too: {_REMOTE_LOGIN} → (i).",
    ),
    _case(
        r"Unable to negotiate with [^:]+: (.+)",
        "the two ssh versions have nothing in common: {0}",
        "Update the older of the two Macs.",
    ),
    _case(
        r"^kex_exchange_identification:|^Connection (?:closed|reset) by|^ssh_dispatch_run_fatal:",
        "it hung up: {line}",
        f"Are this user and this address allowed there ({_REMOTE_LOGIN})? Too many connections at once look "
        "the same: try again in a minute.",
    ),
)

_LOST = re.compile(
    r"^client_loop:|^Connection to .* closed|^Timeout, server .* not responding|^Read from remote host"
    r"|^Connection (?:closed|reset) by"
)


def explain(words: str, host: str) -> Trouble | None:
    """What ssh's stderr says of a connection that did not come about; None if nothing that we know."""
    for case in _CASES:
        if found := case.pattern.search(words):
            known, name, file = _offending_key(words, host)
            line = _line_at(words, found.start())
            told = {"host": host, "line": line, "known": known, "name": name, "file": file}
            return Trouble(*(text.format(*found.groups(), **told) for text in (case.what, case.fix)))
    return None


def lost(words: str) -> str | None:
    """ssh's own last line on a connection that broke while a command ran, or None."""
    return next((line for line in reversed(words.splitlines()) if _LOST.match(line)), None)


def _line_at(words: str, at: int) -> str:
    start = words.rfind("\n", 0, at) + 1
    return words[start:].split("\n", 1)[0].strip()


def _offending_key(words: str, host: str) -> tuple[str, str, str]:
    """Of a changed host key: " (FILE line N)", the name that it is filed under, and " -f FILE"."""
    where = re.search(r"Offending \S+ key in (.+):(\d+)", words)
    filed = re.search(r"Host key for (\S+) has changed", words)
    return (
        f" ({where[1]} line {where[2]})" if where else "",
        quote(filed[1] if filed else host),
        f" -f {quote(where[1])}" if where else "",
    )
