"""One node, two ways: each claim holds on this machine and over a real sshd."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jaccl_kernel.core.errors import (
    CommandFailed,
    CommandTimeout,
    InputError,
    NodeError,
    NodeUnreachable,
)
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.ssh_node import SshNode, node_for
from tests.needs import find
from tests.sshd import Macs, is_alive, start_macs, wait_for

if TYPE_CHECKING:
    from jaccl_kernel.nodes.rsync import Progress

pytestmark = pytest.mark.sshd

NASTY = [
    *(
        "two words",
        "it's",
        '"quoted"',
        "back\\slash",
        "\\'",
        "trailing\\",
        "new\nline",
        "\ttab",
        "",
        "-n",
        "--",
    ),
    *(
        "$HOME",
        "`id`",
        "$(id)",
        "!x",
        "*",
        "~",
        "#no",
        ";",
        "&",
        "|",
        "<",
        "(",
        "=ls",
        "{a,b}",
        "[a]",
        "%1",
        "^",
    ),
    *("日本", "é", "😀", "a=b"),
]

# says its own number and that of a child of its own, then stays
STAY = "sleep 1000 & echo $$ $! >pids.new; mv pids.new pids; wait"


@pytest.fixture(scope="module")
def macs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Macs]:
    with start_macs(tmp_path_factory.mktemp("macs")) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(macs: Macs) -> Iterator[None]:
    yield
    wait_for(lambda: not macs.running(), f"processes are left on the Macs: {macs.running()}")


@pytest.fixture
def home(macs: Macs) -> Iterator[Path]:
    """The home folder of mac1, empty, for the local node and for the one behind ssh."""
    home = macs["mac1"].home
    yield home

    def removed() -> bool:  # a process that has just been ended may still leave a file
        shutil.rmtree(home, ignore_errors=True)
        return not home.exists()

    wait_for(removed, f"{home} is not empty")
    (home / "bin").mkdir(parents=True)


@pytest.fixture(params=["local", "ssh"])
def node(request: pytest.FixtureRequest, macs: Macs, home: Path) -> Node:
    if request.param == "ssh":
        return SshNode("mac1", options=macs.options)
    path = f"{home}/bin:{os.environ['PATH']}"
    return LocalNode("mac1", home, path, {"JACCL_TEST_SSHD": macs.mark})


@pytest.fixture
def ssh_node(macs: Macs, home: Path) -> SshNode:
    return SshNode("mac1", options=macs.options)


async def there(path: Path) -> None:
    await asyncio.to_thread(wait_for, path.exists, f"no {path.name} appears")


def all_gone(pids: Path) -> None:
    numbers = [int(word) for word in pids.read_text().split()]
    assert len(numbers) == 2
    wait_for(lambda: not any(map(is_alive, numbers)), f"the processes {numbers} still run")


async def overdue(
    run: Callable[[float], Awaitable[object]], begun: Callable[[], bool] = lambda: True
) -> CommandTimeout:
    """Run something that never ends with a deadline that comes after it has begun, on a slow machine too."""
    for deadline in (0.5, 2.0, 8.0, 32.0):
        with pytest.raises((CommandTimeout, NodeUnreachable)) as caught:
            await run(deadline)
        if isinstance(caught.value, CommandTimeout) and begun():
            return caught.value
    raise AssertionError("it does not begin")


# --- what arrives, and what comes back


async def test_arguments_are_passed_unchanged(node: Node) -> None:
    done = await node.run(["printf", "%s\\0", *NASTY], deadline=60)
    assert done.stdout.split("\0") == [*NASTY, ""]
    assert done.argv == ("printf", "%s\\0", *NASTY)


SHELLS = [
    pytest.param(name, marks=pytest.mark.needs(name)) for name in ("dash", "bash", "zsh", "fish", "mksh")
]


@pytest.mark.parametrize("shell", SHELLS)
async def test_arguments_survive_each_login_shell(shell: str, tmp_path: Path) -> None:
    with start_macs(tmp_path, ["mac"], shell=str(find(shell))) as one:
        node = SshNode("mac", options=one.options)
        done = await node.run(["printf", "%s\\0", *NASTY], deadline=60, env={"WORDS": "it's \\ ours"})
        assert done.stdout.split("\0") == [*NASTY, ""]
        pids = one["mac"].home / "pids"
        await overdue(lambda deadline: node.run(["/bin/sh", "-c", STAY], deadline=deadline), pids.exists)
        all_gone(pids)


async def test_commands_start_in_the_nodes_home_with_its_path(node: Node, home: Path) -> None:
    done = await node.script('pwd -P; echo "$HOME"; echo "${PATH%%:*}"', deadline=60)
    assert done.stdout.splitlines() == [str(home.resolve()), str(home), f"{home}/bin"]


async def test_input_arrives_complete(node: Node) -> None:
    data = bytes(range(256)) * 2000
    done = await node.run(["wc", "-c"], deadline=60, input=data)
    assert int(done.stdout) == len(data)


async def test_without_input_stdin_is_empty(node: Node) -> None:
    assert (await node.run(["cat"], deadline=60)).stdout == ""


async def test_variables_are_added(node: Node) -> None:
    env = {"JACCL_A": 'it\'s a \\ "b"\n', "JACCL_B": ""}
    done = await node.script('printf "%s|%s|" "$JACCL_A" "$JACCL_B"', deadline=60, env=env)
    assert done.stdout == 'it\'s a \\ "b"\n||'


async def test_a_script_gets_its_arguments(node: Node) -> None:
    done = await node.script('for word; do echo "<$word>"; done\n# done\n', "a b", "-x", deadline=60)
    assert done.stdout == "<a b>\n<-x>\n"


async def test_output_is_bounded_and_its_end_kept(node: Node) -> None:
    script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; echo oh >&2"
    done = await node.script(script, deadline=60, max_output=30)
    assert done.truncated
    assert done.stdout.endswith("line 4998\nline 4999\n")
    assert len(done.stdout) == 30
    assert done.stderr == "oh\n"


async def test_output_that_is_not_utf8_is_replaced_and_cr_kept(node: Node) -> None:
    done = await node.run(["printf", "caf\\303\\251 \\377\\r\\n"], deadline=60)
    assert done.stdout == "café \ufffd\r\n"
    assert not done.truncated


async def test_lines_are_reported_as_they_arrive(node: Node, home: Path) -> None:
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        (home / "go").touch()  # the command waits for this: it proves that the line was not kept back

    script = "printf 'one\\r\\n'; while [ ! -e go ]; do sleep 0.01; done; echo two >&2; printf three"
    await node.script(script, deadline=60, on_line=on_line)
    assert sorted(lines) == ["one", "three", "two"]


async def test_the_output_of_shell_startup_files_is_not_included(ssh_node: SshNode, home: Path) -> None:
    (home / ".shellrc").write_text("echo welcome; echo you have mail >&2\n")
    done = await ssh_node.script("echo out; echo err >&2", deadline=60)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


async def test_many_commands_run_side_by_side(node: Node) -> None:
    done = await asyncio.gather(*(node.run(["echo", str(n)], deadline=60) for n in range(6)))
    assert [each.stdout for each in done] == [f"{n}\n" for n in range(6)]


async def test_an_event_loop_off_the_main_thread_will_do(node: Node) -> None:
    done = await asyncio.to_thread(lambda: asyncio.run(node.run(["echo", "out"], deadline=60)))
    assert done.stdout == "out\n"


# --- commands that fail


async def test_a_failure_names_node_command_status_and_last_output(node: Node) -> None:
    with pytest.raises(CommandFailed) as caught:
        await node.run(["/bin/sh", "-c", "echo fine; echo 'no such port' >&2; exit 3"], deadline=60)
    assert caught.value.where == "mac1"
    assert (caught.value.returncode, caught.value.output) == (3, "no such port")
    assert "exit 3" in str(caught.value)
    assert "failed with status 3: no such port" in str(caught.value)


async def test_a_failure_can_be_a_fact(node: Node) -> None:
    done = await node.script("echo x >&2; exit 4", deadline=60, check=False)
    assert (done.returncode, done.stderr) == (4, "x\n")


async def test_a_commands_own_255_is_no_failure_of_ssh(node: Node) -> None:
    done = await node.script("echo x >&2; exit 255", deadline=60, check=False)
    assert (done.returncode, done.stderr) == (255, "x\n")
    with pytest.raises(CommandFailed, match="failed with status 255"):
        await node.run(["/bin/sh", "-c", "exit 255"], deadline=60)


async def test_a_missing_program_is_named(node: Node) -> None:
    with pytest.raises(CommandFailed, match="`ibv_devinfo` was not found") as caught:
        await node.run(["ibv_devinfo", "-v"], deadline=60)
    assert "absolute path" in caught.value.fix


async def test_a_program_that_may_not_be_executed_is_named(node: Node, home: Path) -> None:
    (home / "script").write_text("echo")
    with pytest.raises(CommandFailed, match="is not executable"):
        await node.run(["./script"], deadline=60)


async def test_the_signal_that_ended_a_program_is_named(node: Node) -> None:
    with pytest.raises(CommandFailed, match="was killed by SIGKILL"):
        await node.run(["/bin/sh", "-c", "kill -KILL $$"], deadline=60)


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        ([], {}),
        ([""], {}),
        (["-x"], {}),
        (["echo", "a\0b"], {}),
        (["echo"], {"A B": ""}),
        (["echo"], {"A": "\0"}),
    ],
)
async def test_invalid_arguments_are_refused(argv: list[str], env: dict[str, str]) -> None:
    with pytest.raises(InputError):
        await LocalNode("mac1").run(argv, deadline=60, env=env)


async def test_a_missing_home_is_named(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="nowhere"):
        await LocalNode("mac1", tmp_path / "nowhere").run(["true"], deadline=60)


# --- nothing is left behind


async def test_a_deadline_ends_the_remote_processes(node: Node, home: Path) -> None:
    command = ["/bin/sh", "-c", f"echo ready; {STAY}"]
    error = await overdue(lambda deadline: node.run(command, deadline=deadline), (home / "pids").exists)
    assert re.search(r"did not end within \d", str(error))
    assert "last output: ready" in str(error)
    all_gone(home / "pids")


async def test_a_program_that_ignores_sigterm_ends_too(node: Node, home: Path) -> None:
    script = f"trap '' TERM; {STAY}; wait"
    await overdue(lambda deadline: node.script(script, deadline=deadline), (home / "pids").exists)
    all_gone(home / "pids")


async def test_a_deadline_holds_while_input_is_fed(node: Node) -> None:
    await overdue(lambda deadline: node.run(["sleep", "1000"], deadline=deadline, input=b"x" * 1_000_000))


async def test_a_cancel_ends_the_remote_processes(node: Node, home: Path) -> None:
    task = asyncio.create_task(node.script(STAY, deadline=60))
    await there(home / "pids")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    all_gone(home / "pids")


async def test_a_listener_that_raises_ends_the_remote_processes(node: Node, home: Path) -> None:
    def on_line(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="ready"):
        await node.script(f"echo ready; {STAY}", deadline=60, on_line=on_line)
    if (home / "pids").exists():  # it may have been ended before it came that far
        all_gone(home / "pids")


async def test_background_children_of_a_command_end_with_it(node: Node, home: Path) -> None:
    done = await node.script("sleep 1000 & echo $$ $! >pids; echo out", deadline=60)
    assert done.stdout == "out\n"
    all_gone(home / "pids")


@pytest.mark.parametrize("way", ["local", "ssh"])
def test_sigkill_of_our_process_ends_the_remote_processes(way: str, macs: Macs, home: Path) -> None:
    here = f"LocalNode('mac1', Path({str(home)!r}), env={{'JACCL_TEST_SSHD': {macs.mark!r}}})"
    node = here if way == "local" else f"SshNode('mac1', options={macs.options!r})"
    program = (
        "import asyncio\nfrom pathlib import Path\n"
        "from jaccl_kernel.nodes.local_node import LocalNode\n"
        "from jaccl_kernel.nodes.ssh_node import SshNode\n"
        f"asyncio.run({node}.script({STAY!r}, deadline=600))"
    )
    ours = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        wait_for((home / "pids").exists, "the command does not start")
        ours.send_signal(signal.SIGKILL)
    finally:
        ours.kill()
        ours.wait(60)
    all_gone(home / "pids")


async def test_a_broken_connection_is_distinguished_from_a_failure(tmp_path: Path) -> None:
    with start_macs(tmp_path, ["mac"]) as one:
        node = SshNode("mac", name="studio", options=one.options)
        task = asyncio.create_task(node.script(STAY, deadline=60))
        await there(one["mac"].home / "pids")
        one.stop("mac")
        with pytest.raises(NodeUnreachable, match="the connection broke while") as caught:
            await task
        assert caught.value.where == "studio (ssh mac)"


# --- copies


SLOWLY = ["--bwlimit=100"]  # KB/s

RSYNC = pytest.mark.needs("rsync")


@pytest.fixture(
    params=[pytest.param("local", marks=RSYNC), "local, no rsync", pytest.param("ssh", marks=RSYNC)]
)
def copier(request: pytest.FixtureRequest, macs: Macs, home: Path, path_without_rsync: str) -> Node:
    """A node to copy to: `local, no rsync` copies by our own means."""
    if request.param == "ssh":
        return SshNode("mac1", options=macs.options)
    path = path_without_rsync if request.param == "local, no rsync" else os.environ["PATH"]
    return LocalNode("mac1", home, f"{home}/bin:{path}", {"JACCL_TEST_SSHD": macs.mark})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a model: it's \\ 4-bit"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights 1.bin").write_bytes(bytes(range(256)) * 4000)
    return folder


async def under_way(folder: Path) -> None:
    """Wait until the file `big` is being written there, under rsync's own name for it."""
    await asyncio.to_thread(wait_for, lambda: any(folder.glob(".big.*")), f"no copy begins in {folder}")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FOLDERS = ["~/models/Qwen's 4 bit\\x $HOME 日本", "~", "-n/- x"]


