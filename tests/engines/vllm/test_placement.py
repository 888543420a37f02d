"""What `VLLM` makes of a machine, with engines that only say what they were asked."""

from __future__ import annotations

import asyncio

import pytest

from alto.engines import vllm
from alto.engines._vllm.placement import Device, Machine
from alto.engines.vllm import VLLM
from alto.errors import Closed, EngineStartError
from alto.llm import LLM
from alto.model import EmbedRequest, EngineStatistics, GenerateRequest
from alto.testing import Scripted

pytestmark = pytest.mark.realtime  # the machine is looked at in a thread

GIB = 1 << 30


class _Made:
    """The engines that were made, with what they were given, and in which order they started."""

    def __init__(self):
        self.given = []
        self.events = []
        self.error = None

    def __call__(self, model, **given):
        self.given.append(given)
        return _Engine(self, given["name"])


class _Engine(Scripted):
    """An engine that says its name."""

    def __init__(self, made, name):
        super().__init__(lambda _prompt: [name], name=name)
        self.made = made

    async def start(self):
        self.made.events.append(f"{self.name} starts")
        await asyncio.sleep(0.01)
        if self.made.error is not None:
            raise self.made.error
        await super().start()
        self.made.events.append(f"{self.name} runs")


@pytest.fixture
def made(monkeypatch):
    """Stands in for vLLM's engines."""
    made = _Made()
    monkeypatch.setattr(vllm, "VLLMEngine", made)
    return made


@pytest.fixture
def on(monkeypatch):
    """Makes the machine one with this many GPUs, or with a CPU."""

    def make(count, **more):
        def look(name, *, with_memory=False):
            memory = 80 * GIB if with_memory else None
            devices = tuple(Device(index=i, memory=memory, free=memory) for i in range(count))
            return Machine(cpu=not count, devices=devices, cores=(0, 1, 2, 3), **more)

        monkeypatch.setattr(vllm, "look_at_machine", look)

    return make


async def test_each_gpu_has_an_engine(made, on):
    """The engines are named by number, have a device each, and start at the same time."""
    on(2)
    async with VLLM("org/model", max_model_len=77, lora=None) as engine:
        assert [given["device_ids"] for given in made.given] == [[0], [1]]
        assert [given["name"] for given in made.given] == ["model[0]", "model[1]"]
        assert all(given["max_model_len"] == 77 for given in made.given)
        assert all(given["tensor_parallel_size"] == 1 for given in made.given)
        assert made.events[:2] == ["model[0] starts", "model[1] starts"]
        assert len(made.events) == 4
        assert await LLM(engine).text("x") in ("model[0]", "model[1]")


async def test_groups_of_gpus(made, on):
    """A model that is spread over two of four GPUs is there twice."""
    on(4)
    async with VLLM("org/model", tensor_parallel_size=2):
        assert [given["device_ids"] for given in made.given] == [[0, 1], [2, 3]]
        assert all(given["tensor_parallel_size"] == 2 for given in made.given)


@pytest.mark.parametrize("word", ["devices", "device_ids"])
async def test_chosen_gpus(made, on, word):
    """Devices may be chosen in our word or in vLLM's."""
    on(4)
    async with VLLM("org/model", **{word: [3]}):
        assert [given["device_ids"] for given in made.given] == [[3]]
        assert made.given[0]["name"] == "model"
    with pytest.raises(ValueError, match="not both"):
        VLLM("org/model", devices=[1], device_ids=[2])


async def test_engines_on_one_gpu_start_in_turn(made, on):
    """Those that share a device start one after the other, with a share of its memory each."""
    on(1)
    async with VLLM("org/model", replicas=2):
        assert [given["gpu_memory_utilization"] for given in made.given] == [0.46, 0.46]
    expected = ["model[0] starts", "model[0] runs", "model[1] starts", "model[1] runs"]
    assert made.events == expected


async def test_cores_of_a_cpu(made, on):
    """On a CPU the engines have cores of their own, and one by itself is not bound."""
    on(0, memory=64 * GIB)
    async with VLLM("org/model", replicas=2, kv_cache_memory_bytes=1):
        assert [given["cores"] for given in made.given] == ["0,1", "2,3"]
        assert all(given["kv_cache_memory_bytes"] == 1 for given in made.given)
    made.given.clear()
    async with VLLM("org/model", kv_events=False, streamed_prompts=True):
        assert made.given[0]["cores"] is None
        assert made.given[0]["kv_events"] is False
        assert made.given[0]["streamed_prompts"] is True


async def test_too_many_are_refused_before_anything_starts(made, on):
    """The error is the plan's, nothing was started, and it can be asked again."""
    on(1)
    engine = VLLM("org/model", tensor_parallel_size=2)
    for _ in range(2):
        with pytest.raises(EngineStartError, match=r"'model'.*tensor_parallel_size=2 needs 2"):
            await engine.start()
    assert made.given == []
    assert engine.engines == ()
    with pytest.raises(ValueError, match="replicas"):
        VLLM("org/model", replicas=0)


async def test_a_failed_start_can_be_repeated(made, on):
    """An engine that did not start is asked again at the next start."""
    on(2)
    made.error = EngineStartError("model[0]", "no luck")
    engine = VLLM("org/model")
    with pytest.raises(EngineStartError, match="no luck"):
        await engine.start()
    made.error = None
    async with engine:
        assert await LLM(engine).text("x")
    assert len(made.given) == 2


async def test_it_is_one_engine(made, on):
    """Before, while and after it runs it answers as an engine does, and can be used again."""
    on(2)
    engine = VLLM("org/model", name="judge")
    assert repr(engine) == "<VLLM 'judge', stopped>"
    assert (engine.name, engine.model, engine.scores_pairs) == ("judge", "org/model", False)
    assert engine.statistics() == EngineStatistics()
    await engine.stop(drain=True)
    for _ in range(2):
        await engine.start()
        await engine.start()
        assert await LLM(engine).text("x") in ("judge[0]", "judge[1]")
        assert [one.state for one in engine.engines] == ["running", "running"]
        assert engine.statistics().finished == sum(e.statistics.finished for e in engine.engines)
        assert repr(engine) == "<VLLM 'judge', 0 running on 2 of 2 engines>"
        assert not engine.listen(None)
        engine.check_health()
        await engine.stop(drain=True)
        assert repr(engine) == "<VLLM 'judge', stopped>"
    with pytest.raises(Closed):
        engine.check_health()
    with pytest.raises(Closed):
        await LLM(engine).text("x")


async def test_nothing_works_before_the_start():
    """Whatever needs an engine says that there is none."""
    engine = VLLM("org/model")
    for use in (
        lambda: engine.capacity,
        lambda: engine.max_model_len,
        lambda: engine.max_num_seqs,
        lambda: engine.generate(GenerateRequest(prompt="x")),
        engine.check_health,
    ):
        with pytest.raises(Closed, match="start it first"):
            use()
    for work in (engine.encode("x"), engine.embed(EmbedRequest(prompt="x"))):
        with pytest.raises(Closed, match="start it first"):
            await work
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await engine.wait_died()


@pytest.mark.parametrize(
    ("written", "word"),
    [(None, "there is no"), ("{}", "gives no rank"), ("[", "gives no rank"), ('{"r": 0}', "0")],
)
async def test_what_is_no_adapter_is_named(tmp_path, written, word):
    """The error names the adapter and its file, and nothing is started."""
    if written is not None:
        (tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(EngineStartError, match=rf"adapter 'law'.*{word}"):
        await VLLM("org/model", lora={"law": tmp_path}).start()
