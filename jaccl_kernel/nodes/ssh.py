"""The command line of system ssh, and the diagnosis of its error messages. Pure.

Covers OpenSSH's messages on macOS and Linux, and quoting for the supported remote login shells. `ssh_node.py`
runs the processes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaccl_kernel.core.errors import InputError

CONNECT_TIMEOUT = 10
"""Seconds for the connection and the first handshake."""

_OPTIONS = (
    "-T",
    *("-o", "BatchMode=yes"),  # a prompt would hang for ever
    *("-o", f"ConnectTimeout={CONNECT_TIMEOUT}"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),  # detects a sleeping Mac within 15 s
    *("-o", "LogLevel=INFO"),  # QUIET in the user's config would hide the messages that we parse
    *("-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none"),  # the user's are for interactive sessions
)

_PLAIN = re.compile(r"[A-Za-z0-9_@+:,./-]+")


def command(options: Iterable[str] = ()) -> list[str]:
    """The ssh command line up to the host: the user's config, without prompts and with timeouts.

    Raises:
        InputError: an option contains white space or quotes, which rsync's `-e` does not support.
    """
    words = ["ssh", *_OPTIONS, *options]
    for word in words:
        if not word or re.search(r"[\s'\"]", word):
            raise InputError(
                f"ssh option {word!r} is empty, or contains white space or quotes",
                fix="Write it as -o Name=value, or add it to your ssh config.",
            )
    return words


def check_host(host: str) -> str:
    """Return `host` if it is a valid ssh destination: `name`, `user@name`, an alias or an address.

    Raises:
        InputError: it is empty, starts with a dash or contains white space.
    """
    if not host or host.startswith("-") or re.search(r"[\s\x00-\x1f]", host):
        raise InputError(
            f"invalid ssh host name {host!r}",
            fix="Pass an ssh destination: a name, user@name, or an alias of your ssh config.",
        )
    return host


def quote(word: str) -> str:
    """Quote one word for the remote login shell: sh, bash, zsh, dash, ksh or fish.

    Not csh. fish treats a backslash in single quotes as an escape, so it is put in double quotes.
    """
    if _PLAIN.fullmatch(word):
        return word
    return "'" + re.sub(r"(['\\])", lambda found: _OUTSIDE[found[1]], word) + "'"


_OUTSIDE = {"'": "'\"'\"'", "\\": "'\"\\\\\"'"}


def command_line(argv: Sequence[str]) -> str:
    """The command line for the remote login shell; `exec` keeps shell and command in one process group."""
    return "exec " + " ".join(map(quote, argv))


@dataclass(frozen=True)
class Diagnosis:
    """Why ssh failed, and the fix."""

    what: str
    fix: str


@dataclass(frozen=True)
class _Case:
    """One message of ssh; `{0}` is the pattern's group, `{line}` the matching line."""

    pattern: re.Pattern[str]
    what: str
    fix: str


def _case(pattern: str, what: str, fix: str) -> _Case:
    return _Case(re.compile(pattern, re.MULTILINE), what, fix)


_REMOTE_LOGIN = "on that Mac, System Settings → General → Sharing → Remote Login"

