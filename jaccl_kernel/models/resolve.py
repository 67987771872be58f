"""Resolves a model name to a folder on this machine, without network access."""

import re
from pathlib import Path

from jaccl_kernel.core.errors import ModelError, UnknownModel
from jaccl_kernel.models import demo

DEMO = "demo"  # the name of the demo model
MODELS = "~/models"  # the default folder for models that `jaccl sync` copies
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # org/name


def resolve(name: str | Path) -> Path:
    """Return the folder of a model.

    Args:
        name: "demo", a folder, the id ("org/name") of a model in the local Hugging Face cache, or the name of
            a folder in `~/models`, to which `jaccl sync` copies models (for an id, the part after the slash).
            A folder named demo is ./demo.

    Returns:
        An absolute path; in the Hugging Face cache, a snapshot, whose files are links.

    Raises:
        ModelError: the model is not on this machine; the message has the searched locations and the fix.
    """
    text = str(name)
    if text == DEMO:
        if demo.demo_ready():
            return demo.demo_path()
        what = f"the demo model does not exist yet ({demo.demo_path()})"
        fix = "Run `jaccl model demo`; in Python: await ensure_demo()."
        raise ModelError(what, where=text, fix=fix)
    folder = Path(text).expanduser()
    if text and folder.exists():
        return folder.absolute()
    below = text.rpartition("/")[2]
    synced = Path(MODELS).expanduser() / below
    if not _HUB_ID.fullmatch(text):
        if text and text == below and synced.is_dir():
            return synced.absolute()
        raise UnknownModel("directory not found", where=text, fix=_fix(text))
    # Imported here, since it takes half a second and only hub ids need it.
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(text, "config.json")
    except ValueError:  # not a valid id, such as ../x
        cached = None
    if isinstance(cached, str):  # None: not cached; an object: cached as missing
        return Path(cached).parent
    if synced.is_dir() and below not in (".", ".."):
        return synced.absolute()
    what = f"not a local folder, not in the Hugging Face cache ({constants.HF_HUB_CACHE}), and not {synced}"
    fix = f"Run `hf download {text}`, or copy the model's folder to this machine."
    raise UnknownModel(what, where=text, fix=fix)


def _fix(text: str) -> str:
    if Path(text).name == demo.SMOLLM2.name:  # on a rank, with the path of the nodes' copy
        return "Run `jaccl sync FILE demo` to copy the demo model to every node."
    if text.startswith("~/"):
        return f"Run `jaccl sync FILE {text}` to copy it to the same path on every node."
    return (
        "Pass a folder, an id in the form ORG/NAME, the name of a folder in ~/models, or `demo`; "
        "`jaccl sync FILE MODEL` copies a model to every node."
    )
