"""Stages a copy in a hidden sibling folder, which is renamed to its final name when it is complete.

The existing folder of that name is unchanged until then. Its correct files are hard-linked to the new folder,
and rsync uses the others as a basis. `transfer.py` sends the files.
"""

from collections.abc import Collection
from dataclasses import dataclass

from jaccl_kernel.core.errors import NodeError
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.survey import Survey, sibling
from jaccl_kernel.nodes.tree import Tree

DEADLINE_S = 600.0
"""For links, renames and removals, and for local copies of basis files."""

WEIGHTS = ".safetensors"
"""Extra files with this suffix are deleted together with the old folder: they are large, mlx-lm would load
them, and users do not edit them. All other extra files are kept in a separate folder."""

# `confine FOLDER NAME` ends the script unless NAME lies in the hidden FOLDER. No part of it may be a link to
# somewhere else: such a link is removed, what it points to is not touched.
_CONFINE = r"""
refuse() {
    printf 'refused: %s\n' "$1" >&2
    exit 1
}
confine() {
    case /$2/ in
        *//* | */./* | */../*) refuse "the name $2 leads out of $1" ;;
    esac
    [ ! -L "$1" ] || refuse "$1 is a link"
    part=$2
    while [ "$part" != "${part%/*}" ]; do
        part=${part%/*}
        [ ! -L "$1/$part" ] || rm -f -- "$1/$part" || exit
    done
}
"""

# $1 the old folder, $2 the partial one, $3 a leftover of an earlier commit. stdin: tab-separated words.
_PREPARE = (
    _CONFINE
    + r"""
old=$1 partial=$2
[ ! -L "$partial" ] || refuse "$partial is a link"
mkdir -p -- "$partial" || exit
[ ! -e "$old" ] || rm -rf -- "$3"
place() {
    mkdir -p -- "$(dirname -- "$partial/$1")" && rm -rf -- "$partial/$1"
}
while IFS='	' read -r verb name from; do
    confine "$partial" "$name"
    case $verb in
        drop) rm -rf -- "$partial/$name" ;;
        link)
            place "$name" || exit
            ln -L -- "$old/$from" "$partial/$name" 2>/dev/null || cp -p -- "$old/$from" "$partial/$name"
            ;;
        basis) place "$name" && cp -- "$old/$from" "$partial/$name" ;;
        own)
            # rsync writes in place, so the file must not be a hard link to a file of the old folder
            [ ! -L "$partial/$name" ] || rm -f -- "$partial/$name"
            [ -z "$(find "$partial/$name" -links +1 2>/dev/null)" ] ||
                { cp -p -- "$partial/$name" "$partial/.own" && mv -f -- "$partial/.own" "$partial/$name"; }
            ;;
    esac || exit
done
"""
)

# $1 the folder, $2 the partial one, $3 the temporary name of the old one, $4 the folder for its extra files.
# stdin: their names. Only a crash of the machine can interrupt the two renames; then the folder is missing
# rather than incomplete, and the next copy finds the complete partial folder.
_COMMIT = (
    _CONFINE
    + r"""
folder=$1 partial=$2 old=$3 aside=$4
if [ -e "$folder" ]; then
    while IFS= read -r name; do
        confine "$aside" "$name"
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
)


@dataclass(frozen=True)
class StagingPlan:
    """The preparation of the partial folder before the remaining files are sent.

    Attributes:
        ops: lines for the script: a verb and its names.
        in_place: the files that are complete.
        done: the size of these files.
        needed: bytes that the remaining files need on the volume.
    """

    ops: tuple[tuple[str, ...], ...]
    in_place: frozenset[str]
    done: int
    needed: int


def plan(wanted: Tree, existing: Survey) -> StagingPlan:
    """Plan the preparation from the existing files to `wanted`. Pure.

    A file in the partial folder with the right size and time counts as complete, since rsync sets the time
    last, unless it may be a copy of the old file with another content. All hashes are compared in the end.
    """
    ops: list[tuple[str, ...]] = [
        ("drop", name) for name in sorted(set(existing.partial.files) - set(wanted.files))
    ]
    by_hash = {entry.sha256: name for name, entry in existing.tree.files.items() if entry.sha256}
    in_place: set[str] = set()
    needed = 0
    for name, entry in sorted(wanted.files.items()):
        started, old = existing.partial.files.get(name), existing.tree.files.get(name)
        if entry.sha256 and (twin := by_hash.get(entry.sha256)):
            in_place.add(name)
            ops.append(("link", name, twin))
        elif started and started.same_size_and_time(entry) and not (old and started.same_size_and_time(old)):
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
    return StagingPlan(tuple(ops), frozenset(in_place), done, needed)


async def prepare(node: Node, existing: Survey, steps: StagingPlan) -> str:
    """Prepare the partial folder for the remaining files and return its path.

    Raises:
        NodeError: the partial folder cannot be created: permissions, a full disk, or another file of that
            name.
    """
    if existing.state == "taken":
        fix = "Move it away, or choose another folder with --dest."
        raise NodeError(f"{existing.path} exists, but is not a folder", where=node.where, fix=fix)
    partial = sibling(existing.path)
    lines = "".join("\t".join(op) + "\n" for op in steps.ops).encode()
    argv = ["/bin/sh", "-c", _PREPARE, "sh", existing.path, partial, sibling(existing.path, "old")]
    await node.run(argv, input=lines, deadline=DEADLINE_S)
    return partial


async def discard(node: Node, existing: Survey, names: Collection[str]) -> None:
    """Remove damaged files from the partial folder, so that they are sent again."""
    await prepare(node, existing, StagingPlan(tuple(("drop", name) for name in names), frozenset(), 0, 0))


async def commit(node: Node, existing: Survey, wanted: Tree) -> str | None:
    """Rename the partial folder to its final name and remove the old folder.

    Returns:
        The folder with the extra files of the old folder, or None if there are none.

    Raises:
        NodeError: the rename failed; the old folder is unchanged.
    """
    extra = [name for name in set(existing.tree.files) - set(wanted.files) if not name.endswith(WEIGHTS)]
    extra_folder = sibling(existing.path, "replaced")
    lines = "".join(f"{name}\n" for name in extra).encode()
    paths = [existing.path, sibling(existing.path), sibling(existing.path, "old"), extra_folder]
    await node.run(["/bin/sh", "-c", _COMMIT, "sh", *paths], input=lines, deadline=DEADLINE_S)
    return extra_folder if extra else None
