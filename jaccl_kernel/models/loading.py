"""What mlx-lm makes of a checkpoint: whether it loads, and the weights of the model, whole or per rank.

Runs `mlx_lm.utils.load_model` of the installed mlx-lm on the tensors' shapes (`sources.py`), then `shard()`
and `pipeline()`, so that an architecture's own code decides which tensors it unpacks, drops, and splits.
`sharding.py` turns the results into verdicts.
"""

import re
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaccl_kernel.models import shapes
from jaccl_kernel.models.mlx_core import Group
from jaccl_kernel.models.sources import Sources
from jaccl_kernel.models.weights import Tensor

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_MANY_TENSORS = 5_000  # of repeated experts: from here on it pays to leave them out
_EXPERTS = ".experts."
# What mlx-lm and mlx raise for a checkpoint or a split that they do not support. Any other exception means
# that the stand-in for mlx lacks something.
REFUSALS = (ValueError, KeyError, AssertionError, NotImplementedError, SystemExit)
_creating = threading.Lock()


@dataclass(frozen=True)
class Uneven:
    """A linear module that `shard()` cannot split.

    Attributes:
        module: its path in the model.
        side: "inputs" or "outputs".
        size: the number of them, unpacked.
        group: the quantization group size; 1 if unquantized.
        error: the message of mlx.
    """

    module: str
    side: str
    size: int
    group: int
    error: str


@dataclass(frozen=True)
class Shard:
    """The result of `shard()` for one rank.

    Attributes:
        nbytes: of the rank's weights.
        counts: (attribute, whole, share) of each count that `shard()` divided, such as n_heads.
        uneven: modules that it could not split.
        error: the exception that it raised otherwise, or "".
        unknown: what of mlx the check cannot follow, or "".
    """

    nbytes: int
    counts: tuple[tuple[str, int, int], ...]
    uneven: tuple[Uneven, ...]
    error: str
    unknown: str = ""


@dataclass
class Loaded:
    """A checkpoint as the installed mlx-lm loads it.

    Attributes:
        error: the exception of `load_model`, or "".
        unknown: what of mlx the check cannot follow; then the sizes are those of the files. "" normally.
        parameters: number of weights of the model; a packed word counts as the number of its values.
        nbytes: size of the weights in memory.
        dtype: the most common type of the unpacked weights, such as "bfloat16".
        can_shard, can_pipeline: whether the architecture supports the two ways to split.
        quantization: that of the loaded model in mlx-lm's format, or None.
    """

    error: str = ""
    unknown: str = ""
    parameters: int = 0
    nbytes: int = 0
    dtype: str = "unknown"
    can_shard: bool = False
    can_pipeline: bool = False
    quantization: Mapping[str, Any] | None = None
    _model: Any = None
    _world: "_World | None" = None
    _shards: dict[int, Shard] = field(default_factory=dict)

    def shard(self, ranks: int) -> Shard:
        """The share of rank 0 of `ranks`, of which all have equal shares."""
        if ranks not in self._shards:
            assert self._world is not None
            self._shards[ranks] = self._world.shard(self._model, ranks)
        return self._shards[ranks]

    def pipeline(self, ranks: int) -> tuple[int, ...]:
        """Bytes of the weights of each rank of a pipeline, rank 0 first.

        Raises:
            ValueError: mlx-lm cannot distribute the layers.
            Unsupported: the check cannot follow it.
        """
        assert self._world is not None
        return self._world.pipeline(self._model, ranks)


def load(folder: Path, architecture: str, tensors: Iterable[Tensor]) -> Loaded:
    """Load the shapes of a checkpoint.

    Args:
        folder: has config.json, and files named as the weights.
        architecture: the module in `mlx_lm.models`.
        tensors: all tensors of the checkpoint, sorted by name.
    """
    return world().load(folder, architecture, tuple(tensors))


def world() -> "_World":
    """The sources of the installed mlx-lm; another version, installed meanwhile, has its own."""
    with _creating:
        return _world(tuple(version(name) for name in ("mlx-lm", "mlx")))


@lru_cache(maxsize=1)
def _world(_: tuple[str, ...]) -> "_World":
    return _World()


