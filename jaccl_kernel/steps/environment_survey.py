"""What a node has to make a Python environment with, and what stands at its place. Changes nothing."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.errors import JacclError
from jaccl_kernel.steps import environment_scripts as scripts

PYTHONS = ("3.12", "3.13", "3.11")
"""The Pythons that we and mlx's wheels run on, the preferred first, after this machine's own."""

SURVEY_DEADLINE_S = 60.0

State = Literal["absent", "unfinished", "ready", "foreign"]
_STATES: dict[str, State] = {
    "absent": "absent",
    "unfinished": "unfinished",
    "ready": "ready",
    "foreign": "foreign",
}


@dataclass(frozen=True)
class Survey:
    """What one node has to make an environment with; `error` says why nobody could look.

    Attributes:
        path: where the environment would stand, absolute.
        state: what stands there: nothing, an unfinished one, one of ours, or something that is not ours.
        stamp: the recipe that one of ours was made by.
        pythons: interpreters that can make a venv, by version (3.12).
        conda: conda, mamba or micromamba.
    """

    path: str = ""
    state: State = "absent"
    stamp: str | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)
    conda: str | None = None
    error: JacclError | None = None

    def can_make(self, version: str) -> bool:
        """Whether it has what it takes for an environment with that version of Python."""
        return self.error is None and (version in self.pythons or self.conda is not None)


async def survey(node: Node, path: str) -> Survey:
    """Look at one node. Never raises: what went wrong is the survey's `error`.

    Args:
        node: whom to ask.
        path: where the environment would stand, absolute or from the home folder.
    """
    try:
        done = await node.script(scripts.SURVEY, path, deadline=SURVEY_DEADLINE_S, check=False)
    except JacclError as error:
        return Survey(error=error)
    return parse_survey(done.stdout, done.stderr)


def parse_survey(text: str, complaint: str = "") -> Survey:
    """What the survey's script told; `complaint` is its stderr."""
    told: dict[str, str] = {}
    pythons: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "python":
            version, _, interpreter = value.partition(" ")
            pythons.setdefault(version, interpreter)
        else:
            told.setdefault(key, value)
    state = _STATES.get(told.get("state", ""))
    if "path" not in told or state is None:
        last = (complaint.strip() or text.strip() or "it wrote nothing").splitlines()[-1]
        return Survey(error=JacclError(f"the look for Pythons failed there: {last}"))
    return Survey(told["path"], state, told.get("stamp"), pythons, told.get("conda"))


def choose_version(surveys: Sequence[Survey]) -> str | None:
    """The version of Python that the most nodes can make; this machine's if that is as good as any."""
    own = "{}.{}".format(*sys.version_info)
    versions = list(dict.fromkeys([own, *PYTHONS]))
    best = max(versions, key=lambda version: sum(survey.can_make(version) for survey in surveys))
    return best if any(survey.can_make(best) for survey in surveys) else None
