"""How many engines a template is drawn to, and which: its *homes*.

A template gets engines in proportion to the work that its calls have been, over about the last
minute. The number changes only when what is wanted differs from what there is by more than three
quarters of an engine, so that it does not swing; and the engines are those where most of the work
was done, so that a home stays where the template's blocks are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from alto._sched.estimate import Template

__all__ = ("Homes",)

_PERIOD = 5.0
"""Seconds between counts."""
_KEEP = 0.9
"""Part of the old work that is kept at a count: a memory of about 50 s."""
_SLACK = 0.75
"""Engines by which the wanted number must differ before it is changed."""


@final
class Homes:
    """Counts work and assigns homes."""

    __slots__ = ("_due", "_engines", "_templates")

    def __init__(self) -> None:
        self._due = _PERIOD
        self._templates: dict[Template, None] = {}
        self._engines: set[int] = set()

    def worked(self, template: Template, engine: int, now: float, seconds: float, /) -> None:
        """A call of *template* took *seconds* of *engine*, its share of the batch."""
        template.work[engine] = template.work.get(engine, 0.0) + seconds
        self._templates[template] = None
        self._engines.add(engine)
        if now >= self._due:
            self._due = now + _PERIOD
            self.count()

    def forget(self, engine: int, templates: Iterable[Template], /) -> None:
        """An engine has gone."""
        self._engines.discard(engine)
        for template in templates:
            template.work.pop(engine, None)
            template.homes = tuple(home for home in template.homes if home != engine)

    def count(self) -> None:
        """Assign homes by the work done, and let it fade."""
        total = sum(sum(template.work.values()) for template in self._templates)
        if total <= 0:
            return
        for template in list(self._templates):
            work = template.work
            wanted = len(self._engines) * sum(work.values()) / total
            have = len(template.homes)
            if not have or abs(wanted - have) > _SLACK:
                have = max(1, round(wanted))
            best = sorted(work, key=lambda engine: (-work[engine], engine))
            # A home stays unless another engine has done clearly more.
            kept = [home for home in template.homes if home in best[: have + 1]][:have]
            kept += [engine for engine in best if engine not in kept][: have - len(kept)]
            template.homes = tuple(kept)
            for engine in work:
                work[engine] *= _KEEP
            if sum(work.values()) < 1e-6 * total:
                del self._templates[template]
                template.homes = ()
                template.work.clear()