@pytest.mark.parametrize("dest", FOLDERS)
async def test_a_folder_is_copied_to_the_node_and_back(
    copier: Node, home: Path, model: Path, tmp_path: Path, dest: str
) -> None:
    await copier.copy_to(model, dest, deadline=60)
    arrived = contents(home / dest.removeprefix("~").lstrip("/"))
    assert arrived == contents(model)
    await copier.copy_from(dest, tmp_path / "back again", deadline=60)
    assert contents(tmp_path / "back again") == contents(model)


async def test_an_absolute_folder_is_taken_as_it_is(copier: Node, model: Path, tmp_path: Path) -> None:
    await copier.copy_to(model, str(tmp_path / "any where"), deadline=60)
    assert contents(tmp_path / "any where") == contents(model)


async def test_one_file_goes_into_the_folder(copier: Node, home: Path, model: Path) -> None:
    await copier.copy_to(model / "sub" / "weights 1.bin", "~/in box", deadline=60)
    assert list(contents(home / "in box")) == ["weights 1.bin"]


async def test_a_copy_reports_its_progress(copier: Node, model: Path) -> None:
    told: list[Progress] = []
    await copier.copy_to(model, "~/m", deadline=60, on_progress=told.append)
    sizes = [len(content) for content in contents(model).values()]
    assert told[-1].sent == sum(sizes)
    assert told[-1].files == len(sizes)
    assert [each.sent for each in told] == sorted(each.sent for each in told)


