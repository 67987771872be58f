"""Locates a model: resolves its name, judges each node's copy, and chooses the sources.

Reads folders and changes nothing; `sync.py` acts on the result.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from jaccl_kernel.core.errors import InputError, ModelError
from jaccl_kernel.models.demo import SMOLLM2
from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.headers import inspect_heads
from jaccl_kernel.models.resolve import DEMO, MODELS, resolve
from jaccl_kernel.nodes import rsync
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.survey import Survey
from jaccl_kernel.nodes.tree import Difference, Tree

HERE = "this machine"
_HERE_NAMES = frozenset({"localhost", "here", HERE})

# Each is a whole vocabulary for transformers' AutoTokenizer.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "tiktoken.model",
    "vocab.txt",
    "spiece.model",
)

State = Literal["identical", "different", "incomplete", "missing", "not tested"]


@dataclass(frozen=True)
class ModelTarget:
    """A model as the user named it.

    Attributes:
        name: its name in reports.
        dest: the target folder on each node: absolute, or `~/…` in the node's home folder.
        origin: the folder on the source node, if a node was named as source; else the same as `dest`.
        here: its folder on this machine, if it exists.
        explicit: the user named that folder: its content takes precedence over the nodes' copies.
    """

    name: str
    dest: str
    origin: str
    here: Path | None
    explicit: bool


def resolve_target(
    model: str, dest: str | None = None, *, elsewhere: bool = False, home: str = ""
) -> ModelTarget:
    """Resolve a model's name, and its target folder on the nodes.

    The target of a bare NAME is `~/models/NAME`; of a folder below the home folder, the same path in each
    node's home folder; of any other folder on this machine, a hub id or the demo model, `~/models/NAME`; of
    an absolute path that does not exist on this machine, the same path on every node. `dest` overrides it.

    Args:
        model: a name, a folder, a hub id in the local cache, or `demo` (which must exist).
        dest: the target folder on every node.
        elsewhere: the source is another node, so this machine is not searched.
        home: that node's home folder.

    Raises:
        InputError: the name is empty, or the target folder is invalid.
        ModelError: it is neither a folder nor a model in the cache.
    """
    if not model.strip():
        raise InputError("the model name is empty", fix="Name a folder, a hub id, or `demo`.")
    home = home or str(Path.home())
    if elsewhere:
        here, place, explicit = None, _place_elsewhere(model, home), False
    else:
        here, place, explicit = _place_here(model, home)
    dest = (dest or place).rstrip("/") or "/"
    name = PurePosixPath(rsync.relative_to_home(dest)).name
    if name in ("", "..") or not name.isprintable() or not (dest.startswith(("/", "~/"))):
        raise InputError(f"invalid model folder {dest!r}", fix="Use a path such as /… or ~/…")
    return ModelTarget(name, dest, place, here, explicit)


def _place_here(model: str, home: str) -> tuple[Path | None, str, bool]:
    """Return the folder here (or None), the folder on a node, and whether the name is a folder here."""
    path = Path(model).expanduser()
    if model != DEMO and not path.exists():
        if "/" not in model:
            folder = Path(home) / "models" / model
            return (folder if folder.is_dir() else None), f"{MODELS}/{model}", False
        if model.startswith(("/", "~")):
            return None, in_home(model, home) or model, False
    found = resolve(model)  # demo, a folder, or a hub id in the cache
    if model == DEMO or not path.exists():
        name = found.name if model == DEMO else model.rpartition("/")[2]
        return found, f"{MODELS}/{name}", True
    return found, in_home(str(found), home) or f"{MODELS}/{found.resolve().name}", True


def on_nodes(model: str) -> str:
    """Return the model's name for the ranks, each of which resolves it on its own node and home folder.

    The same folders as `resolve_target`: a folder below this user's home becomes `~/…`, and a bare NAME
        becomes
    `~/models/NAME`. Any other folder is expected at the same path on every node. A hub id is unchanged: each
    node searches its own cache, then `~/models`.

    Args:
        model: a name, a folder, a hub id, or `demo`.
    """
    if model == DEMO:
        return f"{MODELS}/{SMOLLM2.name}"
    home, path = str(Path.home()), Path(model).expanduser()
    if "/" in model and not model.startswith(("/", "~")) and not path.exists():
        return model
    here, place, named = _place_here(model, home)
    return str(here) if named and in_home(str(here), home) is None else place


def _place_elsewhere(model: str, home: str) -> str:
    if "/" not in model:
        return f"{MODELS}/{model}"
    if not model.startswith(("/", "~/")):
        raise InputError(
            f"{model!r} is not a folder on another node", fix="Name its folder there, as /… or ~/…"
        )
    return in_home(model, home) or model


def in_home(path: str, home: str) -> str | None:
    """Return a path below a home folder as `~/…`; None for any other."""
    if path.startswith("~/"):
        return path
    below = PurePosixPath(path)
    return f"~/{below.relative_to(home)}" if below.is_relative_to(home) and str(below) != home else None


def is_here(source: str) -> bool:
    """Return whether a source name means this machine."""
    return source in _HERE_NAMES


@dataclass(frozen=True)
class Copy:
    """One copy of the model, and its state.

    Attributes:
        node: its node.
        index: the node's rank; None for this machine if it is not a node of the cluster.
        survey: the survey of the folder.
        facts: the model's facts, if the copy is complete.
        trouble: why it is incomplete, or "".
    """

    node: Node
    index: int | None
    survey: Survey
    facts: ModelFacts | None
    trouble: str

    @property
    def tree(self) -> Tree:
        """Its files."""
        return self.survey.tree


def judge(node: Node, index: int | None, survey: Survey) -> Copy:
    """Judge a folder: complete if every file of the index is, by headers and sizes."""
    if survey.state != "folder":
        trouble = "does not exist" if survey.state == "missing" else "is not a folder"
        return Copy(node, index, survey, None, trouble)
    sizes = {name: entry.size for name, entry in survey.tree.files.items()}
    try:
        facts = inspect_heads(sizes, survey.heads, where=survey.path)
    except ModelError as error:
        inside = re.sub(rf"^{re.escape(survey.path)}/?", "", error.where)
        return Copy(node, index, survey, None, f"{inside} {error.what}".strip())
    if not facts.problem and (lacking := _lacking(sizes)):
        return Copy(node, index, survey, None, lacking)
    return Copy(node, index, survey, facts, "")


def _lacking(sizes: Mapping[str, int]) -> str:
    """What loading needs besides the weights and config.json: a tokenizer that transformers reads."""
    if any(sizes.get(name) for name in _TOKENIZERS) or any(
        size and "/" not in name and name.endswith(".tiktoken") for name, size in sizes.items()
    ):
        return ""
    if sizes.get("vocab.json"):
        return "" if sizes.get("merges.txt") else "merges.txt, a part of the tokenizer, is missing or empty"
    empty = [name for name in (*_TOKENIZERS, "vocab.json") if name in sizes]
    if empty:
        return f"{empty[0]} is empty"
    return f"the tokenizer is missing: {_TOKENIZERS[0]}, {_TOKENIZERS[1]}, or vocab.json with merges.txt"


def choose(name: str, copies: Sequence[Copy], *, certain: bool, alone: bool) -> tuple[Copy, ...]:
    """Return the possible sources, all with the same content; the first is the reference.

    Args:
        name: the model's name in reports.
        copies: all copies that could be inspected.
        certain: the first copy is the reference, regardless of the others.
        alone: no other copy may be a source.

    Raises:
        ModelError: no node has a complete copy: why, for each; or mlx-lm cannot load the reference.
        InputError: complete copies differ, and none was named as the reference.
    """
    complete = [copy for copy in copies if copy.facts]
    if certain and copies:
        reference = copies[0]
        if not reference.facts:
            other = _from([copy for copy in complete if copy is not reference])
            fix = "Download the model again" + (f", or name a complete copy: {other}." if other else ".")
            raise ModelError(reference.trouble, where=_place(reference), fix=fix)
    elif not complete:
        why = "; ".join(f"{_place(copy)} {copy.trouble}" for copy in copies) or "no node answered"
        fix = "Copy it to one node, or name its folder on this machine."
        raise ModelError(f"no node has a complete copy: {why}", where=name, fix=fix)
    else:
        reference = complete[0]
        if others := [copy for copy in complete if copy.tree.digest != reference.tree.digest]:
            how = "; ".join(f"{copy.node.name} {reference.tree.difference(copy.tree)}" for copy in others)
            what = f"the nodes have different models of that name: compared with {reference.node.name}, {how}"
            fix = f"Name the copy to use: {_from(complete)}."
            raise InputError(what, where=name, fix=fix)
    if reference.facts and reference.facts.problem:
        raise ModelError(reference.facts.problem, where=_place(reference), fix=reference.facts.fix)
    if alone:
        return (reference,)
    same = [copy for copy in complete if copy.tree.digest == reference.tree.digest]
    return (reference, *(copy for copy in same if copy is not reference))


def state_of(reference: Copy, copy: Copy | None) -> tuple[State, Difference]:
    """Compare a node's folder with the reference; None for a node that did not answer."""
    if copy is None:
        return "not tested", Difference()
    difference = reference.tree.difference(copy.tree)
    if copy.survey.state != "folder":
        return "missing", Difference()
    if not difference:
        return "identical", difference
    return ("different" if copy.facts else "incomplete"), difference


def _from(copies: Sequence[Copy]) -> str:
    """The options that name these copies; this machine is `localhost`."""
    names = ("localhost" if copy.node.name == HERE else copy.node.name for copy in copies)
    return " or ".join(f"--from {name}" for name in names)


def _place(copy: Copy) -> str:
    return f"{copy.node.name}:{copy.survey.path}"


def named_nodes(names: Sequence[str], hosts: Sequence[str], source: str) -> Iterator[int]:
    """Yield the ranks that match a source name: by the node's name, or by its ssh name."""
    for index, (name, host) in enumerate(zip(names, hosts, strict=True)):
        if source in (name, host, host.rpartition("@")[2]):
            yield index
