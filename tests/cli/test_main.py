"""`jaccl` from a terminal: real processes, exit statuses, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.cli.main import main
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.report.parity import Parity
from jaccl_kernel.report.record import BenchReport
from tests.models.material import tiny_llama

pytestmark = pytest.mark.usefixtures("nothing_left")
JACCL = str(Path(sys.executable).with_name("jaccl"))


def jaccl(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [JACCL, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False, **more
    )


def test_importing_the_package_or_the_command_line_brings_no_mlx() -> None:
    script = (
        "import sys, jaccl_kernel, jaccl_kernel.cli, jaccl_kernel.steps.bench; print('mlx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "command", [[], ["bench"], ["hostfile", "check"], ["hostfile", "new"], ["rehearse"], ["model"]]
)
def test_every_command_has_help(command: list[str]) -> None:
    done = jaccl(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {' '.join(['jaccl', *command])}")


def test_only_the_lab_takes_arguments_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[str]] = []

    def open_lab(root: Path, more: list[str]) -> int:
        assert (root / "notebooks" / "00_start.ipynb").exists()
        handed.append(more)
        return 0

    monkeypatch.setattr("jaccl_kernel.notebook.lab.open_lab", open_lab)
    with pytest.raises(SystemExit) as ended:
        main(["lab", "--no-browser", "--port", "9999"])
    assert (ended.value.code, handed) == (0, [["--no-browser", "--port", "9999"]])
    wrong = jaccl("model", "demo", "--nonsense")
    assert (wrong.returncode, "Unknown option: --nonsense" in wrong.stderr) == (2, True)


def test_a_model_that_mlx_lm_cannot_load_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = tiny_llama()
    model.config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    model.tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = ("F32", (1, 1))
    told = jaccl("model", model.save(tmp_path / "m"))
    assert told.returncode == 1
    assert (
        "cannot unpack this fp8 checkpoint: the model has no model.layers.0.mlp.up_proj.weight" in told.stdout
    )
    assert "mlx_lm.convert" in told.stdout
    assert "yes" not in told.stdout


def test_a_template_is_written_once_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "four.json"
    assert jaccl("hostfile", "new", "--hosts", "a,b,c,d", "-o", path).returncode == 0
    again = jaccl("hostfile", "new", "--hosts", "a,b", "-o", path)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    assert len(json.loads(path.read_text())["hosts"]) == 4
    checked = jaccl("hostfile", "check", path, "--json")
    assert checked.returncode == 1
    assert json.loads(checked.stdout)["ok"] is False
    devices = tmp_path / "hosts_7f_0.json"
    devices.write_text('[[null, "rdma_en4"], ["rdma_en5", null]]')
    assert "--devices" in jaccl("hostfile", "check", devices).stderr
    made = jaccl("hostfile", "new", "--hosts", "a,b", "--devices", devices)
    rows = [host["rdma"] for host in json.loads(made.stdout)["hosts"]]
    assert rows == [[None, "rdma_en4"], ["rdma_en5", None]]


def test_an_unreadable_hostfile_exits_2_with_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "h.json").write_text('{"hosts": [\n  {"ssh": "a",}\n]}')
    done = jaccl("hostfile", "check", tmp_path / "h.json")
    assert done.returncode == 2
    assert "line 2" in done.stderr
    told = jaccl("hostfile", "check", tmp_path / "none.json", "--json")
    assert told.returncode == 2
    found = json.loads(told.stdout)
    assert (found["ok"], found["verdict"], found["problems"]) == (False, None, [])
    assert found["error"]["where"] == found["hostfile"] == str(tmp_path / "none.json")
    assert found["error"]["what"].startswith("cannot read the file")


def test_a_rehearsal_is_set_up_and_says_so(tmp_path: Path) -> None:
    done = jaccl("rehearse", "--macs", 3, "-o", tmp_path / "r.json")
    assert done.returncode == 0
    assert "REHEARSAL" in done.stdout
    assert "proves nothing about RDMA" in done.stdout
    assert len(json.loads((tmp_path / "r.json").read_text())["hosts"]) == 3
    assert (Path(os.environ["JACCL_CACHE"]) / "rehearsal" / "mac3" / "models").is_dir()
    assert jaccl("hostfile", "check", tmp_path / "r.json").returncode == 0
    assert jaccl("rehearse", "--macs", 9, "-o", tmp_path / "r.json").returncode == 2


def test_bench_json_is_the_record_alone_on_stdout(tmp_path: Path, tiny_model: Path) -> None:
    jaccl("rehearse", "-o", tmp_path / "r.json")
    done = jaccl(
        *("bench", tmp_path / "r.json", "--model", tiny_model, "--ranks", "1,2", "--max-tokens", 6),
        *("--repeats", 1, "--prompt", "Grüße, 世界 'quoted' $HOME", "--env", "A=b c", "--json"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["schema"] == 1
    assert [point["ranks"] for point in record["points"]] == [1, 2]
    assert record["provenance"]["environment"]["A"] == "b c"
    assert "REHEARSAL" in done.stderr


def test_bench_tells_people_a_table_parity_and_the_record(tmp_path: Path, tiny_model: Path) -> None:
    jaccl("rehearse", "-o", tmp_path / "r.json")
    done = jaccl("bench", tmp_path / "r.json", "--model", tiny_model, "--ranks", "1", "--max-tokens", 4)
    assert done.returncode == 0, done.stderr
    assert "decode tok/s" in done.stdout
    assert "Parity: not tested" in done.stdout
    assert "mlx.launch" in done.stderr


@pytest.mark.parametrize("wrong", ["parity", "a rank"])
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_bench_exits_1_where_parity_is_different_or_a_later_point_failed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: str,
    more: list[str],
) -> None:
    """It still tells all that was measured, and where not all was, why."""
    spread = {"median": 1.0, "min": 1.0, "max": 1.0}
    point = {
        "ranks": 1,
        **dict.fromkeys(("prompt_tps", "generation_tps", "ttft_s"), spread),
        "itl_s": {"p50": 1.0, "p95": 1.0},
        "load_s": 1.0,
        "peak_memory_bytes": [1],
        "speedup": None,
        "efficiency": None,
    }
    error = {"type": "RankDied", "what": "rank 1 died", "where": "mac2", "fix": "Wake it."}
    verdict = Parity("different" if wrong == "parity" else "not-tested", 3, 1.0, 0.5, 1)
    failed = [{"ranks": 2, "error": error}] if wrong == "a rank" else []
    found = {"schema": 1, "points": [point], "failed": failed, "parity": verdict.to_json()}

    async def measured(*_: object, **__: object) -> BenchReport:
        return BenchReport(found, None)

    monkeypatch.setattr("jaccl_kernel.steps.bench.bench", measured)
    make_hostfile(2).write(tmp_path / "r.json")
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(tmp_path / "r.json"), *more])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == found if more else "decode tok/s" in out
    assert ("mac2: 2 ranks: rank 1 died\n  Fix: Wake it." in err) == (wrong == "a rank")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--max-tokens", "0"], 2, "--max-tokens must be at least 1 (got 0)"),
        (["--prompt", ""], 2, "--prompt must not be empty"),
        (["--ranks", "x"], 2, "--ranks must be whole numbers with commas"),
        (["--ranks", "9"], 2, "the hostfile has 4 hosts"),
        (["--env", "OOPS"], 2, "NAME=VALUE"),
        (["--model", "/nowhere"], 2, "/nowhere"),
        (["--model", "nothing"], 2, "jaccl sync FILE MODEL"),
    ],
)
def test_bad_input_is_told_with_a_fix(tmp_path: Path, arguments: list[str], status: int, told: str) -> None:
    jaccl("rehearse", "-o", tmp_path / "r.json")
    done = jaccl("bench", tmp_path / "r.json", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ignored", [False, True], ids=["", "started with SIGINT ignored"])
@pytest.mark.parametrize(("signum", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_an_interrupt_ends_a_benchmark_whole(
    tmp_path: Path, tiny_model: Path, signum: signal.Signals, times: int, ignored: bool
) -> None:
    jaccl("rehearse", "-o", tmp_path / "r.json")

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = subprocess.Popen(
        [JACCL, "bench", tmp_path / "r.json", "--model", tiny_model, "--ranks", "2", "--max-tokens", "4000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=ignore if ignored else None,
    )
    with process:
        assert process.stderr
        for line in process.stderr:
            if "measure" in line:
                break
        for _ in range(times):
            process.send_signal(signum)
            time.sleep(0.05)  # two presses, not one
        process.stderr.read()
        assert process.wait(timeout=60) == 128 + signum
