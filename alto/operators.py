"""Ready-made operators: plain functions from stream to stream, used beside stages in a pipeline.

::

    @alto.pipeline
    def verify(question: alto.Stream[str]) -> alto.Stream[list[Verdict]]:
        claims = sentences(answer(question))
        checkable = alto.where(claims, is_checkable)
        verdicts = appraise(checkable, search(checkable))
        return alto.top_k(verdicts, 3, key=lambda verdict: verdict.score, by=question)

============================================  =====================================================
one value per group                           ``collect count total top_k reduce``
some items of each group, the rest cancelled  ``first``
item by item                                  ``where switch``
several streams as one                        ``merge outputs``
============================================  =====================================================

Every call makes a stage for the item types at hand. That stage has the operator's name in
statistics and errors, closes its groups by counting, holds no permit while it waits, and is the
same in the sequential interpreter of the test kit. A group is what lies below one item of the
level above, or of the stream given as ``by=``.
"""

from __future__ import annotations

from alto._operators.fold import Pane
from alto._operators.gather import collect, count, reduce, top_k, total
from alto._operators.select import first, switch, where
from alto._operators.together import Output, merge, outputs

__all__ = ("Output", "Pane", "collect", "count", "first", "merge", "outputs", "reduce", "switch",
           "top_k", "total", "where")  # fmt: skip
