"""Affinity of templates to engines: how many engines each template prefers, and which.

A template prefers engines in proportion to the work that its calls have been, over about the last
minute. The number changes only when the wanted number differs from the present one by more than three
quarters of an engine, so that it does not swing. The preferred engines are those where most of the
work was done, so that they stay where the template's blocks are cached.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from alto._sched.estimate import Template

__all__ = ("Affinity",)

_PERIOD = 5.0
"""Seconds between counts."""
_KEEP = 0.9
"""Part of the old work that is kept at a count: a memory of about 50 s."""
_SLACK = 0.75
"""Engines by which the wanted number must differ before it is changed."""


@final
class Affinity:
    """Work done per template and engine, from which each template gets its preferred engines."""

    __slots__ = ("_due", "_engines", "_templates")

    def __init__(self) -> None:
        self._due = _PERIOD
        self._templates: dict[Template, None] = {}
        self._engines: set[int] = set()

    def add_work(self, template: Template, engine: int, now: float, seconds: float, /) -> None:
        """Count *seconds* of *engine*, a call's share of the batch, as work of *template*."""
        template.work[engine] = template.work.get(engine, 0.0) + seconds
        self._templates[template] = None
        self._engines.add(engine)
        if now >= self._due:
            self._due = now + _PERIOD
            self.update()

    def forget(self, engine: int, templates: Iterable[Template], /) -> None:
        """Forget an engine that was removed."""
        self._engines.discard(engine)
        for template in templates:
            template.work.pop(engine, None)
            template.preferred = tuple(one for one in template.preferred if one != engine)

    def update(self) -> None:
        """Choose preferred engines by the work done, and decay that work."""
        total = sum(sum(template.work.values()) for template in self._templates)
        if total <= 0:
            return
        for template in list(self._templates):
            work = template.work
            wanted = len(self._engines) * sum(work.values()) / total
            have = len(template.preferred)
            if not have or abs(wanted - have) > _SLACK:
                have = max(1, round(wanted))
            best = sorted(work, key=lambda engine: (-work[engine], engine))
            # A preferred engine stays unless another one has clearly done more: hence `have + 1`.
            kept = [engine for engine in template.preferred if engine in best[: have + 1]][:have]
            kept += [engine for engine in best if engine not in kept][: have - len(kept)]
            template.preferred = tuple(kept)
            for engine in work:
                work[engine] *= _KEEP
            if sum(work.values()) < 1e-6 * total:
                del self._templates[template]
                template.preferred = ()
                template.work.clear()
