"""The folders of the workbench: caches, locks, logs and records. No mlx."""

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for caches, locks and logs: `JACCL_CACHE`, or the system's cache folder."""
    if chosen := os.environ.get("JACCL_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "jaccl-kernel"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaccl-kernel"


def results_dir() -> Path:
    """Return the folder for records: `JACCL_RESULTS`, or `results/` in the working folder."""
    return Path(os.environ.get("JACCL_RESULTS") or "results").expanduser()
