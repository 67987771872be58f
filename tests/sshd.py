"""Simulated Macs behind real ssh: one OpenSSH sshd each, on loopback, with keys, home and PATH of its own.

Everything is the real thing except that the Macs share this machine: quoting, rsync, mlx.launch over ssh,
the lifetime of processes. With `macs.path` as PATH every `ssh` (ours, rsync's, mlx.launch's) knows the Macs
by name; `SshNode(…, options=macs.options)` does the same for one node. All processes end with the context.
"""

import contextlib
import getpass
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from tests.needs import find

_DEADLINE = 60.0
_MARK = "JACCL_TEST_SSHD"
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Mac:
    """One simulated Mac.

    Args:
        name: what ssh calls it.
        home: its home folder; `home/bin` comes first in its PATH, and `home/.shellrc`, if there, is read
            before each command, as a login shell's start file is.
        port: where its sshd listens on 127.0.0.1.
        host_key: its public host key, as in known_hosts, without the name.
        log: what its sshd says.
        sshd: the process that listens.
    """

    name: str
    home: Path
    port: int
    host_key: str
    log: Path
    sshd: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Macs:
    """Simulated Macs that ssh reaches by name.

    Args:
        by_name: each of them.
        config: the ssh config that knows them.
        known_hosts: the host keys that the config trusts.
        bin: a folder with an `ssh` that uses that config; to put first in PATH.
        mark: the value of JACCL_TEST_SSHD in the environment of everything that runs on them.
    """

    by_name: dict[str, Mac]
    config: Path
    known_hosts: Path
    bin: Path
    mark: str

    @property
    def options(self) -> tuple[str, str]:
        """ssh's options for the config."""
        return ("-F", str(self.config))

    @property
    def path(self) -> str:
        """Our PATH with `bin` first."""
        return f"{self.bin}:{os.environ['PATH']}"

    def __getitem__(self, name: str) -> Mac:
        return self.by_name[name]

    def running(self) -> list[psutil.Process]:
        """The processes of commands that run on the Macs, whoever their parent is now; not sshd's own."""
        return [process for process in psutil.process_iter() if _mark_of(process) == self.mark]

    def stop(self, name: str) -> None:
        """Switch one Mac off: its sshd and all that runs under it; the port refuses connections then."""
        sshd = self.by_name[name].sshd
        if sshd.poll() is None:
            family = psutil.Process(sshd.pid).children(recursive=True)
            sshd.kill()
            for process in family:
                _kill(process)
            sshd.wait(_DEADLINE)

    def restart(self, name: str) -> None:
        """Switch a stopped Mac on again, at the same port."""
        mac = self.by_name[name]
        process = _listen([str(word) for word in list(mac.sshd.args)], mac.log)  # type: ignore[arg-type]
        assert process, f"sshd of {name} does not start again:\n{mac.log.read_text()}"
        self.by_name[name] = replace(mac, sshd=process)


def wait_for(condition: Callable[[], object], what: str, *, deadline: float = _DEADLINE) -> None:
    """Wait until the condition holds; fail, naming it, if it does not within `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"after {deadline:g} s: {what}")
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def silent_server() -> socket.socket:
    """A server on 127.0.0.1 that takes connections and never says a word. Close it."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(8)
    return server


@contextlib.contextmanager
def start_macs(
    root: Path, names: Sequence[str] = ("mac1", "mac2"), *, shell: str = "/bin/sh", path: str = _SYSTEM_PATH
) -> Iterator[Macs]:
    """Start one sshd for each name, under `root`; the test is marked `sshd`, and so skipped without one.

    Args:
        root: a folder to be made, or an empty one, without white space in its path.
        names: what ssh calls them.
        shell: their login shell.
        path: their PATH, behind `bin` of each one's home.
    """
    sshd, ssh = find("sshd"), find("ssh")
    assert sshd, "a test that starts sshd must be marked sshd"
    assert ssh
    if os.geteuid() == 0 and sys.platform == "linux":
        # sshd as root wants its privilege separation folder, which Debian makes in a start script
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    root.mkdir(exist_ok=True)
    client_key = _make_key(root / "client_key")
    macs = Macs({}, root / "ssh_config", root / "known_hosts", root / "bin", secrets.token_hex(8))
    try:
        for name in names:
            macs.by_name[name] = _start(sshd, root / name, name, client_key, macs.mark, shell, path)
        _write_client(macs, ssh, root / "client_key")
        yield macs
    finally:
        for name in macs.by_name:
            macs.stop(name)
        for process in macs.running():
            _kill(process)
        wait_for(lambda: not macs.running(), f"processes {macs.running()} of simulated Macs do not end")


