"""The outbox keeps order and its bounds, whatever comes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.limits import DEFAULT
from cluster.raft.messages import Entry, Message, MessageKind
from node.transport.codec import size_bound
from node.transport.outbox import HEARTBEAT_BYTES_MAX, Outbox

SMALL = replace(DEFAULT, frame_bytes_max=4096, peer_queue_bytes_max=16 * 1024)


def append(number: int, size: int) -> Message:
    return Message(MessageKind.APPEND, 1, 2, number, entries=[Entry(1, 1, 0, b"x" * size)])


@given(st.lists(st.one_of(st.integers(0, 6000), st.none()), max_size=60))
def test_order_bounds_and_drops(steps: list[int | None]) -> None:
    """A number is a message of that size, None takes a frame."""
    outbox = Outbox(SMALL)
    waiting: list[tuple[int, int]] = []
    for number, step in enumerate(steps, 1):
        if step is None:
            if not waiting:
                assert not outbox
                continue
            frame = outbox.take()
            taken = [(m.term, m.shard) for m in frame.messages]
            assert taken == waiting[: len(taken)] and taken
            assert len(taken) == 1 or frame.ByteSize() <= SMALL.frame_bytes_max - HEARTBEAT_BYTES_MAX
            del waiting[: len(taken)]
        else:
            message = append(number, step)
            fits = outbox.bytes + size_bound(message) <= SMALL.peer_queue_bytes_max
            assert outbox.add(number % 7, message) == fits
            if fits:
                waiting.append((number, number % 7))
        assert outbox.bytes <= SMALL.peer_queue_bytes_max
        assert bool(outbox) == bool(waiting)


def test_as_few_frames_as_fit() -> None:
    outbox = Outbox(SMALL)
    for number in range(30):
        assert outbox.add(1, append(number, 250))
    sizes = []
    while outbox:
        sizes.append(len(outbox.take().messages))
    assert sizes == [9, 9, 9, 3]  # 9 * (250 + 160) <= 4096 - 64 < 10 * (250 + 160)


def test_a_message_queued_is_not_changed_by_its_sender_afterwards() -> None:
    outbox = Outbox(SMALL)
    message = append(5, 10)
    outbox.add(1, message)
    message.term = 6
    message.entries.clear()
    sent = outbox.take().messages[0]
    assert sent.term == 5 and len(sent.entries) == 1


def test_clear_forgets_everything() -> None:
    outbox = Outbox(SMALL)
    outbox.add(1, append(1, 3000))
    outbox.clear()
    assert not outbox and outbox.bytes == 0
    outbox.add(1, append(2, 10))
    assert [m.term for m in outbox.take().messages] == [2]
