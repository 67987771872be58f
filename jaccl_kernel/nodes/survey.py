"""Lists and hashes the files in a folder on a node with standard tools: one read-only script, one round trip.

Uses `find`, `stat`, `sha256sum`/`shasum`/`openssl` and `df` of macOS or Linux. The node caches hashes in a
file in the user's cache folder, by the file's device, inode, size, modification time and inode change time: a
second survey of 100 GB reads no data, a modified file is read again, and a folder may be renamed. `fresh`
ignores the cache.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from jaccl_kernel.core.errors import CommandTimeout, NodeError
from jaccl_kernel.nodes import rsync
from jaccl_kernel.nodes.node import SEARCH_PATH, Node
from jaccl_kernel.nodes.tree import FileEntry, Tree, is_safe

HASH_DEADLINE_S = 3 * 3600.0
"""For hashing everything: a terabyte at 100 MB/s, which is a slow disk."""

LIST_DEADLINE_S = 60.0
"""For names, sizes and times only; a disk that takes longer does not respond."""

FILE_DEADLINE_S = 1800.0
"""Between two hashed files: four files of 20 GB in parallel, at half the speed of a slow disk."""

PARALLEL_FILES = 4  # to hash in parallel: one stream is slower than the disk of any Mac
_MAX_OUTPUT = 256 << 20  # bytes; the headers of 200 shards are a few MB

State = Literal["folder", "missing", "taken"]
Hashes = Literal["cached", "fresh", "none"]
OnHash = Callable[[int, int], None]
"""Called with (bytes hashed, bytes to hash)."""

# $1 the folder, $2 hashes (cached, fresh or none), $3 the number of parallel files, $4 yes for headers, $5
# additional PATH. Each output line is a word, a slash, and the rest; the line of a file is
# `file/HASH/DEVICE:INODE:SIZE:MTIME:CTIME/./NAME`.
_SCRIPT = r"""
set -u
LC_ALL=C; export LC_ALL
PATH="$PATH:$5"; export PATH
folder=$1 hashes=$2 jobs=$3 heads=$4
if stat -c %s / >/dev/null 2>&1; then
    STAT='stat -L -c %d:%i:%s:%.9Y:%.9Z' NAME=%n
else  # BSD stat, where %n is a line break
    STAT='stat -L -f %d:%i:%z:%Fm:%Fc' NAME=%N
fi
for SUM in sha256sum 'shasum -a 256' 'openssl dgst -sha256 -r' ''; do
    command -v "${SUM%% *}" >/dev/null 2>&1 && break
