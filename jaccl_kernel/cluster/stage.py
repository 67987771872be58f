"""A folder that becomes visible under its name only when it is whole: made in a hidden sibling, then renamed.

The old folder of that name stays as it is until then, and gives what it has: files that are right already are
hard-linked, others serve rsync as a basis. What is sent, and whether it arrived, is not known here.
"""

from collections.abc import Collection
from dataclasses import dataclass

from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.cluster.survey import Survey, sibling
from jaccl_kernel.cluster.tree import Tree
from jaccl_kernel.errors import NodeError

DEADLINE_S = 600.0
"""For links, renames and removals, and for copies of basis files within one disk."""

WEIGHTS = ".safetensors"
"""Besides what is wanted, files of this kind are dropped with the old folder: no one edits them by hand, they
are large, and mlx-lm would load them. All others are set aside."""

# $1 the old folder, $2 the partial one. stdin: lines of tab-separated words.
_PREPARE = r"""
old=$1 partial=$2
mkdir -p -- "$partial" || exit
[ ! -e "$old" ] || rm -rf -- "$3"
place() {
    mkdir -p -- "$(dirname -- "$partial/$1")" && rm -rf -- "$partial/$1"
}
while IFS='	' read -r verb name from; do
    case $verb in
        drop) rm -rf -- "$partial/$name" ;;
        link)
            place "$name" || exit
            ln -L -- "$old/$from" "$partial/$name" 2>/dev/null || cp -p -- "$old/$from" "$partial/$name"
            ;;
        basis) place "$name" && cp -- "$old/$from" "$partial/$name" ;;
        own)
            # rsync writes in place: a link that an earlier run made must not lead into the old folder
            [ -z "$(find "$partial/$name" -links +1)" ] ||
                { cp -p -- "$partial/$name" "$partial/.own" && mv -f -- "$partial/.own" "$partial/$name"; }
            ;;
    esac || exit
done
"""

# $1 the folder, $2 the partial one, $3 where the old one goes meanwhile, $4 where files go that only it had.
# stdin: the names of those. Between the two renames nothing can stop us but the machine's end; then the name
# is missing, not half, and the next copy finds the partial folder whole.
_COMMIT = r"""
folder=$1 partial=$2 old=$3 aside=$4
if [ -e "$folder" ]; then
    while IFS= read -r name; do
        mkdir -p -- "$(dirname -- "$aside/$name")" || exit
        rm -f -- "$aside/$name"
        ln -L -- "$folder/$name" "$aside/$name" 2>/dev/null || cp -p -- "$folder/$name" "$aside/$name" || exit
    done
    rm -rf -- "$old" || exit
    trap "" HUP INT TERM
    mv -- "$folder" "$old" || exit
    mv -- "$partial" "$folder" || { mv -- "$old" "$folder"; exit 1; }
    trap - HUP INT TERM
else
    mv -- "$partial" "$folder" || exit
fi
rm -rf -- "$old"
"""


@dataclass(frozen=True)
class Plan:
    """What has to happen in the partial folder before, and while, the rest is sent.

    Attributes:
        ops: lines for the script: a verb and its names.
        in_place: the files that need not be sent.
        done: their bytes.
        needed: bytes that the volume must still take.
    """

    ops: tuple[tuple[str, ...], ...]
    in_place: frozenset[str]
    done: int
    needed: int


def plan(wanted: Tree, there: Survey) -> Plan:
    """How to come from what is there to `wanted`; pure.

    A file of the partial folder with the wanted size and time counts as arrived, for rsync sets the time
    last, unless it may be the old folder's with another content. All hashes are compared in the end.
    """
    ops: list[tuple[str, ...]] = [
        ("drop", name) for name in sorted(set(there.partial.files) - set(wanted.files))
    ]
    by_hash = {entry.sha256: name for name, entry in there.tree.files.items() if entry.sha256}
    in_place: set[str] = set()
    needed = 0
    for name, entry in sorted(wanted.files.items()):
        started, old = there.partial.files.get(name), there.tree.files.get(name)
        if entry.sha256 and (twin := by_hash.get(entry.sha256)):
            in_place.add(name)
            ops.append(("link", name, twin))
        elif started and started.same_stamp(entry) and not (old and started.same_stamp(old)):
            in_place.add(name)
        elif started is None and old:
            ops.append(("basis", name, name))
            needed += max(entry.size, old.size)
        elif started is None:
            needed += entry.size
        else:
            ops.append(("own", name))
            needed += max(entry.size - started.size, 0)
    done = sum(wanted.files[name].size for name in in_place)
    return Plan(tuple(ops), frozenset(in_place), done, needed)


async def prepare(node: Node, there: Survey, steps: Plan) -> str:
    """Make the partial folder ready for what is still to come; its path.

    Raises:
        NodeError: it cannot be made: no right to write there, a full disk, something else of that name.
    """
    if there.state == "taken":
        fix = "Move it away, or choose another folder with --dest."
        raise NodeError(f"{there.path} is no folder, but it is there", where=node.where, fix=fix)
    partial = sibling(there.path)
    lines = "".join("\t".join(op) + "\n" for op in steps.ops).encode()
    argv = ["/bin/sh", "-c", _PREPARE, "sh", there.path, partial, sibling(there.path, "old")]
    await node.run(argv, input=lines, deadline=DEADLINE_S)
    return partial


async def discard(node: Node, there: Survey, names: Collection[str]) -> None:
    """Remove files of the partial folder that arrived damaged, so that they are sent anew."""
    await prepare(node, there, Plan(tuple(("drop", name) for name in names), frozenset(), 0, 0))


async def commit(node: Node, there: Survey, wanted: Tree) -> str | None:
    """Give the partial folder its name, in the old one's place.

    Returns:
        Where files are now that only the old folder had, or None if it had none.

    Raises:
        NodeError: it could not be renamed; the old folder is still there.
    """
    kept = [name for name in set(there.tree.files) - set(wanted.files) if not name.endswith(WEIGHTS)]
    aside = sibling(there.path, "replaced")
    lines = "".join(f"{name}\n" for name in kept).encode()
    paths = [there.path, sibling(there.path), sibling(there.path, "old"), aside]
    await node.run(["/bin/sh", "-c", _COMMIT, "sh", *paths], input=lines, deadline=DEADLINE_S)
    return aside if kept else None