def _make_key(path: Path) -> str:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path.with_name(f"{path.name}.pub").read_text().strip()


def _start(sshd: str, root: Path, name: str, client_key: str, mark: str, shell: str, path: str) -> Mac:
    home = root / "home"
    (home / "bin").mkdir(parents=True)
    host_key = _make_key(root / "host_key")
    (root / "authorized_keys").write_text(client_key + "\n")
    enter = root / "enter"
    enter.write_text(
        "#!/bin/sh\n"
        f"export HOME={shlex.quote(str(home))} PATH={shlex.quote(f'{home}/bin:{path}')}\n"
        f"export SHELL={shlex.quote(shell)} {_MARK}={mark}\n"
        'cd "$HOME" || exit\n'
        "[ ! -f .shellrc ] || . ./.shellrc\n"
        'exec "$SHELL" -c "${SSH_ORIGINAL_COMMAND-$SHELL}"\n'
    )
    enter.chmod(0o755)
    config = root / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nHostKey {root}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {root}/authorized_keys\nStrictModes no\nUsePAM no\n"
        "PubkeyAuthentication yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin prohibit-password\nMaxStartups 100\nForceCommand exec {enter}\n"
        f"SetEnv HOME={home}\n"  # or the user's real shell would read the user's real start files first
    )
    # since 9.8 sshd punishes an address that fails to log in, and all of our clients have the same one
    lenient = ["-o", "PerSourcePenalties=no"]
    if subprocess.run([sshd, "-t", "-f", config, *lenient], capture_output=True, check=False).returncode:
        lenient = []
    log = root / "sshd.log"
    for _ in range(5):  # another process can take a free port before sshd does
        port = _free_port()
        if process := _listen([sshd, "-D", "-e", "-f", str(config), "-p", str(port), *lenient], log):
            return Mac(name, home, port, host_key, log, process)
    pytest.fail(f"sshd of {name} does not start:\n{log.read_text()}")


def _listen(command: list[str], log: Path) -> subprocess.Popen[bytes] | None:
    """Start an sshd and wait until it listens; None if it ends instead."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    wait_for(
        lambda: "Server listening" in log.read_text() or process.poll() is not None, "sshd does not listen"
    )
    return process if process.poll() is None else None


def _write_client(macs: Macs, ssh: str, key: Path) -> None:
    macs.known_hosts.write_text("".join(f"{mac.name} {mac.host_key}\n" for mac in macs.by_name.values()))
    hosts = (
        f"Host {mac.name}\n  HostName 127.0.0.1\n  Port {mac.port}\n  HostKeyAlias {mac.name}\n"
        for mac in macs.by_name.values()
    )
    macs.config.write_text(
        "".join(hosts) + f"Host *\n  User {getpass.getuser()}\n  IdentityFile {key}\n  IdentitiesOnly yes\n"
        f"  IdentityAgent none\n  UserKnownHostsFile {macs.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  ControlPath none\n"
        "  KexAlgorithms curve25519-sha256\n"  # a third of the time of the post-quantum one
    )
    macs.bin.mkdir()
    wrapper = macs.bin / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(ssh)} -F {shlex.quote(str(macs.config))} "$@"\n')
    wrapper.chmod(0o755)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _mark_of(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error, OSError):  # ended meanwhile, a zombie, somebody else's
        return process.environ().get(_MARK)
    return None


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
