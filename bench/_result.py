"""What every benchmark's JSON says of where it came from, and how it is written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any


def origin(*packages: str) -> dict[str, Any]:
    """The machine, and the versions of Python, alto and *packages*."""
    return {
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("alto-llm", *packages)},
        },
    }


def write(file: str, result: Mapping[str, Any]) -> None:
    """Put *result* into a file: whole, or what was there before stays."""
    path = Path(file)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(path)