# The first match is used: causes precede their consequences.
_CASES = (
    _case(
        r"[Bb]ad configuration option|Bad owner or permissions on ",
        "ssh rejects the ssh config: {line}",
        "Correct that file; `ssh -G {host}` shows how ssh reads it.",
    ),
    _case(
        r"Could not resolve hostname (\S+?):",
        "cannot resolve the host name {0}",
        "Check the spelling. A Mac's .local name works only on its own network; any other "
        "name needs a Host entry in ~/.ssh/config.",
    ),
    _case(
        r"connect to host \S+ port (\d+): Connection refused",
        "the Mac is reachable, but no ssh server listens on port {0}",
        f"Turn on {_REMOTE_LOGIN}.",
    ),
    _case(
        r"connect to host \S+ port \d+: (?:Connection|Operation) timed out|^ssh: connect .*[Hh]ost is down",
        "the Mac does not answer",
        "Check that it is on, awake and on this network, and that no firewall blocks ssh.",
    ),
    _case(
        r"connect to host \S+ port \d+: (No route to host|Network is unreachable)",
        "no network route to the Mac ({0})",
        "Check that it is on and on this network. Local Network privacy on macOS causes the same error: "
        "test from Terminal, or allow the program in System Settings → Privacy & Security → Local Network.",
    ),
    _case(
        r"timed out during banner exchange|Connection to \S+ port \d+ timed out",
        "the connection opens, but no ssh server responds",
        "Check the port. The Mac may be overloaded or waking up: try again in a minute.",
    ),
    _case(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key differs from the known one{known}",
        "If the Mac was reinstalled or replaced: run `ssh-keygen -R {name}{file}`, then `ssh {host}` once, "
        "and compare the fingerprint. Otherwise stop: another machine may impersonate it and would receive "
        "all data.",
    ),
    _case(
        r"Host key verification failed|No \S+ host key is known for",
        "the host key is unknown: this machine has never connected to it",
        "Run `ssh {host}` once in a terminal, compare the fingerprint, and answer yes.",
    ),
    _case(
        r"UNPROTECTED PRIVATE KEY FILE(?:.|\n)*?Permissions \S+ for '([^']+)'",
        "ssh does not use the key {0}, since other users can read it",
        "Run: chmod 600 {0}",
    ),
    _case(
        r"Too many authentication failures",
        "the server closed the connection after too many keys",
        "Select the key in ~/.ssh/config: IdentityFile and IdentitiesOnly yes under Host {host}.",
    ),
    _case(
        r"Permission denied \(([^)]*)\)",
        "authentication failed: the Mac accepts none of the keys, and password prompts are disabled ({0})",
        "Run `ssh-copy-id {host}` once in a terminal; then `ssh {host} true` must work without a prompt. "
        f"The user also needs access: {_REMOTE_LOGIN} → (i).",
    ),
    _case(
        r"Unable to negotiate with [^:]+: (.+)",
        "the two ssh versions share no algorithm: {0}",
        "Update the older of the two Macs.",
    ),
    _case(
        r"^kex_exchange_identification:|^Connection (?:closed|reset) by|^ssh_dispatch_run_fatal:",
        "the server closed the connection: {line}",
        f"Check that the user has access ({_REMOTE_LOGIN}). Too many simultaneous connections cause "
        "the same error: try again in a minute.",
    ),
)

_LOST = re.compile(
    r"^client_loop:|^Connection to .* closed|^Timeout, server .* not responding|^Read from remote host"
    r"|^Connection (?:closed|reset) by"
)


def explain(stderr: str, host: str) -> Diagnosis | None:
    """Diagnose a failed connection from ssh's stderr; None if no known message matches."""
    for case in _CASES:
        if found := case.pattern.search(stderr):
            known, name, file = _offending_key(stderr, host)
            line = _line_at(stderr, found.start())
            values = {"host": host, "line": line, "known": known, "name": name, "file": file}
            return Diagnosis(*(text.format(*found.groups(), **values) for text in (case.what, case.fix)))
    return None


def lost(stderr: str) -> str | None:
    """ssh's message about a connection that broke during a command, or None."""
    return next((line for line in reversed(stderr.splitlines()) if _LOST.match(line)), None)


def _line_at(text: str, at: int) -> str:
    start = text.rfind("\n", 0, at) + 1
    return text[start:].split("\n", 1)[0].strip()


def _offending_key(stderr: str, host: str) -> tuple[str, str, str]:
    """For a changed host key: " (FILE line N)", its name in that file, and " -f FILE"."""
    where = re.search(r"Offending \S+ key in (.+):(\d+)", stderr)
    entry = re.search(r"Host key for (\S+) has changed", stderr)
    return (
        f" ({where[1]} line {where[2]})" if where else "",
        quote(entry[1] if entry else host),
        f" -f {quote(where[1])}" if where else "",
    )
