from __future__ import annotations

from types import SimpleNamespace

import pytest

from alto.engines._vllm.requests import OutputReader, Sampling, Times, settle_constraints
from alto.errors import InvalidRequest
from alto.model import GenerateRequest


def _engine(backend, *, fast):
    config = SimpleNamespace(structured_outputs_config=SimpleNamespace(backend=backend))
    return SimpleNamespace(vllm_config=config, tokenizer=SimpleNamespace(is_fast=fast))


class TestSettling:
    """One backend for all constraints of an engine."""

    @pytest.mark.parametrize(("fast", "settled"), [(True, "guidance"), (False, "xgrammar")])
    def test_vllms_choice_per_request_is_made_once(self, fast, settled):
        """The one that refuses what it cannot express, where the tokenizer allows it."""
        engine = _engine("auto", fast=fast)
        settle_constraints(engine)
        assert engine.vllm_config.structured_outputs_config.backend == settled

    def test_the_users_choice_stays(self):
        """A backend that was given to the engine is left alone."""
        engine = _engine("outlines", fast=True)
        settle_constraints(engine)
        assert engine.vllm_config.structured_outputs_config.backend == "outlines"

    def test_a_vllm_without_such_settings_is_left_alone(self):
        """There is nothing to settle."""
        engine = SimpleNamespace(vllm_config=SimpleNamespace(), tokenizer=None)
        settle_constraints(engine)
        assert not vars(engine.vllm_config)


class TestSilence:
    """An engine that cannot follow a constraint ends at once, as if nothing was wrong."""

    def _read(self, *said, **constraint):
        reader = OutputReader(
            request=GenerateRequest(prompt=[1], **constraint),
            prompt_tokens=1,
            times=Times(asked=0.0),
            reason=lambda reason: reason,
        )
        chunks = []
        for text, reason in said:
            output = SimpleNamespace(text=text, token_ids=[1], finish_reason=reason)
            got, _ = reader.read(
                SimpleNamespace(outputs=[output], finished=reason is not None, num_cached_tokens=0),
                1.0,
            )
            chunks += got
        return "".join(chunk.text for chunk in chunks)

    @pytest.mark.parametrize("constraint", [{"json_schema": {"type": "x"}}, {"choice": ("a", "b")}])
    def test_silence_is_no_answer_to_it(self, constraint):
        """No JSON and no choice is empty, so that is refused."""
        with pytest.raises(InvalidRequest, match="it said nothing at all"):
            self._read(("", "stop"), **constraint)
        assert self._read(("a", None), ("", "stop"), **constraint) == "a"
        assert not self._read(("", "length"), **constraint)

    @pytest.mark.parametrize("constraint", [{}, {"regex": "a*"}])
    def test_silence_may_be_an_answer(self, constraint):
        """To a prompt without a constraint, or a regular expression that an empty text matches."""
        assert not self._read(("", "stop"), **constraint)


@pytest.mark.vllm
@pytest.mark.parametrize("constraint", [{"regex": "a\0b"}, {"choice": ("fine", "a\0b")}])
def test_a_nul_is_refused(constraint):
    """Backends would take it for the end of what they read."""
    with pytest.raises(InvalidRequest, match="character NUL"):
        Sampling().of(GenerateRequest(prompt=[1], **constraint))
