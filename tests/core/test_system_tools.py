"""What `make` does about programs that the system lacks, and what the package says of them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from jaccl_kernel.core import system_tools

pytestmark = pytest.mark.usefixtures("nothing_left")
SCRIPT = Path(__file__).parents[2] / ".ci" / "system-tools"
INSTALL = 'for last; do :; done; printf "#!/bin/sh\\n" >"$BIN/$last"; chmod +x "$BIN/$last"'
NO_RSYNC = (
    "rsync is not installed: copying to other machines fails (the rehearsal works without it). Install it:"
)
NO_CHROMIUM = "chromium is not installed: tests in a browser are skipped. Install it:"
CHROME = "/Applications/Google Chrome.app"


class Machine:
    """A PATH of stand-ins: which programs there are, who the user is, what was asked of them."""

    def __init__(self, root: Path) -> None:
        self.bin, self.venv, self.asked = root / "bin", root / "venv", root / "asked"
        self.bin.mkdir()
        self.venv.mkdir()
        self.asked.touch()
        for tool in ("cat", "grep", "head", "chmod"):
            (self.bin / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
        self.script = root / "system-tools"
        text = SCRIPT.read_text().replace("PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin", ":")
        self.script.write_text(text.replace(CHROME, "/nowhere"))
        self.have(sudo=self.told("sudo"), uname="echo Linux")

    def told(self, name: str, then: str = "") -> str:
        return f'echo {name} "$*" >>"{self.asked}"\n{then}'

    def have(self, **programs: str) -> None:
        for name, text in programs.items():
            path = self.bin / name.replace("_", "-")
            path.write_text(f'#!/bin/sh\nBIN="{self.bin}"\n{text}\n')
            path.chmod(0o755)

    def run(self, *tools: str) -> list[str]:
        """What it says; it must never fail, nor write to stderr."""
        done = subprocess.run(
            ["/bin/sh", self.script, self.venv, *tools],
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    def asked_for(self) -> list[str]:
        """The commands that were run, by their first word and their last."""
        return [f"{line.split()[0]} {line.split()[-1]}" for line in self.asked.read_text().splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_installed_tool_is_not_requested(machine: Machine) -> None:
    machine.have(rsync="", ssh="", id="echo 0", apt_get=machine.told("apt-get"))
    assert machine.run("rsync", "ssh") == []
    assert machine.asked_for() == []


def test_root_gets_what_is_missing_after_one_update(machine: Machine) -> None:
    machine.have(ssh="", id="echo 0")
    machine.have(apt_get=machine.told("apt-get", f'[ "$1" = update ] || {{ {INSTALL}; }}'))
    told = machine.run("rsync", "ssh", "chromium")
    assert told == ["Installing rsync with apt-get …", "Installing chromium with apt-get …"]
    asked = machine.asked.read_text().splitlines()
    assert [line.split()[1] for line in asked] == ["update", "install", "install"]
    assert [line.split()[-1] for line in asked[1:]] == ["rsync", "chromium"]
    assert machine.run("rsync", "ssh", "chromium") == []


def test_an_install_that_fails_is_said_and_not_tried_again(machine: Machine) -> None:
    fails = machine.told("apt-get", "echo W: old; echo E: Unable to fetch >&2; echo E: more; exit 100")
    machine.have(id="echo 0", apt_get=fails)
    told = machine.run("rsync", "sshd")
    assert told == [
        "Installing rsync with apt-get …",
        "E: Unable to fetch",
        f"{NO_RSYNC} apt-get install rsync",
        "sshd is not installed: tests over ssh are skipped. Install it: apt-get install openssh-server",
    ]
    before = machine.asked.read_text()
    assert machine.run("rsync") == told[2:3]
    assert machine.run("rsync", "sshd") == told[2:]
    assert machine.asked.read_text() == before


def test_an_ordinary_user_gets_one_line_per_tool_and_nothing_runs(machine: Machine) -> None:
    machine.have(id="echo 1000", apt_get=machine.told("apt-get"), rsync="")
    told = machine.run("rsync", "ssh", "sshd", "chromium")
    assert [line.partition(" is not installed: ")[0] for line in told] == ["ssh", "sshd", "chromium"]
    assert [line.partition("Install it: ")[2] for line in told] == [
        f"sudo apt-get install {package}" for package in ("openssh-client", "openssh-server", "chromium")
    ]
    assert machine.asked_for() == []


def test_a_library_is_looked_for_where_ldconfig_tells(machine: Machine) -> None:
    machine.have(id="echo 1000", apt_get="")
    assert machine.run("libatomic") == [], "nobody can tell"
    machine.have(ldconfig="echo '	libatomic.so.1 (libc6,x86-64) => /usr/lib/libatomic.so.1'")
    assert machine.run("libatomic") == []
    machine.have(ldconfig="echo '	libc.so.6 (libc6,x86-64) => /usr/lib/libc.so.6'")
    [told] = machine.run("libatomic")
    assert told.endswith("sudo apt-get install libatomic1")


def test_on_a_mac_brew_installs(machine: Machine) -> None:
    machine.have(id="echo 501", uname="echo Darwin")
    assert machine.run("rsync", "chromium") == [
        f"{NO_RSYNC} brew install rsync",
        f"{NO_CHROMIUM} brew install --cask google-chrome",
    ]
    machine.have(brew=machine.told("brew", INSTALL))
    assert machine.run("chromium") == ["Installing chromium with brew …"]
    assert machine.asked.read_text() == "brew install --quiet --cask google-chrome\n"


def test_without_a_package_manager_that_is_known_the_package_is_named(machine: Machine) -> None:
    machine.have(id="echo 0")
    [told] = machine.run("ssh")
    assert told.endswith("Install it: openssh-client, with this system's package manager")


@pytest.mark.parametrize("tool", system_tools.TOOLS.values(), ids=list(system_tools.TOOLS))
def test_the_package_and_the_script_have_the_same_messages(machine: Machine, tool: system_tools.Tool) -> None:
    machine.have(id="echo 1000", apt_get="")
    [told] = machine.run(tool.name)
    assert told == f"{tool}. Install it: sudo apt-get install {tool.package}"


def test_the_package_reports_what_the_path_lacks(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(machine.bin))
    machine.have(rsync="")
    assert [tool.name for tool in system_tools.missing()] == ["ssh"]
    machine.have(ssh="", apt_get="")
    assert system_tools.missing() == []
