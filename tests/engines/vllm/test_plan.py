from __future__ import annotations

import os
import sys

import pytest

from alto.engines._vllm import placement as _machine
from alto.engines._vllm.placement import (
    Device,
    Machine,
    Placement,
    PlacementRequest,
    check_request,
    look_at_machine,
    plan,
    size_of_weights,
)
from alto.errors import EngineStartError

GIB = 1 << 30


def _gpus(count, *, memory=80 * GIB, free=None):
    free = memory if free is None else free
    devices = tuple(Device(index=i, memory=memory, free=free) for i in range(count))
    return Machine(cpu=False, devices=devices, memory=512 * GIB)


def _cpu(cores=8, *, memory=64 * GIB, **more):
    return Machine(cpu=True, cores=tuple(range(cores)), memory=memory, **more)


def _wish(replicas="auto", tp=1, **more):
    return PlacementRequest(name="m", replicas=replicas, sizes={"tensor_parallel_size": tp}, **more)


def _ids(placements):
    return [placement.arguments.get("device_ids") for placement in placements]


class TestDevices:
    """Replicas on GPUs."""

    @pytest.mark.parametrize("count", [2, 4, 8])
    def test_each_device_has_a_replica(self, count):
        """Unless told otherwise there are as many replicas as devices, all started at once."""
        placements = plan(_gpus(count), _wish())
        assert _ids(placements) == [[i] for i in range(count)]
        assert [placement.group for placement in placements] == list(range(count))
        assert all("gpu_memory_utilization" not in placement.arguments for placement in placements)

    @pytest.mark.parametrize("replicas", ["auto", 1])
    def test_one_device_is_left_to_vllm(self, replicas):
        """One replica on the only device that is visible needs no arguments."""
        assert plan(_gpus(1), _wish(replicas)) == (Placement(group=0),)

    def test_fewer_replicas_than_devices(self):
        """They are on the first devices."""
        assert _ids(plan(_gpus(8), _wish(2))) == [[0], [1]]

    @pytest.mark.parametrize(("count", "replicas"), [(2, 1), (4, 2), (8, 4), (5, 2)])
    def test_a_tensor_parallel_group_counts_as_one(self, count, replicas):
        """Two devices for each replica; one that is over is not used."""
        placements = plan(_gpus(count), _wish(tp=2))
        assert len(placements) == replicas
        expected = [[2 * i, 2 * i + 1] for i in range(replicas)]
        assert _ids(placements) == ([None] if count == 2 else expected)

    def test_all_parallel_sizes_count(self):
        """An engine of two stages of two devices each takes four."""
        sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
        assert _ids(plan(_gpus(8), PlacementRequest(name="m", sizes=sizes))) == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
        ]

    def test_devices_that_were_asked_for(self):
        """Only those are used, in the given order."""
        assert _ids(plan(_gpus(4), _wish(devices=(3, 1)))) == [[3], [1]]
        assert _ids(plan(_gpus(4), _wish(devices=(3, 1), tp=2))) == [[3, 1]]
        assert _ids(plan(_gpus(4), _wish(1, devices=(2,)))) == [[2]]

    def test_devices_by_name(self):
        """A UUID is passed on as it is."""
        assert _ids(plan(_gpus(2), _wish(devices=("GPU-a", "GPU-b")))) == [["GPU-a"], ["GPU-b"]]

    def test_replicas_share_a_device(self):
        """They have equal parts of its memory, and start one after the other."""
        placements = plan(_gpus(1), _wish(2, weights=10 * GIB))
        assert _ids(placements) == [[0], [0]]
        assert [placement.group for placement in placements] == [0, 0]
        assert [placement.arguments["gpu_memory_utilization"] for placement in placements] == [
            0.46,
            0.46,
        ]

    def test_only_those_that_share_have_less(self):
        """With three replicas on two devices, the one that is alone has its device for itself."""
        placements = plan(_gpus(2), _wish(3))
        assert [placement.group for placement in placements] == [0, 1, 0]
        assert ["gpu_memory_utilization" in placement.arguments for placement in placements] == [
            True,
            False,
            True,
        ]

    def test_a_cache_of_a_given_size_is_kept(self):
        """Who sets the size of the cache gets it, with room made for all that share."""
        placements = plan(_gpus(1), _wish(4, engine_args={"kv_cache_memory_bytes": 4 * GIB}))
        assert all("kv_cache_memory_bytes" not in placement.arguments for placement in placements)
        assert {placement.arguments["gpu_memory_utilization"] for placement in placements} == {0.23}

    def test_a_share_that_was_given_is_kept(self):
        """Who sets the share gets it, if all of them fit."""
        placements = plan(_gpus(1), _wish(2, engine_args={"gpu_memory_utilization": 0.4}))
        assert all("gpu_memory_utilization" not in placement.arguments for placement in placements)

    @pytest.mark.parametrize(
        ("machine", "wanted", "words"),
        [
            (_gpus(0), _wish(), ["none is visible", "CUDA_VISIBLE_DEVICES", r"alto-llm\[cpu\]"]),
            (
                _gpus(1),
                _wish(tp=2),
                ["tensor_parallel_size=2", "needs 2 devices", "1 is visible", "at most 1"],
            ),
            (_gpus(4), _wish(3, tp=2), ["replicas=3", "6 in all", "4 are", "set replicas=2"]),
            (
                _gpus(8),
                _wish(2, tp=2, devices=(0, 1)),
                ["replicas=2", "2 are given", "set replicas=1"],
            ),
            (_gpus(2), _wish(devices=(1, 5)), [r"\[5\]", r"visible devices are \[0, 1\]"]),
            (
                _gpus(1),
                _wish(40),
                ["replicas=40 puts 40 of them on device 0", "fewer replicas"],
            ),
            (
                _gpus(1),
                _wish(4, weights=30 * GIB),
                ["replicas=4", "needs 32.0 GiB", "fewer replicas"],
            ),
            (
                _gpus(1, free=20 * GIB),
                _wish(2),
                ["only 20.0 GiB of 80.0 GiB are free", "gpu_memory_utilization=0.12"],
            ),
            (
                _gpus(1),
                _wish(3, engine_args={"gpu_memory_utilization": 0.5}),
                ["gpu_memory_utilization=0.5", "more than the device", "at most 0.3"],
            ),
            (
                _gpus(1),
                _wish(3, engine_args={"kv_cache_memory_bytes": 30 * GIB}),
                ["takes about 96.0 GiB", "it has 80.0 GiB", "smaller kv_cache_memory_bytes"],
            ),
            (
                Machine(cpu=False, devices=(Device(index=0),)),
                _wish(400),
                ["replicas=400", "fewer replicas"],
            ),
        ],
    )
    def test_what_cannot_be_is_said(self, machine, wanted, words):
        """The error says what was asked, what there is, and what to set."""
        with pytest.raises(EngineStartError, match="engine 'm'") as caught:
            plan(machine, wanted)
        for word in words:
            assert caught.match(word)