class _World:
    """mlx-lm's sources, and one checkpoint at a time in the place of its files."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._weights: dict[str, shapes.Array] = {}
        self._uneven: list[tuple[Any, str, str]] = []
        self._sources = Sources(self._read)
        self._module: Any = self._sources.module("mlx.nn").Module
        distributed = vars(self._sources.module("mlx.nn.layers.distributed"))
        for name in ("shard_linear", "shard_inplace"):
            distributed[name] = self._tolerant(distributed[name])

    def _read(self, _: str) -> dict[str, shapes.Array]:
        """All weights with the first file, none with the others."""
        weights, self._weights = self._weights, {}
        return weights

    def _tolerant(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`shard_linear` or `shard_inplace` that notes what cannot be split, and continues."""

        def shard(module: Any, sharding: Any, **options: Any) -> Any:
            try:
                return original(module, sharding, **options)
            except ValueError as error:
                self._uneven.append((module, str(sharding), str(error)))
                return module

        return shard

    def load(self, folder: Path, architecture: str, tensors: tuple[Tensor, ...]) -> Loaded:
        with self._lock:
            few, copies = _without_repeated_experts(tensors)
            if copies:
                loaded = self._load(folder, architecture, few, copies)
                if not loaded.error and not loaded.unknown:
                    return loaded
            return self._load(folder, architecture, tensors, {})

    def _load(
        self, folder: Path, architecture: str, tensors: Iterable[Tensor], copies: dict[int, int]
    ) -> Loaded:
        model = None
        files = Loaded(
            parameters=sum(tensor.size for tensor in tensors),
            nbytes=sum(tensor.nbytes for tensor in tensors),
            dtype=_common(shapes.LOADED_AS.get(tensor.dtype, "") for tensor in tensors),
        )
        self._sources.printed.clear()
        try:
            self._weights = {tensor.name: shapes.make(tensor.shape, _dtype(tensor)) for tensor in tensors}
            utils = self._sources.module("mlx_lm.utils")
            source = self._sources.module(f"mlx_lm.models.{architecture}")

            def make(arguments: Any) -> Any:
                nonlocal model
                model = source.Model(arguments)
                if copies and hasattr(model, "sanitize"):
                    sanitize = model.sanitize
                    model.sanitize = lambda weights: _with_copies(sanitize(weights), copies)
                return model

            _, config = utils.load_model(
                folder, lazy=True, get_model_classes=lambda config: (make, source.ModelArgs)
            )
        except REFUSALS as error:
            exits = isinstance(error, SystemExit) and self._sources.printed
            return replace(files, error=f"mlx-lm exits: {exits[0]}" if exits else _message(error))
        except Exception as error:
            if isinstance(error, TypeError) and "__init__() missing" in str(error):
                return replace(files, error=str(error))  # a key that config.json does not have
            return replace(files, unknown=_message(error))
        finally:
            self._weights = {}
        return Loaded(
            parameters=self._parameters(model),
            nbytes=self._nbytes(model),
            dtype=_common(array.dtype.name for array in self._arrays(model)),
            can_shard=hasattr(model, "shard"),
            can_pipeline=hasattr(getattr(model, "model", None), "pipeline"),
            quantization=config.get("quantization"),
            _model=model,
            _world=self,
        )

    def shard(self, whole: Any, ranks: int) -> Shard:
        with self._lock:
            copies: dict[int, Any] = {}
            model = self._clone(whole, copies)
            self._uneven, error, unknown = [], "", ""
            try:
                model.shard(Group(0, ranks))
            except REFUSALS as raised:
                error = _message(raised)
            except Exception as raised:
                unknown = _message(raised)
            counts = {
                (name, before, after)
                for module in whole.modules()
                for name, before in vars(module).items()
                if type(before) is int and (after := vars(copies[id(module)]).get(name, before)) != before
            }
            paths = {id(copies[id(module)]): path for path, module in self._modules(whole) if self._uneven}
            uneven = [_uneven(paths.get(id(module), ""), module, *rest) for module, *rest in self._uneven]
            self._uneven = []
            return Shard(self._nbytes(model), tuple(sorted(counts)), tuple(uneven), error, unknown)

    def pipeline(self, whole: Any, ranks: int) -> tuple[int, ...]:
        with self._lock:
            memo = {id(layer): layer for layer in whole.model.layers}  # a pipeline does not change them
            sizes = {key: self._nbytes(layer) for key, layer in memo.items()}
            result = []
            for rank in range(ranks):
                model = self._clone(whole, dict(memo))
                try:
                    model.model.pipeline(Group(rank, ranks))
                except REFUSALS:
                    raise
                except Exception as error:
                    raise shapes.Unsupported(_message(error)) from error
                result.append(self._nbytes(model, sizes))
            return tuple(result)

    def _clone(self, value: Any, memo: dict[int, Any]) -> Any:
        """A copy of a tree of modules that shares the arrays."""
        if id(value) in memo:
            return memo[id(value)]
        if isinstance(value, self._module):
            kind: Any = type(value)
            copy = kind.__new__(kind)
            memo[id(value)] = copy
            dict.update(copy, {key: self._clone(item, memo) for key, item in value.items()})
            vars(copy).update(vars(value))
            return copy
        if isinstance(value, dict):
            return {key: self._clone(item, memo) for key, item in value.items()}
        if isinstance(value, list):
            return [self._clone(item, memo) for item in value]
        return value

    def _modules(self, value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
        """All modules of a tree with their paths."""
        if isinstance(value, self._module):
            yield path, value
        if isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(item, dict | list):
                    yield from self._modules(item, f"{path}.{key}" if path else str(key))

    def _nbytes(self, value: Any, known: dict[int, int] | None = None) -> int:
        """Bytes of the parameters of a tree, as `Module.parameters` selects them."""
        if isinstance(value, shapes.Array):
            return value.nbytes
        if known and id(value) in known:
            return known[id(value)]
        if isinstance(value, dict):
            return sum(self._nbytes(item, known) for key, item in value.items() if not key.startswith("_"))
        return sum(self._nbytes(item, known) for item in value) if isinstance(value, list) else 0

    def _arrays(self, model: Any) -> Iterator[shapes.Array]:
        for _, module in self._modules(model):
            yield from _own(module).values()

    def _parameters(self, model: Any) -> int:
        total = 0
        for _, module in self._modules(model):
            arrays = _own(module)
            if "scales" in arrays and hasattr(module, "bits"):
                total += arrays["weight"].size * 32 // module.bits
                arrays = {key: item for key, item in arrays.items() if key == "bias"}
            elif "weight_scale" in arrays and hasattr(module, "invert_weight_scales"):
                total += 3 * arrays["weight"].size  # bitlinear_layers.py: four values in a byte
            total += sum(item.size for item in arrays.values())
        return total


def _dtype(tensor: Tensor) -> shapes.Dtype:
    name = shapes.LOADED_AS.get(tensor.dtype)
    if name is None:
        raise ValueError(f"mlx cannot read the type {tensor.dtype} of {tensor.name}")
    return shapes.DTYPES[name]


def _own(module: Any) -> dict[str, shapes.Array]:
    """The parameters of a module without those of modules in it."""
    return {
        key: item
        for key, item in module.items()
        if isinstance(item, shapes.Array) and not key.startswith("_")
    }


def _common(dtypes: Iterable[str]) -> str:
    found = Counter(dtype for dtype in dtypes if dtype in ("float32", "float16", "bfloat16"))
    return found.most_common(1)[0][0] if found else "unknown"


def _message(error: BaseException) -> str:
    if isinstance(error, ValueError | shapes.Unsupported) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _uneven(path: str, module: Any, sharding: str, error: str) -> Uneven:
    bits, group = getattr(module, "bits", 32), getattr(module, "group_size", 1)
    inputs = sharding == "sharded-to-all"
    size = module.weight.shape[-1] * 32 // bits if inputs else module.weight.shape[-2]
    return Uneven(path, "inputs" if inputs else "outputs", size, group, error)


def _without_repeated_experts(tensors: tuple[Tensor, ...]) -> tuple[list[Tensor], dict[int, int]]:
    """The tensors without the experts of layers that have the same tensors as an earlier layer.

    mlx-lm stacks the experts of each layer in the same way, and a checkpoint may have hundreds of thousands
    of them. All other tensors stay.

    Returns:
        The tensors, and the earlier layer of each layer without experts; all and none for few tensors.
    """
    rest: list[Tensor] = []
    experts: list[tuple[int, str, tuple[Tensor, ...]]] = []
    others: dict[int, list[tuple[Any, ...]]] = {}  # what else is in a layer
    place = 0
    while place < len(tensors):
        start, found, end = tensors[place].name.partition(_EXPERTS)
        layer = _LAYER.search(f"{start}.")
        if found and end[:1].isdigit() and layer:
            last = bisect_left(tensors, (f"{start}{_EXPERTS[:-1]}/",))  # they are adjacent; "/" follows "."
            experts.append((int(layer[1]), start, tensors[place:last]))
            place = last
            continue
        if layer:
            name = _LAYER.sub(".layers.", tensors[place].name)
            others.setdefault(int(layer[1]), []).append((name, *tensors[place][1:]))
        rest.append(tensors[place])
        place += 1
    first: dict[tuple[Any, ...], int] = {}
    copies: dict[int, int] = {}
    for number, start, mine in experts:
        names = tuple([tensor[0][len(start) :] for tensor in mine])
        kinds = tuple([tensor[1:] for tensor in mine])
        key = (_LAYER.sub(".layers.", f"{start}."), names, kinds, tuple(others.get(number, ())))
        if first.setdefault(key, number) == number:
            rest += mine
        elif number in copies:  # two sets of experts in one layer
            return list(tensors), {}
        else:
            copies[number] = first[key]
    return (rest, copies) if len(tensors) - len(rest) > _MANY_TENSORS else (list(tensors), {})


def _with_copies(weights: dict[str, Any], copies: dict[int, int]) -> dict[str, Any]:
    """The weights after `sanitize()`, with the experts that were left out as copies of another layer's."""
    of_layer: dict[int, dict[str, Any]] = {}
    for name, value in weights.items():
        if found := _LAYER.search(name):
            of_layer.setdefault(int(found[1]), {})[f"{name[: found.start(1)]}*{name[found.end(1) :]}"] = value
    complete = dict(weights)
    for layer, other in copies.items():
        if mine := of_layer.get(layer):  # else sanitize() dropped the layer
            for name, value in of_layer.get(other, {}).items():
                if name not in mine:
                    complete[name.replace("*", str(layer), 1)] = value
    return complete
