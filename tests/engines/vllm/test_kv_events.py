from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from alto._sched.prefix import PrefixIndex, chain, salt_of
from alto.engines._vllm.kv_events import CacheEventReader, CacheEvents

msgspec = pytest.importorskip("msgspec")


class _Heard:
    """A listener that writes down what it is told."""

    def __init__(self):
        self.said = []

    def stored(self, parent, token_ids, keys, salt=0, /):
        self.said.append(("stored", parent, list(token_ids), list(keys), salt))

    def removed(self, keys, /):
        self.said.append(("removed", list(keys)))

    def cleared(self):
        self.said.append(("cleared",))


def _message(number, *events):
    batch = [1.5, list(events), 0]
    return [b"", number.to_bytes(8, "big"), msgspec.msgpack.encode(batch)]


def _stored(keys, parent=None, tokens=(1, 2), **more):
    return {
        "type": "BlockStored",
        "block_hashes": list(keys),
        "parent_block_hash": parent,
        "token_ids": list(tokens),
        "block_size": 2,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        **more,
    }


@pytest.fixture
def heard():
    """A listener."""
    return _Heard()


@pytest.fixture
def reader(heard):
    """A reader that tells it."""
    reader = CacheEventReader()
    reader.listeners.append(heard)
    return reader


class TestReader:
    """Messages become calls."""

    def test_each_event_is_told(self, reader, heard):
        """Blocks that came, blocks that went, and all of them gone."""
        big = (1 << 64) - 1
        reader.read(_message(0, _stored([big]), _stored([8, 9], big, [3, 4, 5, 6])))
        reader.read(_message(1, {"type": "BlockRemoved", "block_hashes": [9], "medium": "GPU"}))
        reader.read(_message(2, {"type": "AllBlocksCleared"}))
        assert heard.said == [
            ("stored", None, [1, 2], [big], 0),
            ("stored", big, [3, 4, 5, 6], [8, 9], 0),
            ("removed", [9]),
            ("cleared",),
        ]

    def test_events_may_be_lists(self, reader, heard):
        """Older versions send an event's values in order."""
        reader.read(
            _message(
                0,
                ["BlockStored", [7], None, [1, 2], 2, None],
                ["BlockRemoved", [7]],
                ["AllBlocksCleared"],
            )
        )
        assert [said[0] for said in heard.said] == ["stored", "removed", "cleared"]

    def test_names_may_be_bytes(self, reader, heard):
        """A version that names blocks by whole hashes is understood."""
        reader.read(_message(0, _stored([b"\x01\x00"], b"\x02")))
        assert heard.said == [("stored", 2, [1, 2], [256], 0)]

    def test_an_adapter_keeps_blocks_apart(self, reader, heard):
        """Blocks of an adapter have its salt."""
        reader.read(_message(0, _stored([7], lora_name="law")))
        assert heard.said[0][-1] == salt_of("law") != 0

    @pytest.mark.parametrize("more", [{"medium": "CPU"}, {"group_idx": 1}])
    def test_copies_are_left_out(self, reader, heard, more):
        """Blocks in other memory, or of other layers for the same tokens, tell nothing new."""
        reader.read(_message(0, _stored([7], **more)))
        assert heard.said == []

    @pytest.mark.parametrize("numbers", [(1,), (0, 2), (0, 0)])
    def test_a_gap_forgets_everything(self, reader, heard, numbers):
        """A batch that is missing, at the beginning too, makes what was known worthless."""
        for number in numbers:
            reader.read(_message(number, _stored([number])))
        said = [what[0] for what in heard.said]
        assert said == ["stored"] * (len(numbers) - 1) + ["cleared", "stored"]

    @pytest.mark.parametrize(
        "frames",
        [
            [],
            [b"x"],
            [b"", bytes(8), b"\xc1"],
            [b"", bytes(8), msgspec.msgpack.encode(5)],
            _message(0, {"type": "BlockStored"}),
            _message(0, 5),
            _message(0, ["Unheard", 1]),
        ],
    )
    def test_nonsense_forgets_everything(self, reader, heard, frames):
        """What cannot be read raises nothing, and counts as lost."""
        if not frames:
            frames = [b""]
        reader.read(frames)
        assert set(heard.said) == {("cleared",)}
        reader.read(_message(1, _stored([7])))
        assert heard.said[-1][0] == "stored"

    def test_unheard_events_are_passed_over(self, reader, heard):
        """A kind of event that nobody knows, with known fields, changes nothing."""
        reader.read(_message(0, {"type": "BlockBlessed", "block_hashes": [1]}))
        assert heard.said == []

    def test_without_listeners_only_the_number_counts(self, heard):
        """A listener that comes later does not take what it has not heard for a gap."""
        reader = CacheEventReader()
        reader.read(_message(0, _stored([7])))
        reader.listeners.append(heard)
        reader.read(_message(1, _stored([8])))
        assert [said[0] for said in heard.said] == ["stored"]

    def test_an_index_follows(self, reader):
        """An index that listens holds the blocks of the prompt, until they go."""
        index = PrefixIndex(64)
        index.add(0, 100)

        class Listener:
            def stored(self, *args):
                index.stored(0, *args)

            def removed(self, *args):
                index.removed(0, *args)

            def cleared(self):
                index.cleared(0)

        reader.listeners[:] = [Listener()]
        tokens = list(range(200))
        names = index.thin(chain(tokens, 64))
        reader.read(_message(0, _stored([5, 6], None, tokens[:128])))
        reader.read(_message(1, _stored([7], 6, tokens[128:192])))
        assert index.hits(names, 1) == [192]
        reader.read(_message(2, {"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU"}))
        assert index.hits(names, 1) == [128]
        reader.read(_message(4))
        assert index.hits(names, 1) == [0]
        index.check()


@pytest.mark.realtime
class TestSocket:
    """The way from the engine's process."""

    async def test_it_hears_from_the_first_event_on(self, heard):
        """A publisher that comes later is found, and nothing that it says after that is missed."""
        zmq = pytest.importorskip("zmq")
        events = CacheEvents()
        events.add(heard)
        folder = Path(events.endpoint.removeprefix("ipc://")).parent
        assert folder.stat().st_mode & 0o077 == 0
        with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
            publisher.bind(events.endpoint)
            assert await events.wait_connected(120)
            assert await events.wait_connected(0)
            for number in range(3):
                publisher.send_multipart(_message(number, _stored([number])))
            async with asyncio.timeout(120):
                while len(heard.said) < 3:  # noqa: ASYNC110  # it waits for another thread
                    await asyncio.sleep(0.01)
            await events.close()
        assert [said[0] for said in heard.said] == ["stored"] * 3
        assert not folder.exists()

    async def test_nobody_speaks(self):
        """Where no publisher comes it says so, and closes all the same."""
        for waits in (True, False):
            events = CacheEvents()
            if waits:
                assert not await events.wait_connected(0.05)
            await events.close()
