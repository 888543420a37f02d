"""Statistics of an engine's scheduler, collected after each step.

vLLM passes statistics to loggers in this process, in the event loop. Its own loggers write to the
console, or count for Prometheus under global names, so that a second engine erases the first one's
figures. Here one logger keeps the figures of one engine, and one that does nothing replaces the
Prometheus logger. Without any logger, vLLM would not report how long a request has waited either.
"""

from __future__ import annotations

from typing import Any, final

import attrs

__all__ = ("EngineCounters", "stat_loggers")


@final
@attrs.define(eq=False)
class EngineCounters:
    """Figures of one engine. Written and read in its event loop."""

    finished: int = 0
    """Requests that completed since the start; aborted and failed ones do not count."""
    prompt_tokens: int = 0
    """Prompt tokens of the completed requests."""
    cached_tokens: int = 0
    """Prompt tokens of the completed requests that were found in the prefix cache."""
    output_tokens: int = 0
    """Output tokens of the completed requests."""
    preempted: int = 0
    """Number of preemptions."""
    asked_tokens: int = 0
    """Tokens that were looked up in the prefix cache."""
    hit_tokens: int = 0
    """Tokens that were looked up in the prefix cache and found."""
    _now: dict[int, tuple[int, int, float]] = attrs.field(factory=dict)
    """By data-parallel rank: running requests, waiting requests, used fraction of the KV cache."""

    @property
    def running(self) -> int:
        """Number of requests in the engine's batch at its last step."""
        return sum(running for running, _, _ in self._now.values())

    @property
    def waiting(self) -> int:
        """Number of requests that waited at the last step."""
        return sum(waiting for _, waiting, _ in self._now.values())

    @property
    def kv_usage(self) -> float:
        """Fraction of the KV cache in use, 0 to 1."""
        used = [usage for _, _, usage in self._now.values()]
        return sum(used) / len(used) if used else 0.0

    def note(self, rank: int, scheduler: Any, iteration: Any) -> None:  # noqa: ANN401  # vLLM's
        """Record vLLM's statistics of one step; fields that its version lacks count 0. Never raises.

        vLLM treats an engine whose logger has raised as dead.
        """
        try:
            if scheduler is not None:
                self._note_scheduler(rank, scheduler)
            if iteration is not None:
                self._note_iteration(iteration)
        except Exception:  # noqa: BLE001, S110  # a lost figure is better than a dead engine
            pass

    def _note_scheduler(self, rank: int, stats: Any) -> None:  # noqa: ANN401  # vLLM's
        self._now[rank] = (
            getattr(stats, "num_running_reqs", 0),
            getattr(stats, "num_waiting_reqs", 0) + getattr(stats, "num_skipped_waiting_reqs", 0),
            getattr(stats, "kv_cache_usage", 0.0),
        )
        cache = getattr(stats, "prefix_cache_stats", None)
        if cache is not None:
            self.asked_tokens += getattr(cache, "queries", 0)
            self.hit_tokens += getattr(cache, "hits", 0)

    def _note_iteration(self, stats: Any) -> None:  # noqa: ANN401  # vLLM's
        self.preempted += getattr(stats, "num_preempted_reqs", 0)
        for request in getattr(stats, "finished_requests", ()):
            if str(getattr(request, "finish_reason", "")) not in ("stop", "length", "repetition"):
                continue
            self.finished += 1
            self.prompt_tokens += getattr(request, "num_prompt_tokens", 0)
            self.cached_tokens += getattr(request, "num_cached_tokens", 0)
            self.output_tokens += getattr(request, "num_generation_tokens", 0)


def stat_loggers(counters: EngineCounters) -> list[Any]:
    """Return the ``stat_loggers`` for vLLM that update *counters* after every step."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerBase

    class Logger(StatLoggerBase):  # type: ignore[misc]  # vLLM is not typed here
        def __init__(self, vllm_config: Any = None, engine_index: int = 0) -> None:  # noqa: ANN401, ARG002
            self._rank = engine_index

        def record(
            self,
            scheduler_stats: Any = None,  # noqa: ANN401
            iteration_stats: Any = None,  # noqa: ANN401
            *_: Any,  # noqa: ANN401
            **__: Any,  # noqa: ANN401
        ) -> None:
            counters.note(self._rank, scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

    class Silent(PrometheusStatLogger):  # type: ignore[misc]  # as above
        def __init__(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            self.engine_indexes: list[int] = []

        def record(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            pass

        def log(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            pass

        def log_engine_initialized(self) -> None:
            pass

        def record_sleep_state(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            pass

        def record_admission_rejection(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            pass

    return [Logger, Silent]