class TestCPU:
    """Replicas on the cores of a CPU."""

    @pytest.mark.parametrize("replicas", ["auto", 1])
    def test_one_replica_has_it_all(self, replicas):
        """Its cores are left to vLLM, and its memory to the defaults."""
        assert plan(_cpu(), _wish(replicas)) == (Placement(group=0),)

    def test_replicas_have_cores_of_their_own(self):
        """Each has as many, no core is in two, and one is spared where there are enough."""
        placements = plan(_cpu(8), _wish(2))
        assert [placement.cores for placement in placements] == ["0,1,2", "4,5,6"]
        assert [placement.group for placement in placements] == [0, 1]
        assert [placement.cores for placement in plan(_cpu(2), _wish(2))] == ["0", "1"]
        assert [placement.cores for placement in plan(_cpu(5), _wish(2))] == ["0,1", "2,3,4"]

    def test_parts_of_a_replica_have_cores_of_their_own(self):
        """A tensor-parallel replica has a list for each of its parts."""
        placements = plan(_cpu(8), _wish(2, tp=2))
        assert [placement.cores for placement in placements] == ["0,1|2,3", "4,5|6,7"]
        assert [placement.cores for placement in plan(_cpu(4), _wish(tp=2))] == ["0,1|2,3"]

    def test_memory_is_shared_out(self):
        """Each cache has its part of a quarter of the machine, within limits."""
        assert {p.arguments["kv_cache_memory_bytes"] for p in plan(_cpu(), _wish(8))} == {2 * GIB}
        assert {p.arguments["kv_cache_memory_bytes"] for p in plan(_cpu(), _wish(2))} == {4 * GIB}
        tight = _cpu(available=4 * GIB)
        assert {p.arguments["kv_cache_memory_bytes"] for p in plan(tight, _wish(2))} == {GIB // 4}

    def test_a_cache_of_a_given_size_is_kept(self):
        """Who sets the size of the cache gets it."""
        request = _wish(2, engine_args={"kv_cache_memory_bytes": 64 << 20})
        assert all(not placement.arguments for placement in plan(_cpu(), request))

    @pytest.mark.parametrize("given", [{}, {"kv_cache_memory_bytes": 64 * GIB}])
    def test_a_cache_of_the_environments_size_is_kept(self, given):
        """Where the environment sets the size, it goes before the arguments, and we set none."""
        machine = _cpu(available=12 * GIB, cache_space=4 * GIB)
        placements = plan(machine, _wish(2, engine_args=given))
        assert [dict(placement.arguments) for placement in placements] == [{}, {}]
        assert plan(machine, _wish(1, engine_args=given)) == (Placement(group=0),)

    @pytest.mark.parametrize("machine", [_cpu(2, binding_chosen=True), _cpu(0)])
    def test_cores_are_left_alone(self, machine):
        """Where the environment binds, or the cores are not known, any number of replicas may."""
        placements = plan(machine, _wish(3))
        assert [placement.cores for placement in placements] == [None] * 3

    @pytest.mark.parametrize(
        ("machine", "wanted", "words"),
        [
            (_cpu(2), _wish(3), ["needs 3 CPU cores", "there are 2", "set replicas=2", "nobind"]),
            (_cpu(2), _wish(2, tp=2), ["needs 4 CPU cores", "set replicas=1"]),
            (
                _cpu(available=4 * GIB),
                _wish(4, weights=GIB),
                ["needs about 10.0 GiB", "4.0 GiB are free", "set replicas=1"],
            ),
            (
                _cpu(available=8 * GIB),
                _wish(2, engine_args={"kv_cache_memory_bytes": 4 * GIB}),
                ["smaller kv_cache_memory_bytes"],
            ),
            (
                _cpu(available=16 * GIB, cache_space=4 * GIB),
                _wish(3),
                [
                    "needs about 16.5 GiB",
                    "16.0 GiB are free",
                    "set replicas=2, or a smaller VLLM_CPU_KVCACHE_SPACE in the environment",
                ],
            ),
            (
                _cpu(available=16 * GIB, cache_space=4 * GIB),
                _wish(2, tp=2),
                ["needs about 19.0 GiB"],
            ),
            (_cpu(), _wish(devices=(0,)), [r"devices=\[0\]", "computes on the CPU"]),
        ],
    )
    def test_what_cannot_be_is_said(self, machine, wanted, words):
        """The error says what was asked, what there is, and what to set."""
        with pytest.raises(EngineStartError, match="engine 'm'") as caught:
            plan(machine, wanted)
        for word in words:
            assert caught.match(word)


class TestWish:
    """What no machine could do is refused before one is looked at."""

    @pytest.mark.parametrize(
        ("replicas", "tp", "devices", "word"),
        [
            (0, 1, None, "replicas"),
            (True, 1, None, "replicas"),
            ("all", 1, None, '"auto"'),
            (1, 0, None, "tensor_parallel_size"),
            (1, 1, [], "list of device numbers"),
            (1, 1, "0,1", "list of device numbers"),
            (1, 1, [0.5], "number or UUID"),
            (1, 1, [0, "GPU-a"], "not both"),
            (1, 1, [1, 1], "given twice"),
        ],
    )
    def test_nonsense(self, replicas, tp, devices, word):
        """The error names the argument."""
        with pytest.raises(ValueError, match=word):
            check_request(replicas, tp, devices)

    def test_sense(self):
        """The devices come back as a tuple."""
        assert check_request("auto", 2, [0, 1]) == (0, 1)
        assert check_request(3, 1, None) is None


class TestMachine:
    """What this machine says of itself."""

    def test_cores_are_ours(self):
        """The cores are some that this process may run on."""
        if not hasattr(os, "sched_getaffinity"):
            pytest.skip("this system does not tell")
        cores = _machine._cores()
        assert cores
        assert set(cores) <= os.sched_getaffinity(0)

    def test_the_size_of_weights_is_that_of_one_format(self, tmp_path):
        """A folder with the weights in two formats holds them once."""
        assert size_of_weights("org/model") is None
        assert size_of_weights(str(tmp_path)) is None
        (tmp_path / "a.safetensors").write_bytes(bytes(100))
        (tmp_path / "b.safetensors").write_bytes(bytes(50))
        (tmp_path / "c.bin").write_bytes(bytes(140))
        assert size_of_weights(str(tmp_path)) == 150

    @pytest.mark.parametrize("said", ["print([[1, 2]])", "print('no')", "exit(1)"])
    def test_another_process_is_asked_for_memory(self, monkeypatch, said):
        """Its answer counts, and that it failed is no harm."""
        monkeypatch.setattr(_machine, "_ASK", said)
        assert _machine._ask_memory() == ([(1, 2)] if "1, 2" in said else [])

    @pytest.mark.parametrize(
        ("given", "expected"), [(None, None), ("", None), ("0", 0), ("3", 3 * GIB)]
    )
    def test_the_environment_may_give_the_size_of_a_cache(self, monkeypatch, given, expected):
        """It is read as vLLM reads it: whole GiB, and an empty value does not count."""
        monkeypatch.delenv(_machine.CACHE_SPACE, raising=False)
        if given is not None:
            monkeypatch.setenv(_machine.CACHE_SPACE, given)
        assert _machine._cache_space("m") == expected

    def test_a_size_that_is_no_number_is_refused(self, monkeypatch):
        """The error names the variable, since vLLM's does not."""
        monkeypatch.setenv(_machine.CACHE_SPACE, "4.5")
        with pytest.raises(EngineStartError, match=r"VLLM_CPU_KVCACHE_SPACE='4\.5'"):
            _machine._cache_space("m")

    @pytest.mark.vllm
    def test_looking_starts_nothing(self):
        """A look at the machine agrees with vLLM, and does not start CUDA here."""
        machine = look_at_machine("m", with_memory=True)
        assert machine.memory > GIB
        assert machine.cpu == (not machine.devices)
        assert not sys.modules["torch"].cuda.is_initialized()
