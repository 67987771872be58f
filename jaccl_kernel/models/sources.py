"""Runs the Python sources of the installed mlx-lm and `mlx.nn` on `mlx_core.py`, without mlx.

The modules live in a world of their own: `sys.modules` gets no `mlx` and no `mlx_lm`, and `import` statements
in the sources find the other sources, the standard library, and placeholders for all other packages.
"""

import builtins
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.mlx_core import Missing, core
from jaccl_kernel.models.shapes import Array

_PREFIX = "jaccl_kernel.models.sources:"  # in sys.modules, where dataclasses look for annotations


def mlx_lm() -> Path:
    """The folder of the installed mlx_lm. Finding a top-level package does not import it."""
    if found := _folders("mlx_lm"):
        return found[0]
    raise ModelError("mlx-lm is not installed in this Python environment", fix="Run: pip install mlx-lm")


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]


class Sources:
    """The modules of `mlx_lm` and `mlx`, loaded on demand.

    Args:
        load: what stands for `mlx.core.load`.
    """

    def __init__(self, load: Callable[[str], dict[str, Array]]) -> None:
        self._folders = {name: _folders(name) for name in ("mlx_lm", "mlx")}
        self._modules: dict[str, ModuleType] = {}
        self.printed: list[str] = []  # what the sources print, such as the reason before sys.exit
        self._builtins = {**vars(builtins), "__import__": self._import, "print": self._print}
        for name in self._folders:  # without their __init__, which imports far more than the models need
            self._modules[name] = ModuleType(name)
        self._keep("mlx.core", core(load))
        self._keep("mlx_lm.tokenizer_utils", _Placeholder("mlx_lm.tokenizer_utils"))  # imports transformers

    def module(self, name: str) -> ModuleType:
        """A module by its name, such as "mlx_lm.models.llama".

        Raises:
            ImportError: there is no such module.
        """
        if name in self._modules:
            return self._modules[name]
        package, _, own = name.rpartition(".")
        if package:
            self.module(package)
        top, *below = name.split(".")
        for folder in self._folders.get(top, ()):
            path = folder.joinpath(*below)
            for file, is_package in ((path / "__init__.py", True), (path.with_name(f"{own}.py"), False)):
                if file.is_file():
                    return self._run(name, file, name if is_package else package)
        raise ImportError(f"No module named {name!r}", name=name)

    def _run(self, name: str, file: Path, package: str) -> ModuleType:
        module = ModuleType(_PREFIX + name)
        vars(module).update(__file__=str(file), __package__=package, __builtins__=self._builtins)
        self._keep(name, module)
        sys.modules[module.__name__] = module
        code = SourceFileLoader(name, str(file)).get_code(name)
        assert code is not None
        try:
            exec(code, vars(module))
        except BaseException:  # nothing of a module that ran in part may be found later
            del self._modules[name], sys.modules[module.__name__]
            parent, _, own = name.rpartition(".")
            delattr(self.module(parent), own)
            raise
        return module

    def _print(self, *values: Any, **_: Any) -> None:
        self.printed = [" ".join(map(str, values))]

    def _keep(self, name: str, module: ModuleType) -> None:
        self._modules[name] = module
        package, _, own = name.rpartition(".")
        setattr(self.module(package), own, module)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 (the names of __import__)
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level:
            package = (globals or {})["__package__"].rsplit(".", level - 1)[0]
            name = f"{package}.{name}" if name else package
        top = name.partition(".")[0]
        if top not in self._folders:
            if name == "resource":  # mlx_lm.utils raises the limit of open files, which is not ours to do
                return SimpleNamespace(setrlimit=lambda *_: None, RLIMIT_NOFILE=0)
            if top in sys.stdlib_module_names or top == "numpy":  # plamo computes a size with numpy
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            if importlib.util.find_spec(top) is None:
                raise ImportError(f"No module named {name!r}", name=name)
            return _Placeholder(name)
        module = self.module(name)
        if not fromlist:
            return self._modules[top]
        for item in fromlist:
            if item != "*" and not hasattr(module, item):
                self.module(f"{name}.{item}")
        return module


class _Placeholder(ModuleType):
    """A package that mlx-lm imports, and that loading a model does not use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else Missing(f"{self.__name__}.{name}")