done
case ${JACCL_CACHE:-}:$(uname) in
    /*) CACHE=$JACCL_CACHE ;;
    *:Darwin) CACHE=$HOME/Library/Caches/jaccl-kernel ;;
    *) CACHE=$HOME/.cache/jaccl-kernel ;;
esac
[ "$hashes" = none ] || mkdir -p -- "$CACHE" 2>/dev/null
CACHE=$CACHE/sha256; export CACHE STAT SUM
FRESH=$hashes; export FRESH
list() {
    (cd -- "$1" && find -L . -name '.?*' -prune -o -type f -print0 | xargs -0 $STAT/$NAME) 2>/dev/null
}
printf 'home/%s\n' "$HOME"
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
if [ -d "$folder" ]; then
    folder=$(cd -- "$folder" && pwd -P)
    printf 'folder/%s\n' "$folder"
elif [ -e "$folder" ] || [ -L "$folder" ]; then
    printf 'taken/%s\n' "$folder"
else
    printf 'missing/%s\n' "$folder"
fi
near=$folder
while [ ! -d "$near" ]; do near=$(dirname -- "$near"); done
printf 'df/%s\n' "$(df -kP "$near" | tr '\n' ' ')"
partial=$(dirname -- "$folder")/.$(basename -- "$folder").partial
[ ! -d "$partial" ] || list "$partial" | sed 's,^,part/-/,'
if [ -d "$folder" ]; then
    cd -- "$folder" || exit 1
    odd=$(find -L . -name '.?*' -prune -o -name '*
*' -print 2>/dev/null | head -n 2)
    if [ -n "$odd" ]; then
        printf 'odd/%s\nend/\n' "$(printf %s "$odd" | tr '\n' '?')"
        exit
    fi
    work=$(mktemp -d) || exit 1
    trap 'rm -rf "$work"' EXIT
    trap 'exit 143' HUP INT TERM
    list . | awk '
        BEGIN {
            if (ENVIRON["FRESH"] == "cached")
                while ((getline line < ENVIRON["CACHE"]) > 0) {
                    split(line, word, " ")
                    sum[word[1]] = word[2]
                }
        }
        {
            key = substr($0, 1, index($0, "/./") - 1)
            print ((key in sum) ? sum[key] : "-") "/" $0
        }' >"$work/all"
    if [ "$hashes" = none ]; then
        sed 's,^,file/,' "$work/all"
    elif [ -z "$SUM" ]; then
        echo 'no-hash/'
    else
        grep -v '^-/' "$work/all" | sed 's,^,file/,'
        grep '^-/' "$work/all" | sed 's,^-/,,' >"$work/todo"
        printf 'todo/%s\n' "$(awk -F: '{ bytes += $3 } END { printf "%.0f", bytes }' "$work/todo")"
        [ ! -s "$work/todo" ] || tr '\n' '\0' <"$work/todo" | xargs -0 -n 1 -P "$jobs" sh -c '
            key=${1%%/*} name=${1#*/}
            sum=$($SUM <"$name") || sum=unreadable
            sum=${sum%% *}
            if [ "$($STAT "$name")" != "$key" ]; then
                sum=changing
            elif [ "$sum" != unreadable ]; then
                printf "%s %s\n" "$key" "$sum" >>"$CACHE"
            fi
            printf "file/%s/%s/%s\n" "$sum" "$key" "$name"' sh 2>/dev/null
        # keep the newest entries
        if [ "$(wc -l <"$CACHE")" -gt 20000 ]; then
            tail -n 10000 "$CACHE" >"$CACHE.$$" && mv -f "$CACHE.$$" "$CACHE"
        fi 2>/dev/null
    fi
    if [ "$heads" = yes ]; then
        for name in config.json hf_quant_config.json model.safetensors.index.json; do
            [ ! -f "$name" ] || printf 'head/%s/%s\n' "$name" "$(base64 <"$name" | tr -d '\n')"
        done
        for name in model*.safetensors; do
            [ -f "$name" ] || continue
            length=$(od -A n -t u8 -N 8 <"$name" | tr -d ' ')
            [ "${length:-0}" -le 100000000 ] 2>/dev/null || length=0
            head=$(head -c $((${length:-0} + 8)) <"$name" | base64 | tr -d '\n')
            printf 'head/%s/%s\n' "$name" "$head"
        done
    fi
