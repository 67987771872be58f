"""What a folder on a node holds, hashed there with stock tools: one read-only script, one round trip.

Knows `find`, `stat`, `sha256sum`/`shasum`/`openssl` and `df` of macOS and of Linux; nothing of models. A hash
is kept on the node, in a file of the user's cache folder, under the file's device, inode, size, time of
change and time of inode change: a second look at 100 GB reads no data, a file that was touched in any way is
read again, and a folder may be renamed. `fresh` reads everything anew.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from jaccl_kernel.cluster import parse, rsync
from jaccl_kernel.cluster.commands import SEARCH_PATH
from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.cluster.tree import FileEntry, Tree
from jaccl_kernel.errors import CommandTimeout, NodeError

HASH_DEADLINE_S = 3 * 3600.0
"""For hashing everything: a terabyte at 100 MB/s, a slow disk's pace."""

LOOK_DEADLINE_S = 60.0
"""For names, sizes and times alone; a disk that does not tell them by then does not answer."""

FILE_DEADLINE_S = 1800.0
"""Without a word while files are hashed: four of 20 GB side by side, at half a slow disk's pace."""

AT_ONCE = 4  # files hashed side by side: one stream is slower than the disk of any Mac
_MAX_OUTPUT = 256 << 20  # bytes; the heads of 200 shards are a few MB

State = Literal["folder", "missing", "taken"]
Hashes = Literal["cached", "fresh", "none"]
OnHash = Callable[[int, int], None]
"""Told (bytes hashed, bytes to hash)."""

# $1 the folder, $2 hashes (cached, fresh or none), $3 how many at once, $4 yes for heads, $5 more PATH. Each
# line of the answer is a word, a slash, and the rest; a file's is
# `file/HASH/DEVICE:INODE:SIZE:MTIME:CTIME/./NAME`.
_SCRIPT = r"""
set -u
LC_ALL=C; export LC_ALL
PATH="$PATH:$5"; export PATH
folder=$1 hashes=$2 jobs=$3 heads=$4
if stat -c %s / >/dev/null 2>&1; then
    STAT='stat -L -c %d:%i:%s:%.9Y:%.9Z' NAME=%n
else  # BSD's, where %n is a line break
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
        # the newest entries win, and stay
        if [ "$(wc -l <"$CACHE")" -gt 20000 ]; then
            tail -n 10000 "$CACHE" >"$CACHE.$$" && mv -f "$CACHE.$$" "$CACHE"
        fi 2>/dev/null
    fi
    if [ "$heads" = yes ]; then
        for name in config.json model.safetensors.index.json; do
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
        path: absolute; of a folder without symbolic links in it.
        state: it is a folder, or there is none, or something else has that name.
        home: the node's home folder.
        free: bytes free on the volume where it is or would be; None if the node does not say.
        tree: its files.
        partial: the files of the hidden sibling that an unfinished copy left; never hashed.
        heads: of top-level config, index and safetensors files: the first bytes (a JSON file whole, a weight
            file up to the end of its header), if they were asked for.
    """

    path: str
    state: State
    home: str
    free: int | None
    tree: Tree = field(default_factory=Tree)
    partial: Tree = field(default_factory=Tree)
    heads: Mapping[str, bytes] = field(default_factory=dict)


