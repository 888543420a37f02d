"""Hypothesis strategies for whole pipelines, with the requests that run through them.

Needs Hypothesis, which alto itself does not.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import anyio
import attrs
from hypothesis import strategies as st

from alto.testing._built import StageProbe, build
from alto.testing._sketch import Chooser, StageDraw

__all__ = ("DrawnPipeline", "Failing", "Scaling", "pipelines")


@attrs.frozen(kw_only=True)
class Failing:
    """One call that fails, chosen among the calls of a sequential run."""

    request: int
    """Index of the request in ``DrawnPipeline.inputs``."""
    pick: int
    """Index of the call, modulo their number."""
    after: int
    """Number of outputs before the failure, at most those that the call has."""


@attrs.frozen
class Scaling:
    """A change of a stage's number of replicas."""

    at: float
    """Seconds after the app was opened."""
    pick: int
    """Index of the stage, modulo their number."""
    replicas: int
    """New number of replicas."""


class _Printer(Protocol):
    def text(self, text: str) -> None: ...


@attrs.frozen(kw_only=True, eq=False, repr=False)
class DrawnPipeline:
    """A pipeline, requests for it, and the options of ``open``. Its repr shows all of it as code."""

    pipeline: Any
    """A real pipeline of one or two ``str`` inputs and ``str`` results."""
    inputs: tuple[tuple[str, ...], ...]
    """The inputs of each request."""
    capacity: int
    """Argument of ``open(capacity=...)``."""
    failing: Failing | None
    """The call that fails, once :meth:`arm` was called; None: nothing fails."""
    scalings: tuple[Scaling, ...]
    """Changes of the number of replicas while requests run."""
    early: bool
    """True if a stage leaves a group or a pipeline early; then calls above it may be cancelled."""
    probe: StageProbe
    """The probe to which the stages report."""
    describe: str
    """The source code of the pipeline."""

    def __repr__(self) -> str:
        requests = ", ".join(f"({', '.join(map(repr, one))})" for one in self.inputs)
        failing = "" if self.failing is None else f"\n{self.failing}"
        scaled = "".join(f"\n{one}" for one in self.scalings)
        options = f"capacity {self.capacity}, requests {requests}{failing}{scaled}"
        return f"\n{self.describe}\n{options}\n"

    def _repr_pretty_(self, printer: _Printer, cycle: bool) -> None:  # noqa: FBT001  # as IPython's
        """Make Hypothesis print the repr."""
        del cycle
        printer.text(repr(self))

    async def scale(self, app: Any) -> None:  # noqa: ANN401  # an app of this pipeline
        """Change the numbers of replicas, each at its time. Returns after the last."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for scaling in self.scalings:
            await anyio.sleep(max(0.0, begin + scaling.at - loop.time()))
            names = list(app.statistics().stages)
            own = [name for name in names if "." not in name]
            await app.scale(own[scaling.pick % len(own)], scaling.replicas)

    def arm(self, heard: list[tuple[str, tuple[str, ...]]]) -> bool:
        """Make one call fail.

        Args:
            heard: ``probe.heard`` after a run of only the request that is to fail.

        Returns:
            False if no call of that request can be distinguished from those of others; then nothing
            is armed.
        """
        assert self.failing is not None
        tag = f"r{self.failing.request}:"
        own = [one for one in heard if any(word.startswith(tag) for word in one[1])]
        if own:
            self.probe.fuse = own[self.failing.pick % len(own)]
            self.probe.after = self.failing.after
        return bool(own)


@st.composite
def pipelines(draw: st.DrawFn, *, failing: bool = False, max_nodes: int = 7) -> DrawnPipeline:
    """Pipelines of real stages, from one coroutine to nested pipelines with joins of joins.

    What may occur: levels up to 4 deep with 0 to 5 children, one to three parameters, items
    repeated for the descendants of others, groups beside items, several groups in one stage,
    ``by=``, streams with several consumers that meet again, a stage used twice, pipelines inlined
    or called from a stage, groups and inner streams that are left early, groups in order of
    arrival, delays on the loop's clock, ``concurrency`` and ``capacity`` from 1, several replicas
    under any router, plain functions in threads, replicas that come and go.

    Results are deterministic: where pieces come in order of arrival the stage sorts them.

    Args:
        draw: Given by Hypothesis.
        failing: Also choose a call that fails; see :meth:`DrawnPipeline.arm`.
        max_nodes: Most stage calls, before those that join what is left over.
    """
    chooser = Chooser(draw)
    requests = draw(st.integers(1, 3))
    drawn = chooser.pipeline(inputs=draw(st.integers(1, 2)), most=max_nodes, inner=False)
    fails = None
    if failing:
        fails = Failing(
            request=draw(st.integers(0, requests - 1)),
            pick=draw(st.integers(0, 99)),
            after=draw(st.integers(0, 2)),
        )
    probe = StageProbe()
    return DrawnPipeline(
        pipeline=build(drawn, probe),
        inputs=tuple(
            tuple(f"r{number}:{'xy'[k]}" for k in range(drawn.inputs)) for number in range(requests)
        ),
        capacity=draw(st.sampled_from([1, 2, 3, 32])),
        failing=fails,
        scalings=tuple(
            Scaling(at / 100, pick, replicas)
            for at, pick, replicas in sorted(
                draw(
                    st.lists(
                        st.tuples(st.integers(0, 60), st.integers(0, 20), st.integers(1, 4)),
                        max_size=4,
                    )
                )
            )
        ),
        early=any(_leaves(stage) for stage in drawn.stages()),
        probe=probe,
        describe=str(drawn),
    )


def _leaves(stage: StageDraw) -> bool:
    return stage.take is not None or (stage.inner is not None and stage.inner.take is not None)
