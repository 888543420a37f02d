"""Executors, which run the calls of a stage: ``@alto.stage(runs_in=...)``.

Each of these has a short name. An executor of your own has the one method of
:class:`alto.protocols.Executor`.
"""

from __future__ import annotations

from alto._runtime.executors import Loop, Process, Thread

__all__ = ("Loop", "Process", "Thread")
