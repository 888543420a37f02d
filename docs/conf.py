"""Sphinx's settings. ``make docs`` builds with -n -W: every reference must resolve."""

from __future__ import annotations

import builtins
import collections.abc
import re
import sys
import typing
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

import alto

project = "alto"
author = "the alto developers"
version = release = installed_version("alto-llm")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_*", "**/_*"]
html_theme = "furo"
html_title = f"alto {version}"
html_copy_source = False
pygments_style = "friendly"

default_role = "py:obj"  # `Stream` in a docstring is a reference
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_use_type_comments = False
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Cancellation", "Cost", "Source", "Units"]

_home = Path(alto.__file__).parent
_variables = {
    name
    for path in _home.rglob("*.py")
    for name in re.findall(
        r"^(\w+) = (?:TypeVar|ParamSpec|TypeVarTuple)\(", path.read_text(), re.MULTILINE
    )
}

# The build reads nothing from the net, so names that are not alto's have no page to point to. These
# are all that may stay unresolved; a name of alto, qualified or not, may never.
_others = {*sys.stdlib_module_names, "anyio", "attr", "attrs", "hypothesis", "torch", "vllm"}
_plain = {*dir(builtins), *typing.__all__, *collections.abc.__all__}

nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", rf"({'|'.join(sorted(_others))})(\..*)?"),
    (r"py:.*", rf"({'|'.join(sorted(_plain))})"),
    (r"py:(class|obj)", rf"(alto\.[\w.]+\.)?({'|'.join(sorted(_variables))})"),
    (r"py:(class|obj)", r"alto\.([a-z]\w*\.)*_\w+\..*"),  # private modules have no page
    (r"py:class", r"(Template|OrderKey|TicketState)"),  # types of fields, from private modules
]


def _attribute_is_prose(_app: Sphinx, what: str, *details: object) -> None:
    """Keep napoleon from reading "Its name: ..." below a field as a type and a description."""
    lines = details[-1]
    if what in {"attribute", "data", "property"} and isinstance(lines, list) and lines:
        lines.insert(0, "\\ ")  # an escaped space, which shows as nothing


def setup(app: Sphinx) -> None:
    """Add what the settings above cannot say."""
    app.connect("autodoc-process-docstring", _attribute_is_prose, priority=400)
