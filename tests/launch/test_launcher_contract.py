"""The parts of mlx.launch that the launcher uses; fails when a new mlx changes them."""

import ast
import importlib.util
import inspect
import textwrap
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def upstream() -> ast.Module:
    """The source of mlx's launcher, read without importing mlx."""
    spec = importlib.util.find_spec("mlx")
    assert spec
    assert spec.submodule_search_locations
    for folder in spec.submodule_search_locations:
        source = Path(folder) / "_distributed_utils" / "launch.py"
        if source.exists():
            return ast.parse(source.read_text())
    pytest.fail("mlx/_distributed_utils/launch.py is gone")


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)


def test_the_io_loop_has_the_arguments_of_our_replacement(upstream: ast.Module) -> None:
    names = [argument.arg for argument in _function(upstream, "_launch_with_io").args.args]
    assert names == ["command_class", "arguments", "verbose"]


@pytest.mark.parametrize("name", ["launch_ring", "launch_jaccl"])
def test_every_launch_passes_rank_host_python_cwd_files_env_command(upstream: ast.Module, name: str) -> None:
    calls = [
        node
        for node in ast.walk(_function(upstream, name))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_launch_with_io"
    ]
    assert len(calls) == 1
    handed = ast.unparse(calls[0].args[1])
    assert "(rank, h.ssh_hostname, args.python, cwd, files, env, command), {}" in handed


def test_the_launch_script_has_the_arguments_that_we_pass() -> None:
    from mlx._distributed_utils.launch import RemoteProcess

    names = list(inspect.signature(RemoteProcess.make_launch_script).parameters)
    assert names == ["rank", "python", "cwd", "files", "env", "command", "is_local"]
    script = RemoteProcess.make_launch_script(3, "py", None, {"MLX_HOSTFILE": "[]"}, ["A=b c"], ["x y"], True)
    first = textwrap.shorten(script, 200)
    assert first.index("mktemp") < first.index("printf"), "the pid file's name is no longer the first line"
    assert "export A='b c'; " in script
    assert "export MLX_RANK=3; " in script
    assert script.endswith("""cmd=(py 'x y'); exec "${cmd[@]}\"""")