fi
echo end/
"""

_STATES: tuple[State, ...] = ("folder", "missing", "taken")
_FILE = re.compile(
    r"(?P<sum>[0-9a-f]{64}|-|changing|unreadable)"
    r"/\d+:\d+:(?P<size>\d+):(?P<mtime>-?\d+)[.,]?\d*:-?\d+[.,]?\d*/\./(?P<name>.+)"
)


@dataclass(frozen=True)
class Survey:
    """One folder of one node.

    Attributes:
        path: the absolute path, with symbolic links resolved if the folder exists.
        state: whether it is a folder, is missing, or is something else ("taken").
        home: the node's home folder.
        free: free bytes on its volume; None if unknown.
        tree: the files in the folder.
        partial: the files in the hidden sibling folder of an unfinished copy; never hashed.
        heads: if requested, the first bytes of the top-level config, index and safetensors files (a complete
            JSON file, a weight file up to the end of its header).
    """

    path: str
    state: State
    home: str
    free: int | None
    tree: Tree = field(default_factory=Tree)
    partial: Tree = field(default_factory=Tree)
    heads: Mapping[str, bytes] = field(default_factory=dict)


def sibling(folder: str, kind: str = "partial") -> str:
    """The hidden sibling of a folder, such as `.NAME.partial`, which has a copy until it is complete."""
    path = PurePosixPath(folder)
    return str(path.with_name(f".{path.name}.{kind}"))


async def survey(
    node: Node,
    folder: str,
    *,
    hashes: Hashes = "cached",
    heads: bool = False,
    on_hash: OnHash = lambda done, total: None,
) -> Survey:
    """Survey a folder on a node; this changes only the hash cache on the node.

    Args:
        node: the node.
        folder: an absolute path, or `~/…`.
        hashes: "cached" reuses hashes of unmodified files, "fresh" hashes every file, "none" skips hashes.
        heads: whether to read the headers of the weight files.
        on_hash: called with the progress of the hashing, file by file.

    Raises:
        NodeError: the node is unreachable or has no hash tool, or a file changes during the survey, is
            unreadable, or has a name with a line break.
        InputError: the path is invalid.
    """
    path = rsync.relative_to_home(folder)
    progress = _HashProgress(on_hash)
    now = asyncio.get_running_loop().time
    timeout = LIST_DEADLINE_S

    def on_line(line: str) -> None:
        nonlocal timeout
        if line.startswith("todo/"):  # the listing is complete: each following line is a hashed file
            timeout = FILE_DEADLINE_S
        limit.reschedule(now() + timeout)
        progress.line(line)

    try:
        async with asyncio.timeout(timeout) as limit:
            done = await node.script(
                _SCRIPT,
                *(path, hashes, str(PARALLEL_FILES), "yes" if heads else "no", ":".join(SEARCH_PATH)),
                deadline=LIST_DEADLINE_S if hashes == "none" else HASH_DEADLINE_S,
                max_output=_MAX_OUTPUT,
                on_line=on_line,
            )
    except TimeoutError as error:
        what = f"the survey of {folder} made no progress for {timeout:g} s and was stopped"
        fix = (
            "Check that the disk is connected and responds (network volumes can hang), or use another folder."
        )
        raise CommandTimeout(what, where=node.where, fix=fix) from error
    return parse_survey(done.stdout, node.where)


class _HashProgress:
    """Counts the hashed bytes."""

    def __init__(self, on_hash: OnHash) -> None:
        self._on_hash = on_hash
        self._done = 0
        self._total: int | None = None

    def line(self, line: str) -> None:
        word, _, rest = line.partition("/")
        if word == "todo" and rest.isdigit():
            self._total = int(rest)
        elif word == "file" and self._total and (found := _FILE.fullmatch(rest)):
            self._done += int(found["size"])
            self._on_hash(self._done, self._total)


def parse_survey(text: str, where: str) -> Survey:
    """Parse the output of the script.

    Raises:
        NodeError: the output is incomplete, or a file cannot be copied safely.
    """
    values: dict[str, str] = {}
    files: dict[str, FileEntry] = {}
    partial: dict[str, FileEntry] = {}
    heads: dict[str, bytes] = {}
    for line in text.split("\n"):
        word, _, rest = line.partition("/")
        if word == "file":
            _add_file(files, rest, where)
        elif word == "part":
            _add_file(partial, rest, where)
        elif word == "head":
            name, _, content = rest.partition("/")
            heads[name] = _decode(content, where)
        else:
            values[word] = rest
    states = [state for state in _STATES if state in values]
    if "end" not in values or not states:
        raise NodeError("the output of the folder survey is incomplete", where=where, fix="Try again.")
    if "no-hash" in values:
        fix = "Install one of them: macOS includes shasum, Linux sha256sum."
        raise NodeError("none of sha256sum, shasum and openssl is installed", where=where, fix=fix)
    if odd := values.get("odd"):
        raise _unsafe(odd.removeprefix("./"), where)
    state = states[0]
    if not _is_folder_path(values[state]):
        fix = "Choose a folder below the root, with a printable name, with --dest."
        raise NodeError(f"unsupported folder: {values[state]!r}", where=where, fix=fix)
    return Survey(
        path=values[state],
        state=state,
        home=values.get("home", ""),
        free=free_bytes(f" {values.get('df', '')}"),
        tree=Tree(files),
        partial=Tree(partial),
        heads=heads,
    )


def _add_file(files: dict[str, FileEntry], line: str, where: str) -> None:
    found = _FILE.fullmatch(line)
    if found is None or not is_safe(found["name"]):
        raise _unsafe(line.rpartition("/./")[2], where)
    name, digest = found["name"], found["sum"]
    if digest in ("changing", "unreadable"):
        why = "changed during the survey" if digest == "changing" else "is unreadable"
        fix = "Try again when no process writes to it." if digest == "changing" else "Check its permissions."
        raise NodeError(f"{name} {why}", where=where, fix=fix)
    known = None if digest == "-" else digest
    files[name] = FileEntry(int(found["size"]), int(found["mtime"]), known)


def _is_folder_path(path: str) -> bool:
    """Whether it is absolute, not the root, and without a part that leads up or hides the end."""
    root, *parts = path.split("/")
    return not root and path.isprintable() and bool(parts) and not {"", ".", ".."} & set(parts)


def _unsafe(name: str, where: str) -> NodeError:
    fix = "Rename the file: no line break, no control character, and no part that starts with a dot."
    return NodeError(f"unsupported file name: {name!r}", where=where, fix=fix)


def _decode(content: str, where: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise NodeError(
            "the output of the folder survey is damaged", where=where, fix="Try again."
        ) from error


def free_bytes(text: str) -> int | None:
    """The free bytes of a folder's volume, from the output of `df -kP FOLDER`."""
    row = re.search(r"\s\d+\s+\d+\s+(\d{1,18})\s+\d+%", text, re.ASCII)
    return int(row[1]) * 1024 if row else None
