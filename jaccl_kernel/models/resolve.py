"""A model's name, as a user gives it, becomes a folder on this machine. It never uses the network."""

import re
from pathlib import Path

from jaccl_kernel.errors import ModelError
from jaccl_kernel.models import demo

DEMO = "demo"  # the name of the model that we bring along
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # org/name


def resolve(name: str | Path) -> Path:
    """The folder of a model.

    Args:
        name: "demo"; or a folder; or the id ("org/name") of a model in the local Hugging Face cache. A folder
            that is called demo is ./demo.

    Returns:
        An absolute path. In the Hugging Face cache that is a snapshot, whose files are links.

    Raises:
        ModelError: it is none of these on this machine: where was looked, and how to get it.
    """
    text = str(name)
    if text == DEMO:
        if demo.demo_ready():
            return demo.demo_path()
        what = f"the demo model is not made yet ({demo.demo_path()})"
        fix = "`jaccl model demo` makes it; in Python: await ensure_demo()."
        raise ModelError(what, where=text, fix=fix)
    folder = Path(text).expanduser()
    if text and folder.exists():
        return folder.absolute()
    if not _HUB_ID.fullmatch(text):
        fix = "Give a folder, an id as ORG/NAME, or `demo`."
        if folder.name == demo.SMOLLM2.name:  # a rank was told where the nodes have it
            fix = "`jaccl sync FILE demo` puts the demo model on every node."
        raise ModelError("is no folder here", where=text, fix=fix)
    # Imported here: half a second, and only hub ids need it.
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(text, "config.json")
    except ValueError:  # no possible id, as ../x
        cached = None
    if not isinstance(cached, str):  # None: not there; an object: known to be without this file
        what = f"is neither a folder here nor in the Hugging Face cache ({constants.HF_HUB_CACHE})"
        fix = f"Where there is a network: `hf download {text}`; or copy the model's folder here."
        raise ModelError(what, where=text, fix=fix)
    return Path(cached).parent
