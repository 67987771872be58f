"""The table of known errors covers what the installed mlx, mlx-lm and JACCL say, and its fixes exist.

A message that a user can meet needs an entry; UNREACHABLE lists the others, with the reason.
"""

import ast
import functools
import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from jaccl_kernel.cli.main import make_app
from jaccl_kernel.core.errors import RankDied
from jaccl_kernel.launch import diagnose
from jaccl_kernel.launch.job import RankState

# JACCL and Metal are not in the CPU build of mlx: their messages, from mlx's sources (August 2026)
JACCL = """
[jaccl] The device file should start with an array
[jaccl] The device file should have an array of arrays
[jaccl] The device file should contain the connectivity of each rank to all other ranks but
[jaccl] Device names should be null, a string or array of strings.
[jaccl] The full connectivity matrix should be provided but we have 2 rows and row 1 has 3 columns.
[jaccl] The devices do not form a valid mesh.
[jaccl] The devices do not form a valid ring.
[jaccl] The configuration should define a valid mesh or a valid ring.
[jaccl] You need to provide via environment variables a rank (JACCL_RANK/MLX_RANK), a device file
[jaccl] The JACCL mesh supports up to 8 peers but 9 were provided.
[jaccl] Up to 4 per direction supported but 5 were provided.
[jaccl] Buffer can be registered once per protection domain
[jaccl] Register memory region failed
[jaccl] dlsym(0x8, ibv_reg_mr): symbol not found
[jaccl] Couldn't allocate protection domain
[jaccl] Couldn't create completion queue
[jaccl] Creating the queue pair failed with 'Resource busy (16)'.
[jaccl] No IPv4-mapped GID for this device. Thunderbolt RDMA ports only publish one once
[jaccl] Changing queue pair to INIT failed with errno 22
[jaccl] Changing queue pair to RTR failed with errno 60
[jaccl] Changing queue pair to RTR failed with errno 5
[jaccl] Changing queue pair to RTS failed with errno 22
[jaccl] Could not open device rdma_en3
[jaccl] Could not find device rdma_en3 (0 available)
[jaccl] Could not find device rdma_en3 (5 available)
[jaccl] Connection attempt 2 waiting 4000 ms
[jaccl] Send failed with error code -12
[jaccl] Recv failed with error code 22
[jaccl] In ring mode send is only supported to direct neighbors but tried to send to 2 from 0
[jaccl] In ring mode recv is only supported to direct neighbors but tried to recv from 2 to 0
[jaccl] Unsupported dtype for JACCL operation
[jaccl] Group split not supported.
[jaccl] Couldn't bind socket (error: 48)
[jaccl] Couldn't bind socket (error: 49)
[jaccl] Couldn't bind socket (error: 13)
[jaccl] Couldn't listen (error: 48)
[jaccl] Couldn't connect (error: 60)
[jaccl] Couldn't connect (error: 61)
[jaccl] Couldn't connect (error: 65)
[jaccl] Accept failed (error: 24)
[jaccl] Send failed with errno=32
[jaccl] Recv failed with errno=0
Can't parse address mac1.local:32323
""".strip().splitlines()
METAL = """
[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU…OutOfMemory).
[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPU…Timeout).
[METAL] Command buffer execution failed: Caused GPU Hang Error (00000003:kIOGPU…Hang).
[METAL] Command buffer execution failed: Caused GPU Address Fault Error (0000000b).
[METAL] Command buffer execution failed: Ignored (for causing prior/excessive GPU errors).
[METAL] Command buffer execution failed: Innocent Victim (00000005:kIOGPU…InnocentVictim).
[METAL] Command buffer execution failed: Impacting Interactivity (0000000e).
[metal::malloc] Attempting to allocate 99999999 bytes which is greater than the maximum allowed
[metal::malloc] Resource limit (499000) exceeded.
[malloc] Unable to allocate 1024 bytes.
[metal::set_wired_limit] Setting a wired limit larger than the maximum working set size is not allowed.
[metal::load_device] No Metal device available. This typically occurs in headless, sandboxed, or virtualized
[metal::CommandEncoder] Failed to make new command queue.
[Event::Event] Failed to create Metal shared event.
[metal::Device] Unable to build metal library from source
[metal::Device] Unable to load kernel fence_wait
Failed to load the default metallib. library not found
Failed to load the metallib mlx.metallib. We attempted to load it from </x/mlx.metallib>
[AllReduce::eval_gpu] has no GPU implementation.
There is no Stream(gpu, 1) in current thread.
""".strip().splitlines()
# What shells, ssh and macOS say around a job
SYSTEM = """
zsh:1: command not found: mlx.launch
zsh: command not found: rsync
bash: line 1: /opt/env/bin/python: No such file or directory
zsh:1: no such file or directory: /opt/env/bin/python
zsh: killed     python -m mlx_lm.server
Killed: 9
zsh: segmentation fault  python rank.py
Segmentation fault: 11
Abort trap: 6
[WARN] Node with rank 2 exited with code -11
[WARN] Node with rank 2 exited with code 137
panic(cpu 4 caller 0xfffffe0): "IOGPUMemory.cpp:550" prepare count underflow
xcode-select: note: No developer tools were found, requesting install.
OSError: [Errno 65] No route to host
ssh: connect to host mac2.local port 22: No route to host
ssh: connect to host mac2 port 22: Connection refused
ssh: Could not resolve hostname mac9: nodename nor servname provided, or not known
mac@mac2: Permission denied (publickey,password,keyboard-interactive).
Host key verification failed.
kex_exchange_identification: read: Connection reset by peer
sudo: a password is required
OSError: [Errno 28] No space left on device
ModuleNotFoundError: No module named 'mlx_lm'
ValueError: Tokenizer class Qwen9Tokenizer does not exist or is not currently imported.
AttributeError: 'Model' object has no attribute 'shard'
OSError: We couldn't connect to 'https://huggingface.co' to load the files
error: externally-managed-environment
resource_tracker: There appear to be 1 leaked semaphore objects to clean up at shutdown
Illegal instruction: 4
[1]    4242 killed     python -m mlx_lm.server
ImportError: cannot import name 'make_sampler' from 'mlx_lm.sample_utils'
No IB devices found
OSError: [Errno 70] Stale NFS file handle
ifconfig: ioctl (SIOCAIFADDR): permission denied
TypeError: init() got an unexpected keyword argument 'all_gather_factory'
AttributeError: module 'mlx.core' has no attribute 'distributed'
""".strip().splitlines()

