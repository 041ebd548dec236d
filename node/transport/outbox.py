"""What waits for one peer: frames under construction, bounded in bytes.

Messages of all shards share a frame until it is full, so that a round costs one stream message per peer: grpc's cost is
per message, not per byte. Raft repairs whatever is dropped here.
"""

from __future__ import annotations

from collections import deque

from cluster.limits import Limits
from cluster.raft.messages import Message
from node.transport.codec import fill, size_bound
from proto.gen import peer_pb2

HEARTBEAT_BYTES_MAX = 64
"""Kept free in every frame for the node's heartbeat."""


class Outbox:
    """First in, first out. Sizes are upper bounds, so a frame never passes `frame_bytes_max`, but for a single message
    that is larger by itself: that one has a frame of its own."""

    def __init__(self, limits: Limits) -> None:
        self._frame_bytes_max = limits.frame_bytes_max - HEARTBEAT_BYTES_MAX
        self._bytes_max = limits.peer_queue_bytes_max
        self._frames: deque[tuple[peer_pb2.Frame, int]] = deque()
        self._last_bytes = 0
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def add(self, shard: int, message: Message) -> bool:
        """False if it was dropped because the queue is full. The message is encoded now and not referred to later."""
        size = size_bound(message)
        if self.bytes + size > self._bytes_max:
            return False
        if self._frames and self._last_bytes + size <= self._frame_bytes_max:
            frame, _ = self._frames.pop()
            self._last_bytes += size
        else:
            frame = peer_pb2.Frame()
            self._last_bytes = size
        fill(frame.messages.add(), shard, message)
        self._frames.append((frame, self._last_bytes))
        self.bytes += size
        return True

    def take(self) -> peer_pb2.Frame:
        """The oldest frame. IndexError if there is none."""
        frame, size = self._frames.popleft()
        self.bytes -= size
        assert self.bytes >= 0 and (self.bytes == 0) == (not self._frames), "the queue's size is the sum of its frames"
        return frame

    def clear(self) -> None:
        self._frames.clear()
        self.bytes = 0
