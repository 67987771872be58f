"""The scripts that inspect, test and restore a Python environment on a node: texts only.

An environment at PREFIX is complete when it has the stamp `.jaccl-ready`, which is written last. During its
creation, PREFIX.part exists (with the copied files), and PREFIX.before has the environment that it replaces:
after a power cut, the next run detects this and restores it.
"""

# $1 is PREFIX, below home or absolute.
#   * macOS's own /usr/bin/python3 is skipped: without Xcode's tools it opens a dialog on that Mac's screen,
#     and with them it is 3.9.
#   * venv and ensurepip are checked: Debian packages them separately.
#   * conda's own Python is not used for a venv (an update of conda breaks it): its folders are only for
# conda.
SURVEY = r"""
prefix=$1
case $prefix in /*) ;; *) prefix=$HOME/$prefix ;; esac
printf 'path=%s\n' "$prefix"
if [ -e "$prefix.part" ]; then
    echo state=unfinished
elif [ -f "$prefix/.jaccl-ready" ]; then
    echo state=ready
    printf 'stamp=%s\n' "$(head -n 1 "$prefix/.jaccl-ready")"
elif [ -e "$prefix" ]; then
    echo state=foreign
else
    echo state=absent
fi
IFS=:
for folder in $PATH /opt/homebrew/bin /usr/local/bin "$HOME"/.pyenv/versions/*/bin; do
    for name in python3.12 python3.13 python3.11 python3.14 python3; do
        found=$folder/$name
        [ -x "$found" ] || continue
        [ "$found:$(uname)" != /usr/bin/python3:Darwin ] || continue
        "$found" -c 'if 1:
            import sys, venv, ensurepip
            print("python=%d.%d %s" % (*sys.version_info[:2], sys.argv[1]))' "$found" 2>/dev/null
    done
done
for name in conda mamba micromamba; do
    for folder in $PATH /opt/homebrew/bin /usr/local/bin "$HOME"/*conda*/bin "$HOME"/*mamba*/bin \
        "$HOME"/.local/bin /opt/*conda*/bin /opt/homebrew/Caskroom/mini*/base/bin; do
        if [ -x "$folder/$name" ]; then
            printf 'conda=%s\n' "$folder/$name"
            exit
        fi
    done
done
""".strip()

# $1 is PREFIX. Without -p: an existing PREFIX.part means that another run is creating it.
BEGIN = 'mkdir -p "$(dirname "$1")" && mkdir "$1.part"'

# $1 is PREFIX.
SET_ASIDE = '[ ! -e "$1" ] || mv "$1" "$1.before"'

# $1 is PREFIX. Without PREFIX.part no creation is running, and nothing is changed. A process that was just
# killed may still be writing: hence the second try.
PUT_BACK = r"""
[ -e "$1.part" ] || exit 0
if [ ! -f "$1/.jaccl-ready" ]; then
    rm -rf "$1" || { sleep 1; rm -rf "$1"; } || exit 1
    [ ! -e "$1.before" ] || mv "$1.before" "$1" || exit 1
fi
rm -rf "$1.before" "$1.part"
""".strip()

# $1 is PREFIX, $2 the stamp's line. The rename is atomic.
FINISH = 'echo "$2" >"$1.part/stamp" && mv "$1.part/stamp" "$1/.jaccl-ready" && rm -rf "$1.before" "$1.part"'

# A rehearsal's environment uses this machine's packages; $1 is their folder.
BORROW = r"""
import pathlib, sys, sysconfig
line = f"import site; site.addsitedir({sys.argv[1]!r})\n"
pathlib.Path(sysconfig.get_path("purelib"), "rehearsal.pth").write_text(line)
""".strip()

# Imports the ranks' packages: the last step of a creation, before the stamp.
IMPORTS = "import mlx.core, mlx_lm, transformers, jaccl_kernel.ranks.__main__"

# The same, and computes: an installed mlx may fail to load, or find no GPU. The digest covers the package's
# sources: two checkouts can differ under one version number.
PROOF = r"""
import hashlib, json, pathlib, sys
import mlx.core as mx
assert mx.array([1.0, 2.0]).sum().item() == 3.0, "mlx cannot add"
import mlx_lm
import transformers
import jaccl_kernel.ranks.__main__
folder = pathlib.Path(jaccl_kernel.__file__).parent
digest = hashlib.sha256()
for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
    digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
print(json.dumps({"proof": digest.hexdigest()[:8]}))
""".strip()
