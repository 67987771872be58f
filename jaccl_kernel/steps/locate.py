"""Where a model is: what the user's word for it means, which nodes have it whole, and which copy counts.

Looks at folders and judges them; moves nothing. `sync.py` acts on it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from jaccl_kernel.cluster import rsync
from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.cluster.survey import Survey
from jaccl_kernel.cluster.tree import Difference, Tree
from jaccl_kernel.errors import InputError, ModelError
from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.far import inspect_heads
from jaccl_kernel.models.resolve import DEMO, resolve

MODELS = "~/models"
"""Where a node keeps its models, unless their place is told."""

HERE = "this machine"
_HERE_NAMES = frozenset({"localhost", "here", HERE})

State = Literal["identical", "different", "incomplete", "missing", "untested"]


@dataclass(frozen=True)
class Wanted:
    """What a user's word for a model means.

    Attributes:
        name: what reports call it.
        dest: the folder that each node shall have: absolute, or `~/…` in its own home.
        origin: the folder on the node that the word was about, where it was another's; else as `dest`.
        here: its folder on this machine, if there is one.
        explicit: the word names that folder: then its content counts, whatever the nodes have.
    """

    name: str
    dest: str
    origin: str
    here: Path | None
    explicit: bool


def understand(model: str, dest: str | None = None, *, elsewhere: bool = False, home: str = "") -> Wanted:
    """What `model` means, and where it belongs on the nodes.

    A bare NAME is `~/models/NAME`. A folder below the home folder belongs to the same place in each node's
    own home. Any other folder that is here, a hub id and the demo model belong to `~/models/NAME`; an
    absolute folder that is not here to the same path everywhere. `dest` overrules.

    Args:
        model: a name, a folder, a hub id in the local cache, or `demo` (which must be made).
        dest: the folder on every node.
        elsewhere: the word is another node's: nothing is looked for here.
        home: that node's home folder.

    Raises:
        InputError: it names nothing, or a folder that cannot be one.
        ModelError: it is neither a folder nor a model in the cache.
    """
    if not model.strip():
        raise InputError("no model was named", fix="Name a folder, a hub id, or `demo`.")
    home = home or str(Path.home())
    if elsewhere:
        here, place, explicit = None, _place_elsewhere(model, home), False
    else:
        here, place, explicit = _place_here(model, home)
    dest = (dest or place).rstrip("/") or "/"
    name = PurePosixPath(rsync.below_home(dest)).name
    if name in ("", "..") or not name.isprintable() or not (dest.startswith(("/", "~/"))):
        raise InputError(f"{dest!r} cannot be a model's folder", fix="Give one as /… or ~/…")
    return Wanted(name, dest, place, here, explicit)


def _place_here(model: str, home: str) -> tuple[Path | None, str, bool]:
    """The folder here (or None), the folder on a node, and whether the word is about this machine."""
    path = Path(model).expanduser()
    if model != DEMO and not path.exists():
        if "/" not in model:
            kept = Path(home) / "models" / model
            return (kept if kept.is_dir() else None), f"{MODELS}/{model}", False
        if model.startswith(("/", "~")):
            return None, in_home(model, home) or model, False
    found = resolve(model)  # demo, a folder, or a hub id in the cache
    if model == DEMO or not path.exists():
        name = found.name if model == DEMO else model.rpartition("/")[2]
        return found, f"{MODELS}/{name}", True
    return found, in_home(str(found), home) or f"{MODELS}/{found.resolve().name}", True


def _place_elsewhere(model: str, home: str) -> str:
    if "/" not in model:
        return f"{MODELS}/{model}"
    if not model.startswith(("/", "~/")):
        raise InputError(
            f"{model!r} does not tell a folder of another node", fix="Give its folder there, as /… or ~/…"
        )
    return in_home(model, home) or model


def in_home(path: str, home: str) -> str | None:
    """A path below a home folder as `~/…`; None for any other."""
    if path.startswith("~/"):
        return path
    below = PurePosixPath(path)
    return f"~/{below.relative_to(home)}" if below.is_relative_to(home) and str(below) != home else None


def is_here(source: str) -> bool:
    """Whether a name for the source means this machine."""
    return source in _HERE_NAMES


@dataclass(frozen=True)
class Copy:
    """One folder of that name, and what it is worth.

    Attributes:
        node: where.
        index: the node's rank; None for this machine where it is no node of the cluster.
        survey: what is there.
        facts: the model, if it is whole.
        trouble: why it is not, or "".
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
    """What a folder is worth: whole only if every file of the index is, as far as headers and sizes tell."""
    if survey.state != "folder":
        trouble = "is not there" if survey.state == "missing" else "is no folder"
        return Copy(node, index, survey, None, trouble)
    sizes = {name: entry.size for name, entry in survey.tree.files.items()}
    try:
        facts = inspect_heads(sizes, survey.heads, where=survey.path)
    except ModelError as error:
        inside = re.sub(rf"^{re.escape(survey.path)}/?", "", error.where)
        return Copy(node, index, survey, None, f"{inside} {error.what}".strip())
    return Copy(node, index, survey, facts, "")


def choose(name: str, copies: Sequence[Copy], *, certain: bool, alone: bool) -> tuple[Copy, ...]:
    """The copies that can be sources, all of one content; the first is the one to compare with.

    Args:
        name: what reports call the model.
        copies: all that could be looked at.
        certain: the first of them counts, whatever the others hold.
        alone: and no other may be a source.

    Raises:
        ModelError: nobody has it whole: why, for each.
        InputError: whole copies differ, and nothing says which one counts.
    """
    whole = [copy for copy in copies if copy.facts]
    if certain and copies:
        reference = copies[0]
        if not reference.facts:
            fix = "Fetch the model again, or name a node that has it whole with --from."
            raise ModelError(reference.trouble, where=_place(reference), fix=fix)
    elif not whole:
        told = "; ".join(f"{_place(copy)} {copy.trouble}" for copy in copies) or "no node could be asked"
        fix = "Put it on one node, or give the folder on this machine that holds it."
        raise ModelError(f"nobody has it whole: {told}", where=name, fix=fix)
    else:
        reference = whole[0]
        if others := [copy for copy in whole if copy.tree.digest != reference.tree.digest]:
            how = "; ".join(f"{copy.node.name} {reference.tree.difference(copy.tree)}" for copy in others)
            what = f"there are different models of that name: against {reference.node.name}, {how}"
            raise InputError(what, where=name, fix="Say which one counts: --from HOST.")
    if alone:
        return (reference,)
    same = [copy for copy in whole if copy.tree.digest == reference.tree.digest]
    return (reference, *(copy for copy in same if copy is not reference))


def state_of(reference: Copy, copy: Copy | None) -> tuple[State, Difference]:
    """How a node's folder stands to the copy that counts; None: it could not be asked."""
    if copy is None:
        return "untested", Difference()
    difference = reference.tree.difference(copy.tree)
    if copy.survey.state != "folder":
        return "missing", Difference()
    if not difference:
        return "identical", difference
    return ("different" if copy.facts else "incomplete"), difference


def _place(copy: Copy) -> str:
    return f"{copy.node.name}:{copy.survey.path}"


def named_nodes(names: Sequence[str], hosts: Sequence[str], source: str) -> Iterator[int]:
    """The ranks that a name for the source could mean: by the node's name, or by its ssh name."""
    for index, (name, host) in enumerate(zip(names, hosts, strict=True)):
        if source in (name, host, host.rpartition("@")[2]):
            yield index
