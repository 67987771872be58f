"""A node's Pythons and conda, and what exists at the environment's path. Changes nothing."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.steps.environment import scripts

PYTHONS = ("3.12", "3.13", "3.11")
"""The supported Python versions, in order of preference after this machine's own."""

SURVEY_DEADLINE_S = 60.0

State = Literal["absent", "unfinished", "ready", "foreign"]
_STATES: tuple[State, ...] = ("absent", "unfinished", "ready", "foreign")


@dataclass(frozen=True)
class Survey:
    """The result of inspecting one node; `error` says why it failed.

    Attributes:
        path: the environment's path, absolute.
        state: what exists there: nothing, an unfinished environment, a ready one, or something foreign.
        stamp: the recipe of a ready environment.
        pythons: interpreters that can create a venv, by version (3.12).
        conda: conda, mamba or micromamba.
    """

    path: str = ""
    state: State = "absent"
    stamp: str | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)
    conda: str | None = None
    error: JacclError | None = None

    def can_make(self, version: str) -> bool:
        """Whether it can create an environment with that version of Python."""
        return self.error is None and (version in self.pythons or self.conda is not None)


async def survey(node: Node, path: str) -> Survey:
    """Inspect one node. Never raises: a failure is the survey's `error`.

    Args:
        node: the node.
        path: the environment's path, absolute or relative to the home folder.
    """
    try:
        done = await node.script(scripts.SURVEY, path, deadline=SURVEY_DEADLINE_S, check=False)
    except JacclError as error:
        return Survey(error=error)
    return parse_survey(done.stdout, done.stderr)


def parse_survey(text: str, stderr: str = "") -> Survey:
    """Parse the output of the survey script; `stderr` explains a failure."""
    fields: dict[str, str] = {}
    pythons: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "python":
            version, _, interpreter = value.partition(" ")
            pythons.setdefault(version, interpreter)
        else:
            fields.setdefault(key, value)
    state = next((one for one in _STATES if one == fields.get("state")), None)
    if "path" not in fields or state is None:
        last = (stderr.strip() or text.strip() or "no output").splitlines()[-1]
        return Survey(error=JacclError(f"searching for Pythons failed: {last}"))
    return Survey(fields["path"], state, fields.get("stamp"), pythons, fields.get("conda"))


def choose_version(surveys: Sequence[Survey]) -> str | None:
    """Return the version of Python that most nodes support, preferring this machine's."""
    own = "{}.{}".format(*sys.version_info)
    versions = list(dict.fromkeys([own, *PYTHONS]))
    best = max(versions, key=lambda version: sum(survey.can_make(version) for survey in surveys))
    return best if any(survey.can_make(best) for survey in surveys) else None