def sibling(folder: str, kind: str = "partial") -> str:
    """The hidden sibling of a folder: `.NAME.partial`, where a copy grows until it is whole."""
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
    """Look at a folder of a node; it changes nothing there but the cache of hashes.

    Args:
        node: where.
        folder: absolute, or `~/…`.
        hashes: take known hashes for files that nothing touched; read all anew; or do without.
        heads: read the heads of the weight files too.
        on_hash: told how far the hashing is, file by file.

    Raises:
        NodeError: the node cannot be reached or asked, has nothing to hash with, or a file there changes
            while it is read, may not be read, or has a name with a line break.
        InputError: it is no folder's name.
    """
    path = rsync.below_home(folder)
    hashed = _HashMeter(on_hash)
    now = asyncio.get_running_loop().time
    silence = LOOK_DEADLINE_S

    def on_line(line: str) -> None:
        nonlocal silence
        if line.startswith("todo/"):  # the listing is there: from now on, a line is a file hashed
            silence = FILE_DEADLINE_S
        patience.reschedule(now() + silence)
        hashed.line(line)

    try:
        async with asyncio.timeout(silence) as patience:
            done = await node.script(
                _SCRIPT,
                *(path, hashes, str(AT_ONCE), "yes" if heads else "no", ":".join(SEARCH_PATH)),
                deadline=LOOK_DEADLINE_S if hashes == "none" else HASH_DEADLINE_S,
                max_output=_MAX_OUTPUT,
                on_line=on_line,
            )
    except TimeoutError as error:
        what = f"the look at {folder} told nothing for {silence:g} s, and was ended"
        fix = "Is that disk there, and does it answer? A network volume may not: choose another folder."
        raise CommandTimeout(what, where=node.where, fix=fix) from error
    return parse_survey(done.stdout, node.where)


class _HashMeter:
    """Counts the bytes of files as their hashes come."""

    def __init__(self, tell: OnHash) -> None:
        self._tell = tell
        self._done = 0
        self._total: int | None = None

    def line(self, line: str) -> None:
        word, _, rest = line.partition("/")
        if word == "todo" and rest.isdigit():
            self._total = int(rest)
        elif word == "file" and self._total and (found := _FILE.fullmatch(rest)):
            self._done += int(found["size"])
            self._tell(self._done, self._total)


def parse_survey(text: str, where: str) -> Survey:
    """What the script's answer says.

    Raises:
        NodeError: it is cut off, or tells of files that cannot be taken as they are.
    """
    told: dict[str, str] = {}
    files: dict[str, FileEntry] = {}
    partial: dict[str, FileEntry] = {}
    heads: dict[str, bytes] = {}
    for line in text.split("\n"):
        word, _, rest = line.partition("/")
        if word == "file":
            _take(files, rest, where)
        elif word == "part":
            _take(partial, rest, where)
        elif word == "head":
            name, _, content = rest.partition("/")
            heads[name] = _decode(content, where)
        else:
            told[word] = rest
    states = [state for state in _STATES if state in told]
    if "end" not in told or not states:
        raise NodeError("the look at the folder was cut off", where=where, fix="Try again.")
    if "no-hash" in told:
        fix = "Install one of them: shasum is part of macOS, sha256sum of Linux."
        raise NodeError("it has neither sha256sum nor shasum nor openssl", where=where, fix=fix)
    if odd := told.get("odd"):
        raise _unsafe(odd.removeprefix("./"), where)
    state = states[0]
    return Survey(
        path=told[state],
        state=state,
        home=told.get("home", ""),
        free=parse.df(f" {told.get('df', '')}"),
        tree=Tree(files),
        partial=Tree(partial),
        heads=heads,
    )


def _take(files: dict[str, FileEntry], line: str, where: str) -> None:
    found = _FILE.fullmatch(line)
    if found is None or not found["name"].isprintable():
        raise _unsafe(line.rpartition("/./")[2], where)
    name, digest = found["name"], found["sum"]
    if digest in ("changing", "unreadable"):
        why = "changes while it is read" if digest == "changing" else "cannot be read"
        fix = "Try again when nobody writes to it." if digest == "changing" else "Check its permissions."
        raise NodeError(f"{name} {why}", where=where, fix=fix)
    known = None if digest == "-" else digest
    files[name] = FileEntry(int(found["size"]), int(found["mtime"]), known)


def _unsafe(name: str, where: str) -> NodeError:
    fix = "Rename it: no line breaks or control characters."
    return NodeError(f"a file name there cannot be copied safely: {name!r}", where=where, fix=fix)


def _decode(content: str, where: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise NodeError("the look at the folder was damaged on its way", where=where) from error
