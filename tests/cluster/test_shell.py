"""One node, two ways: each claim holds on this machine and over a real sshd.

Run alone: python -m pytest tests/cluster/test_shell.py
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jaccl_kernel.cluster.shell import LocalNode, Node, SshNode, node_for
from jaccl_kernel.errors import CommandFailed, CommandTimeout, InputError, NodeError, NodeUnreachable
from tests.sshd import Macs, is_alive, start_macs, wait_for

if TYPE_CHECKING:
    from jaccl_kernel.cluster.rsync import Progress

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


# --- what arrives, and what comes back


async def test_arguments_survive_to_the_letter(node: Node) -> None:
    done = await node.run(["printf", "%s\\0", *NASTY], deadline=10)
    assert done.stdout.split("\0") == [*NASTY, ""]
    assert done.argv == ("printf", "%s\\0", *NASTY)


@pytest.mark.parametrize("shell", ["dash", "bash", "zsh", "fish", "mksh"])
async def test_arguments_survive_each_login_shell(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if not program:
        pytest.skip(f"{shell} is not installed")
    with start_macs(tmp_path, ["mac"], shell=program) as one:
        node = SshNode("mac", options=one.options)
        done = await node.run(["printf", "%s\\0", *NASTY], deadline=10, env={"WORDS": "it's \\ ours"})
        assert done.stdout.split("\0") == [*NASTY, ""]
        with pytest.raises(CommandTimeout):
            await node.run(["/bin/sh", "-c", STAY], deadline=0.5)
        all_gone(one["mac"].home / "pids")


async def test_commands_start_in_the_nodes_home_with_its_path(node: Node, home: Path) -> None:
    done = await node.script('pwd -P; echo "$HOME"; echo "${PATH%%:*}"', deadline=10)
    assert done.stdout.splitlines() == [str(home.resolve()), str(home), f"{home}/bin"]


async def test_input_arrives_whole(node: Node) -> None:
    data = bytes(range(256)) * 2000
    done = await node.run(["wc", "-c"], deadline=10, input=data)
    assert int(done.stdout) == len(data)


async def test_without_input_stdin_is_empty(node: Node) -> None:
    assert (await node.run(["cat"], deadline=10)).stdout == ""


async def test_variables_are_added(node: Node) -> None:
    env = {"JACCL_A": 'it\'s a \\ "b"\n', "JACCL_B": ""}
    done = await node.script('printf "%s|%s|" "$JACCL_A" "$JACCL_B"', deadline=10, env=env)
    assert done.stdout == 'it\'s a \\ "b"\n||'


async def test_a_script_gets_its_arguments(node: Node) -> None:
    done = await node.script('for word; do echo "<$word>"; done\n# done\n', "a b", "-x", deadline=10)
    assert done.stdout == "<a b>\n<-x>\n"


async def test_output_is_bounded_and_its_end_kept(node: Node) -> None:
    script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; echo oh >&2"
    done = await node.script(script, deadline=20, max_output=30)
    assert done.truncated
    assert done.stdout.endswith("line 4998\nline 4999\n")
    assert len(done.stdout) == 30
    assert done.stderr == "oh\n"


async def test_output_that_is_not_utf8_is_replaced_and_cr_kept(node: Node) -> None:
    done = await node.run(["printf", "caf\\303\\251 \\377\\r\\n"], deadline=10)
    assert done.stdout == "café \ufffd\r\n"
    assert not done.truncated


async def test_lines_are_told_as_they_come(node: Node, home: Path) -> None:
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        (home / "go").touch()  # the command waits for this: it proves that the line was not kept back

    script = "printf 'one\\r\\n'; while [ ! -e go ]; do sleep 0.01; done; echo two >&2; printf three"
    await node.script(script, deadline=10, on_line=on_line)
    assert sorted(lines) == ["one", "three", "two"]


async def test_what_shell_start_files_print_is_not_output(ssh_node: SshNode, home: Path) -> None:
    (home / ".shellrc").write_text("echo welcome; echo you have mail >&2\n")
    done = await ssh_node.script("echo out; echo err >&2", deadline=10)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


async def test_many_commands_run_side_by_side(node: Node) -> None:
    done = await asyncio.gather(*(node.run(["echo", str(n)], deadline=30) for n in range(6)))
    assert [each.stdout for each in done] == [f"{n}\n" for n in range(6)]


async def test_an_event_loop_off_the_main_thread_will_do(node: Node) -> None:
    done = await asyncio.to_thread(lambda: asyncio.run(node.run(["echo", "out"], deadline=10)))
    assert done.stdout == "out\n"


# --- commands that fail


async def test_a_failure_names_node_command_status_and_last_words(node: Node) -> None:
    with pytest.raises(CommandFailed) as caught:
        await node.run(["/bin/sh", "-c", "echo fine; echo 'no such port' >&2; exit 3"], deadline=10)
    assert caught.value.where == "mac1"
    assert (caught.value.returncode, caught.value.output) == (3, "no such port")
    assert "exit 3" in str(caught.value)
    assert "ended with status 3: no such port" in str(caught.value)


async def test_a_failure_can_be_a_fact(node: Node) -> None:
    done = await node.script("echo x >&2; exit 4", deadline=10, check=False)
    assert (done.returncode, done.stderr) == (4, "x\n")


async def test_a_commands_own_255_is_no_failure_of_ssh(node: Node) -> None:
    done = await node.script("echo x >&2; exit 255", deadline=10, check=False)
    assert (done.returncode, done.stderr) == (255, "x\n")
    with pytest.raises(CommandFailed, match="ended with status 255"):
        await node.run(["/bin/sh", "-c", "exit 255"], deadline=10)


async def test_a_missing_program_is_named(node: Node) -> None:
    with pytest.raises(CommandFailed, match="there is no `ibv_devinfo`") as caught:
        await node.run(["ibv_devinfo", "-v"], deadline=10)
    assert "absolute path" in caught.value.fix


async def test_a_program_that_may_not_be_executed_is_named(node: Node, home: Path) -> None:
    (home / "script").write_text("echo")
    with pytest.raises(CommandFailed, match="cannot be executed"):
        await node.run(["./script"], deadline=10)


async def test_the_signal_that_ended_a_program_is_named(node: Node) -> None:
    with pytest.raises(CommandFailed, match="was ended by SIGKILL"):
        await node.run(["/bin/sh", "-c", "kill -KILL $$"], deadline=10)


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
async def test_what_no_system_can_run_is_refused(argv: list[str], env: dict[str, str]) -> None:
    with pytest.raises(InputError):
        await LocalNode("mac1").run(argv, deadline=10, env=env)


async def test_a_home_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="nowhere"):
        await LocalNode("mac1", tmp_path / "nowhere").run(["true"], deadline=10)


# --- nothing is left behind


async def test_a_deadline_ends_the_far_processes(node: Node, home: Path) -> None:
    with pytest.raises(CommandTimeout) as caught:
        await node.run(["/bin/sh", "-c", f"echo ready; {STAY}"], deadline=0.5)
    assert "did not end within 0.5 s" in str(caught.value)
    assert "last words: ready" in str(caught.value)
    all_gone(home / "pids")


async def test_a_program_that_ignores_sigterm_ends_too(node: Node, home: Path) -> None:
    with pytest.raises(CommandTimeout):
        await node.script(f"trap '' TERM; {STAY}; wait", deadline=0.5)
    all_gone(home / "pids")


async def test_a_deadline_holds_while_input_is_fed(node: Node) -> None:
    with pytest.raises(CommandTimeout):
        await node.run(["sleep", "1000"], deadline=0.5, input=b"x" * 1_000_000)


async def test_a_cancel_ends_the_far_processes(node: Node, home: Path) -> None:
    task = asyncio.create_task(node.script(STAY, deadline=60))
    await there(home / "pids")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    all_gone(home / "pids")


async def test_a_listener_that_raises_ends_the_far_processes(node: Node, home: Path) -> None:
    def on_line(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="ready"):
        await node.script(f"echo ready; {STAY}", deadline=60, on_line=on_line)
    if (home / "pids").exists():  # it may have been ended before it came that far
        all_gone(home / "pids")


async def test_what_a_command_leaves_running_ends_with_it(node: Node, home: Path) -> None:
    done = await node.script("sleep 1000 & echo $$ $! >pids; echo out", deadline=10)
    assert done.stdout == "out\n"
    all_gone(home / "pids")


@pytest.mark.parametrize("way", ["local", "ssh"])
def test_sigkill_of_our_process_ends_the_far_processes(way: str, macs: Macs, home: Path) -> None:
    here = f"LocalNode('mac1', Path({str(home)!r}), env={{'JACCL_TEST_SSHD': {macs.mark!r}}})"
    node = here if way == "local" else f"SshNode('mac1', options={macs.options!r})"
    program = (
        "import asyncio\nfrom pathlib import Path\n"
        "from jaccl_kernel.cluster.shell import LocalNode, SshNode\n"
        f"asyncio.run({node}.script({STAY!r}, deadline=600))"
    )
    ours = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        wait_for((home / "pids").exists, "the command does not start")
        ours.send_signal(signal.SIGKILL)
    finally:
        ours.kill()
        ours.wait(10)
    all_gone(home / "pids")


async def test_a_connection_that_breaks_is_told_from_a_failure(tmp_path: Path) -> None:
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
async def test_a_folder_arrives_there_and_comes_back(
    node: Node, home: Path, model: Path, tmp_path: Path, dest: str
) -> None:
    await node.copy_to(model, dest, deadline=30)
    arrived = contents(home / dest.removeprefix("~").lstrip("/"))
    assert arrived == contents(model)
    await node.copy_from(dest, tmp_path / "back again", deadline=30)
    assert contents(tmp_path / "back again") == contents(model)


async def test_an_absolute_folder_is_taken_as_it_is(node: Node, model: Path, tmp_path: Path) -> None:
    await node.copy_to(model, str(tmp_path / "any where"), deadline=30)
    assert contents(tmp_path / "any where") == contents(model)


async def test_one_file_goes_into_the_folder(node: Node, home: Path, model: Path) -> None:
    await node.copy_to(model / "sub" / "weights 1.bin", "~/in box", deadline=30)
    assert list(contents(home / "in box")) == ["weights 1.bin"]


async def test_a_copy_tells_how_far_it_is(node: Node, model: Path) -> None:
    told: list[Progress] = []
    await node.copy_to(model, "~/m", deadline=30, on_progress=told.append)
    sizes = [len(content) for content in contents(model).values()]
    assert told[-1].sent == sum(sizes)
    assert told[-1].files == len(sizes)
    assert [each.sent for each in told] == sorted(each.sent for each in told)


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


async def test_a_copy_that_takes_too_long_says_so(node: Node, model: Path) -> None:
    (model / "big").write_bytes(os.urandom(4_000_000))
    with pytest.raises(CommandTimeout, match="did not end within") as caught:
        await node.copy_to(model, "~/m", deadline=0.5, options=SLOWLY)
    assert caught.value.where == "mac1"


async def test_a_folder_that_cannot_be_made_is_named(node: Node, home: Path, model: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises((CommandFailed, InputError), match="file"):
        await node.copy_to(model, "~/file/m", deadline=30)


async def test_a_far_folder_that_is_missing_is_named(node: Node, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="a folder is missing") as caught:
        await node.copy_from("~/no such", tmp_path / "back", deadline=30)
    assert "no such" in str(caught.value)


@pytest.mark.parametrize("dest", ["", "~bob/models"])
async def test_a_folder_that_is_none_is_refused(node: Node, model: Path, dest: str) -> None:
    with pytest.raises(InputError, match="no folder"):
        await node.copy_to(model, dest, deadline=30)


async def test_a_source_that_is_missing_is_named(node: Node, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no .*gone"):
        await node.copy_to(tmp_path / "gone", "~/m", deadline=30)


async def test_without_rsync_here_the_copy_says_so(
    node: Node, model: Path, macs: Macs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(macs.bin))
    if isinstance(node, LocalNode):
        node = LocalNode("mac1", node.home)
    with pytest.raises(NodeError, match="no rsync on this machine"):
        await node.copy_to(model, "~/m", deadline=30)


async def test_without_rsync_there_the_copy_says_so(ssh_node: SshNode, home: Path, model: Path) -> None:
    (home / ".shellrc").write_text('PATH="$HOME/bin"\n')
    for program in ("mkdir", "cat"):
        (home / "bin" / program).symlink_to(f"/bin/{program}")
    with pytest.raises(CommandFailed, match="rsync is not there"):
        await ssh_node.copy_to(model, "~/m", deadline=30)


async def test_a_full_disk_there_is_no_broken_connection(ssh_node: SshNode, home: Path, model: Path) -> None:
    # what rsync's receiver says on a full disk; the sender then adds its own broken pipe
    full = 'rsync: [receiver] write failed on "/m/big": No space left on device (28)'
    (home / "bin" / "rsync").write_text(f"#!/bin/sh\necho '{full}' >&2\nexit 11\n")
    (home / "bin" / "rsync").chmod(0o755)
    with pytest.raises(CommandFailed, match="the disk is full") as caught:
        await ssh_node.copy_to(model, "~/m", deadline=30)
    assert full in caught.value.what


async def test_a_start_file_that_prints_is_named_as_what_breaks_rsync(
    ssh_node: SshNode, home: Path, model: Path
) -> None:
    (home / ".shellrc").write_text("echo welcome to this Mac\n")
    with pytest.raises(CommandFailed, match="a shell start file there prints text"):
        await ssh_node.copy_to(model, "~/m", deadline=30)


async def test_a_copy_to_a_mac_that_is_off_is_unreachable(tmp_path: Path, model: Path) -> None:
    with start_macs(tmp_path / "macs", ["mac"]) as one:
        one.stop("mac")
        with pytest.raises(NodeUnreachable, match="nothing listens on port"):
            await SshNode("mac", options=one.options).copy_to(model, "~/m", deadline=30)


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