@RSYNC
async def test_a_cancelled_copy_leaves_no_process(node: Node, home: Path, model: Path, macs: Macs) -> None:
    (model / "big").write_bytes(os.urandom(4_000_000))
    task = asyncio.create_task(node.copy_to(model, "~/m", deadline=60, options=SLOWLY))
    await under_way(home / "m")
    assert macs.running()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_for(lambda: not macs.running(), "rsync still runs")
    assert not (home / "m" / "big").exists()


@RSYNC
async def test_a_copy_over_its_deadline_is_reported(node: Node, model: Path) -> None:
    (model / "big").write_bytes(os.urandom(4_000_000))
    error = await overdue(lambda deadline: node.copy_to(model, "~/m", deadline=deadline, options=SLOWLY))
    assert "did not end within" in error.what
    assert error.where == "mac1"


async def test_a_folder_that_cannot_be_made_is_named(copier: Node, home: Path, model: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises((CommandFailed, InputError), match="file"):
        await copier.copy_to(model, "~/file/m", deadline=60)


async def test_a_missing_remote_folder_is_named(copier: Node, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="a folder is missing") as caught:
        await copier.copy_from("~/no such", tmp_path / "back", deadline=60)
    assert "no such" in str(caught.value)


@pytest.mark.parametrize("dest", ["", "~bob/models"])
async def test_an_invalid_folder_is_refused(copier: Node, model: Path, dest: str) -> None:
    with pytest.raises(InputError, match="invalid folder path"):
        await copier.copy_to(model, dest, deadline=60)


async def test_a_source_that_is_missing_is_named(copier: Node, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone does not exist"):
        await copier.copy_to(tmp_path / "gone", "~/m", deadline=60)


async def test_a_missing_local_rsync_is_reported(
    ssh_node: SshNode, model: Path, monkeypatch: pytest.MonkeyPatch, path_without_rsync: str
) -> None:
    monkeypatch.setenv("PATH", path_without_rsync)
    with pytest.raises(NodeError, match="rsync is not installed on this machine") as caught:
        await ssh_node.copy_to(model, "~/m", deadline=60)
    assert "install rsync" in caught.value.fix


@RSYNC
async def test_a_missing_remote_rsync_is_reported(ssh_node: SshNode, home: Path, model: Path) -> None:
    (home / ".shellrc").write_text('PATH="$HOME/bin"\n')
    for program in ("mkdir", "cat"):
        (home / "bin" / program).symlink_to(f"/bin/{program}")
    with pytest.raises(CommandFailed, match="rsync is not installed on the node"):
        await ssh_node.copy_to(model, "~/m", deadline=60)


@RSYNC
async def test_a_full_disk_there_is_no_broken_connection(ssh_node: SshNode, home: Path, model: Path) -> None:
    # what rsync's receiver says on a full disk; the sender then adds its own broken pipe
    full = 'rsync: [receiver] write failed on "/m/big": No space left on device (28)'
    (home / "bin" / "rsync").write_text(f"#!/bin/sh\necho '{full}' >&2\nexit 11\n")
    (home / "bin" / "rsync").chmod(0o755)
    with pytest.raises(CommandFailed, match="the disk is full") as caught:
        await ssh_node.copy_to(model, "~/m", deadline=60)
    assert full in caught.value.what


@RSYNC
async def test_a_start_file_that_prints_is_named_as_what_breaks_rsync(
    ssh_node: SshNode, home: Path, model: Path
) -> None:
    (home / ".shellrc").write_text("echo welcome to this Mac\n")
    with pytest.raises(CommandFailed, match="a remote shell start-up file prints text"):
        await ssh_node.copy_to(model, "~/m", deadline=60)


@RSYNC
async def test_a_copy_to_a_mac_that_is_off_is_unreachable(tmp_path: Path, model: Path) -> None:
    with start_macs(tmp_path / "macs", ["mac"]) as one:
        one.stop("mac")
        with pytest.raises(NodeUnreachable, match="no ssh server listens on port"):
            await SshNode("mac", options=one.options).copy_to(model, "~/m", deadline=60)


@RSYNC
async def test_a_copy_whose_connection_breaks_says_so(tmp_path: Path, model: Path) -> None:
    (model / "big").write_bytes(os.urandom(4_000_000))
    with start_macs(tmp_path / "macs", ["mac"]) as one:
        node = SshNode("mac", options=one.options)
        task = asyncio.create_task(node.copy_to(model, "~/m", deadline=60, options=SLOWLY))
        await under_way(one["mac"].home / "m")
        one.stop("mac")
        with pytest.raises(NodeUnreachable, match=r"the connection broke .* closed by remote host"):
            await task


# --- which node


def test_only_the_literal_127_0_0_1_is_this_machine() -> None:
    assert isinstance(node_for("127.0.0.1"), LocalNode)
    assert isinstance(node_for("localhost"), SshNode)
    assert node_for("127.0.0.1", "sim2").name == "sim2"
    assert node_for("mac1.local").name == "mac1.local"