# Messages of the installed packages that no job of a user meets, by file and text, with the reason.
UNREACHABLE = {
    r"^mlx/extension\.py": "only building C++ extensions runs it",
    r"^mlx/__array_api_info\.py": "only queries of the array API run it",
    r"^mlx/nn/(init|losses|utils)\.py": "training",
    r"^mlx/optimizers": "training",
    r"^mlx/nn/layers/(activations|convolution|dropout|normalization|pooling|positional_encoding|recurrent"
    r"|upsample|embedding)\.py": "arguments of a layer in a program; mlx-lm's architectures pass valid ones",
    r"^mlx/nn/layers/base\.py: .*(does not have (parameter|sub-module) named|doesn't contain member"
    r"|Unexpected leaf|List index|Received invalid type|Unsupported file extension)": "calls of a program",
    r"^mlx/nn/layers/distributed\.py: .*(Sharding type|sharding function)": "arguments of a program",
    r"^mlx/nn/layers/quantized\.py: .*class_predicate": "arguments of a program",
    r"^mlx/utils\.py": "arguments of a program",
    r"^mlx/_distributed_utils/.*(Number should be|No script is)": "argparse shows the usage",
    r"^mlx/_distributed_utils/config\.py: (Try passing|Perhaps run|Rings found| +- )":
    "follows a message that is known",
    r"^mlx_lm/share\.py: One of": "argparse shows the usage",
    r"^mlx_lm/(tuner|quant)/": "training and quantizing, on one Mac",
    r"^mlx_lm/(lora|convert|fuse|gguf|cli|perplexity|evaluate)\.py": "programs of one Mac, not distributed",
    r"^mlx_lm/(chat_templates|tool_parsers|processors)/": "answers about one request or one generated text",
    r"^mlx_lm/sample_utils\.py": "invalid values of one request, which the API refuses before",
    r"^mlx_lm/server\.py: .*(must be|Only 'text'|Images must|[Rr]esponse type)": "answers to a request",
    r"^mlx_lm/generate\.py: .*(batch length|input_embeddings|input embeddings|Insufficient number"
    r"|Maximum number|must have one entry|has an empty prompt|max_tokens must|does not take images)":
    "arguments of a program or of one request",
    r"^mlx_lm/tokenizer_utils\.py: .*(has no attribute|is not a token|thinking sequence)":
    "calls of a program",
    r"^mlx_lm/models/cache\.py: .*(Cache sub-class|finalize|same maximum size|Left padding|no state but"
    r"|not serializable)": "calls of a program",
    r"^mlx_lm/models/muse_spark\.py|^mlx_lm/models/gemma4_text\.py": "calls of a program with images",
    r"^mlx_lm/models/.*(Layer index must|gating shape|shared_kv|next pipeline stage)": "calls of a program",
    # libmlx
    r"^libmlx: \[(?!(distributed|jaccl|ring|mpi|nccl|load|read|metal::|gpu::|METAL|safetensor|matmul|addmm"
    r"|reshape|quantize\]|quantized_matmul|gather_qmm|dequantize|sum_scatter|Event::Event|default_stream|set_default))":
    "argument checks of array operations, which meet a defect in a program",
    r"^libmlx: \[distributed\] An all gather factory": "arguments of a program",
    r"^libmlx: Cannot initialize nccl": "CUDA only",
    r"^libmlx: \[(gpu::|metal::device_info|metal::get_metallib_path|quantize_dequantize)":
    "calls of a program",
    r"^libmlx: (Cannot (iterate over|broadcast)|Invalid (boolean|high|low|number|padding|type|indices)"
    r"|Failed to execute command|Unable to (get current binary|safely factor))":
    "argument checks of operations",
}  # fmt: skip


