from __future__ import annotations

from types import SimpleNamespace

import pytest

from alto.engines._vllm.stat_logger import EngineCounters, stat_loggers


def _scheduler(running, waiting, usage, **cache):
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        kv_cache_usage=usage,
        prefix_cache_stats=SimpleNamespace(**cache),
    )


def _request(reason, prompt=10, cached=4, output=3):
    return SimpleNamespace(
        finish_reason=reason,
        num_prompt_tokens=prompt,
        num_cached_tokens=cached,
        num_generation_tokens=output,
    )


def test_the_last_step_is_now():
    """What runs, waits and is held is that of the last step; hits add up."""
    counters = EngineCounters()
    counters.note(0, _scheduler(3, 1, 0.5, queries=100, hits=60), None)
    counters.note(0, _scheduler(2, 0, 0.25, queries=10, hits=0), None)
    assert (counters.running, counters.waiting, counters.kv_usage) == (2, 0, 0.25)
    assert (counters.asked_tokens, counters.hit_tokens) == (110, 60)


def test_deferred_requests_wait_too():
    """Requests that newer versions count apart are among those that wait."""
    stats = _scheduler(0, 1, 0.0)
    stats.num_skipped_waiting_reqs = 2
    counters = EngineCounters()
    counters.note(0, stats, None)
    assert counters.waiting == 3


def test_ranks_are_put_together():
    """Several schedulers of one engine: requests add up, and the use of memory is their mean."""
    counters = EngineCounters()
    counters.note(0, _scheduler(3, 1, 0.5), None)
    counters.note(1, _scheduler(1, 0, 0.1), None)
    assert (counters.running, counters.waiting, counters.kv_usage) == (4, 1, pytest.approx(0.3))


def test_requests_that_end_by_themselves_count():
    """An aborted request is not a finished one; preemptions add up."""
    requests = [_request("stop"), _request("length", 5, 0, 1), _request("abort")]
    counters = EngineCounters()
    for _ in range(2):
        counters.note(0, None, SimpleNamespace(num_preempted_reqs=2, finished_requests=requests))
    assert (counters.finished, counters.preempted) == (4, 4)
    assert (counters.prompt_tokens, counters.cached_tokens, counters.output_tokens) == (30, 8, 8)


@pytest.mark.parametrize(
    ("scheduler", "iteration"),
    [
        (object(), object()),
        (SimpleNamespace(num_running_reqs="three", num_waiting_reqs=None), None),
        (None, SimpleNamespace(num_preempted_reqs=None)),
        (None, SimpleNamespace(finished_requests=5)),
        (None, None),
    ],
)
def test_what_another_version_says_harms_nobody(scheduler, iteration):
    """Unknown or odd figures are left out, since an exception would end the engine."""
    counters = EngineCounters()
    counters.note(0, scheduler, iteration)
    assert (counters.running, counters.waiting, counters.finished) == (0, 0, 0)


@pytest.mark.vllm
def test_vllm_takes_both_loggers():
    """Ours hears of every step from vLLM, which counts nothing for Prometheus by itself."""
    loggers = pytest.importorskip("vllm.v1.metrics.loggers")
    counters = EngineCounters()
    manager = loggers.StatLoggerManager(
        vllm_config=None, custom_stat_loggers=stat_loggers(counters), enable_default_loggers=False
    )
    assert len(manager.stat_loggers) == 2
    manager.log_engine_initialized()
    manager.record(_scheduler(3, 1, 0.5, queries=0, hits=0), None, None, 0)
    manager.record_sleep_state(1, 1)
    manager.log()
    assert (counters.running, counters.waiting) == (3, 1)
