from __future__ import annotations

from cluster.raft.messages import Entry, Message, MessageKind


async def test_messages_flow_both_ways(station):
    a, b = await station("a"), await station("b", 7)
    a.knows(b)
    b.knows(a)
    await a.recorder.until(lambda: bool(a.recorder.ups))
    await b.recorder.until(lambda: bool(b.recorder.ups))
    assert a.recorder.ups == [("b", 7, b.address)]
    m = Message(MessageKind.APPEND, 1, 2, 3, entries=[Entry(1, 3, 0, b"x")])
    a.peers.send("b", 4, [m, m])
    a.peers.flush()
    await b.recorder.until(lambda: len(b.recorder.messages) == 2)
    assert b.recorder.batches == [2]
    await b.recorder.until(lambda: bool(b.recorder.heartbeats))