def literal(node: ast.expr) -> str | None:
    """The text of a message, with 1 for each value in it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) or "1" for part in node.values)
    if isinstance(node, ast.BinOp):
        return (literal(node.left) or "1") + (literal(node.right) or "1")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # "...".format()
        return literal(node.func.value)
    return None


@functools.cache
def said_by_python(package: str) -> tuple[str, ...]:
    """`path: message` of each raise, log_error, log_warning and parser.error of an installed package."""
    found = find_spec(package)
    assert found
    assert found.submodule_search_locations
    root = Path(next(iter(found.submodule_search_locations)))
    messages = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call) or not call.args:
                continue
            named = isinstance(node, ast.Raise) or name_of(call.func) in (
                "log_error",
                "log_warning",
                "parser.error",
            )
            text = literal(call.args[0]) if named else None
            if text and len(text) > 4:  # else a variable, whose text is built elsewhere
                messages.append(f"{path.relative_to(root.parent)}: {text.strip().splitlines()[0]}")
    return tuple(messages)


def name_of(function: ast.expr) -> str:
    """A called name, or a method of one; "" for other expressions. Much faster than ast.unparse."""
    match function:
        case ast.Name(name):
            return name
        case ast.Attribute(ast.Name(name), method):
            return f"{name}.{method}"
    return ""


def said_by_libmlx() -> Iterator[str]:
    """The messages of the C++ library: its strings that begin with a tag or with an error's first words."""
    found = find_spec("mlx.core")
    assert found
    assert found.origin
    [library] = (Path(found.origin).parent / "lib").glob("libmlx.*")
    for raw in sorted(set(re.findall(rb"[\x20-\x7e]{6,}", library.read_bytes()))):
        text = raw.decode()
        first = r"\[[A-Za-z_:]+\] |Can't|Cannot|Couldn't|Accept failed|There is no Stream| (Recv|Send) failed"
        if re.match(first, text):
            yield f"libmlx: {text}"


def is_reachable(message: str) -> bool:
    return not any(re.search(pattern, message) for pattern in UNREACHABLE)


def unexplained(messages: Sequence[str]) -> list[str]:
    def words(message: str) -> str:
        return re.sub(r"^(\S+\.py|libmlx): ", "", message)

    return [message for message in messages if not diagnose.explain(words(message))]


@pytest.mark.parametrize("package", ["mlx", "mlx_lm"])
def test_every_message_of_the_python_packages_that_a_user_can_meet_is_known(package: str) -> None:
    messages = [message for message in said_by_python(package) if is_reachable(message)]
    assert len(messages) > 20
    assert unexplained(messages) == []


def test_every_message_of_libmlx_that_a_user_can_meet_is_known() -> None:
    messages = [message for message in said_by_libmlx() if is_reachable(message)]
    assert len(messages) > 40
    assert unexplained(messages) == []


@pytest.mark.parametrize("message", [*JACCL, *METAL, *SYSTEM])
def test_messages_of_other_builds_and_programs_are_known(message: str) -> None:
    assert unexplained([message]) == []


def test_no_list_of_messages_that_a_user_cannot_meet_is_outdated() -> None:
    messages = [*said_by_python("mlx"), *said_by_python("mlx_lm"), *said_by_libmlx()]
    unused = [p for p in UNREACHABLE if not any(re.search(p, message) for message in messages)]
    assert unused == []


def test_every_entry_has_causes_checks_and_fixes_that_exist() -> None:
    app = make_app()
    for known in diagnose.known_errors():
        assert known.causes
        if known.secondary:
            assert len(known.causes) > 1, "what else it can be"
        for cause in known.causes:
            assert cause.cause
            assert cause.check
            assert cause.fix
            assert not re.search(r"(see|read|look (at|for|in)).* log", cause.fix.lower())
            quoted = re.findall(r"`(jaccl [^`]*)`", cause.fix + cause.check)
            plain = re.findall(r"(?:^|; )(jaccl [^;(]*)", cause.check)
            for words in (shlex.split(command)[1:] for command in (*quoted, *plain)):
                app.parse_args(words, exit_on_error=False, print_error=False)  # raises if it is invalid
        assert all(source.startswith("https://") for source in known.sources)


