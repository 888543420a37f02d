"""What the fields of a request must be, one by one. The checks know no types of alto but its errors."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from typing import Any

from alto.errors import InvalidRequest

__all__ = ("check_extras", "check_number", "check_positive", "check_streamed", "texts")

_MOST_SAMPLES = 128
_SEEDS = range(-(2**63), 2**63)  # What engines take: a signed number of 64 bits.
_KINDS: dict[str, tuple[type, str]] = {
    "seed": (int, "a whole number, or None"),
    "regex": (str, "a regular expression as text, or None"),
    "json_schema": (dict, "a JSON schema as a dict, or None"),
    "ignore_eos": (bool, "True or False"),
    "resume": (bool, "True or False"),
    "priority": (int, "a whole number between -10**9 and 10**9, lower runs earlier"),
}


def check_positive(name: str, value: object) -> None:
    """Refuse what is no number of tokens, nor None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be a whole number of tokens or None, not {value!r}"
        raise InvalidRequest(msg)
    if value <= 0:
        msg = f"{name} must be at least 1, not {value}"
        raise InvalidRequest(msg)


def check_number(name: str, value: object) -> None:
    """Refuse what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{name} must be a number, not {value!r}"
        raise InvalidRequest(msg)


def texts(values: object) -> bool:
    """Whether these are texts, none of them empty."""
    return isinstance(values, Sequence) and all(isinstance(v, str) and v for v in values)


def check_streamed(head: object, tail: object) -> None:
    """Refuse a prompt that cannot be read as it is written, or was read before."""
    if not isinstance(head, str):
        msg = f"the head of a streamed prompt is text, not {type(head).__name__}"
        raise InvalidRequest(msg)
    if not isinstance(tail, AsyncIterable):
        msg = (
            f"the tail of a streamed prompt is a Group or another async iterable of texts, "
            f"not {type(tail).__name__}"
        )
        raise InvalidRequest(msg)
    if getattr(tail, "ag_running", False) or getattr(tail, "ag_frame", tail) is None:
        msg = "the tail of this streamed prompt was read before; it can be read once"
        raise InvalidRequest(msg)


def check_extras(request: Any) -> None:  # noqa: ANN401  # a GenerateRequest, which is above this floor
    """Refuse fields of other types than their annotations say, and numbers out of range."""
    for name, value, low, high in (
        ("n", request.n, 1, _MOST_SAMPLES),
        ("logprobs", request.logprobs, 0, 20),
    ):
        whole = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        if not whole and not (value is None and name == "logprobs"):
            msg = f"{name} must be a whole number from {low} to {high}, not {value!r}"
            raise InvalidRequest(msg)
    if request.lora is not None and not (isinstance(request.lora, str) and request.lora):
        msg = f"lora must be the name of an adapter, not {request.lora!r}"
        raise InvalidRequest(msg)
    for name, (kind, what) in _KINDS.items():
        value = getattr(request, name)
        odd = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if odd and not (value is None and what.endswith("None")):
            msg = f"{name} must be {what}, not {value!r}"
            raise InvalidRequest(msg)
    if request.seed is not None and request.seed not in _SEEDS:
        msg = f"seed must be a whole number from -2**63 to 2**63 - 1, or None, not {request.seed}"
        raise InvalidRequest(msg)
    if request.regex == "":
        msg = "regex is empty; leave it out, or give an expression that the output is to match"
        raise InvalidRequest(msg)
    if abs(request.priority) > 10**9:
        msg = f"priority must be {_KINDS['priority'][1]}, not {request.priority}"
        raise InvalidRequest(msg)