def causes(text: str) -> list[str]:
    return [cause.cause for cause in diagnose.explain(text)[0].causes]


def test_errno_96_has_its_causes_in_order_of_likelihood() -> None:
    found = causes("ValueError: [jaccl] Changing queue pair to RTR failed with errno 96")
    assert [re.search(r"bridge|leftover|not freed", cause)[0] for cause in found] == [  # type: ignore[index]
        "bridge", "leftover", "not freed",
    ]  # fmt: skip


def test_a_posting_error_is_not_a_tcp_error() -> None:
    [posting] = diagnose.explain("[jaccl] Send failed with error code -12")
    [tcp] = diagnose.explain("[jaccl] Send failed with errno=12")
    assert not posting.secondary
    assert "ENOMEM" in posting.causes[0].cause
    assert tcp.secondary


def test_a_gpu_timeout_while_loading_is_slow_storage() -> None:
    error = "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:x)"
    assert "slow reads" in causes(f"Loading /Volumes/usb/m\n{error}")[0]
    assert "collective" in causes(f"Loading m\nloaded 40 GB in 9 s\n{error}")[0]
    assert "collective" in causes(error)[0]
    for stage in ("measure", "score", "serve", "resident", "collectives"):
        assert "collective" in causes(f"stage: {stage}\nloading /Volumes/usb/m\n{error}")[0]


def test_a_segfault_at_the_join_has_other_causes_than_one_later() -> None:
    assert "two peers" in causes("[jaccl] Connection attempt 0 waiting 1000 ms\nSegmentation fault: 11")[0]
    assert "message was lost" in causes("Segmentation fault: 11")[0]


def test_local_network_privacy_is_not_remote_login() -> None:
    assert "Local Network" in causes("OSError: [Errno 65] No route to host")[0]
    assert "Remote Login" in causes("ssh: connect to host mac2 port 22: No route to host")[0]


def test_a_lone_secondary_line_says_what_else_it_can_be() -> None:
    [found] = diagnose.explain("RuntimeError: [jaccl] Recv failed with errno=0")
    assert found.secondary
    assert any("not a rank" in cause.cause for cause in found.causes)
    assert any("two jobs" in cause.cause for cause in found.causes)


def test_a_shape_that_does_not_fit_is_not_the_configs_fault() -> None:
    text = "ValueError: [matmul] Last dimension of first input with shape (1,2) must match second to last"
    assert "weights and the architecture do not fit" in causes(text)[0]


def test_the_host_and_the_hostfile_are_named() -> None:
    text = "[jaccl] Could not find device rdma_en3 (0 available)"
    [found] = diagnose.explain(text, "mac2", "four.json")
    assert found.causes[0].check == "ssh mac2 ibv_devices"
    assert found.causes[0].fix == (
        "Enable RDMA over Thunderbolt on mac2 (`jaccl enable four.json`), then reboot it."
    )
    [found] = diagnose.explain(text)
    assert found.causes[0].check == "ssh HOST ibv_devices"
    assert "`jaccl enable FILE`" in found.causes[0].fix


def died(number: int, *lines: str, returncode: int = 1, at: float = 1.0) -> RankState:
    rank = RankState(number, f"mac{number + 1}", stage="join", returncode=returncode, ended_at=at)
    rank.tail.extend(lines)
    return rank


def test_the_root_cause_names_every_cause_and_its_fix() -> None:
    lost = died(0, "[jaccl] Recv failed with errno=54", at=1.0)
    first = died(1, "[jaccl] Changing queue pair to RTR failed with errno 96", at=2.0)
    error = diagnose.root_cause([lost, first])
    assert isinstance(error, RankDied)
    assert error.rank == 1
    assert "bridge" in error.what
    assert [line.split(".")[0] for line in error.fix.splitlines()][1].startswith(
        "  Or a leftover rank process on mac2"
    )


def test_without_a_primary_error_the_root_cause_says_what_else_it_can_be() -> None:
    error = diagnose.root_cause([died(0, "[jaccl] Recv failed with errno=0")])
    assert "no rank reported a first cause" in error.what
    assert "not a rank" in error.fix
    assert "--starting-port" in error.fix


def test_a_silent_segfault_at_the_join_is_explained() -> None:
    error = diagnose.root_cause([died(0, returncode=-11), died(1, "[jaccl] Recv failed with errno=54")])
    assert error.rank == 0
    assert "two peers" in error.what
    assert "librdma" in error.fix
