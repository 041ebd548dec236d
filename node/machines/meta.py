"""The meta machine of shard 0: the members and the shard map.

Law: there is one first map for ever, and each change of the map raises its epoch by one; a command that changes nothing
leaves the epoch alone. Nothing goes to the feed: a watch tells changes of keys, and the map has a watch of its own.
"""

from __future__ import annotations

from cluster.errors import Code, TenfoldError, invalid
from cluster.ports import ReadView, View
from node.machines.machine import Stamp
from proto.gen.meta_pb2 import Member, MetaAnswer, MetaCommand, MetaQuery, MetaResult, ShardMap

_MAP_KEY = b"map"


class MetaMachine:
    name = "meta"

    def __init__(self) -> None:
        self._map: ShardMap | None = None

    @property
    def map(self) -> ShardMap | None:
        """The present map, None before the bootstrap. Not to be changed."""
        return self._map

    def load(self, view: View) -> None:
        stored = view.get(_MAP_KEY)
        self._map = ShardMap.FromString(stored) if stored is not None else None

    def parse(self, body: bytes) -> MetaCommand:
        return MetaCommand.FromString(body)

    def apply(self, command: MetaCommand, stamp: Stamp, view: View) -> MetaResult:
        if command.WhichOneof("command") == "bootstrap":
            if self._map is not None:
                raise TenfoldError(Code.ALREADY_EXISTS, f"there is a map, of epoch {self._map.epoch}")
            return self._store(command.bootstrap, view)
        return self._set_member(command.set_member, view)

    def _set_member(self, member: Member, view: View) -> MetaResult:
        if self._map is None:
            raise invalid("set_member", "there is no map yet")
        changed = ShardMap()
        changed.CopyFrom(self._map)
        for present in changed.members:
            if present.node == member.node:
                if present == member:
                    return MetaResult(epoch=self._map.epoch)
                present.CopyFrom(member)
                changed.epoch += 1
                return self._store(changed, view)
        raise invalid("set_member.node", f"{member.node!r} is not a member")

    def _store(self, changed: ShardMap, view: View) -> MetaResult:
        # A copy: the command belongs to whoever proposed it.
        self._map = ShardMap()
        self._map.CopyFrom(changed)
        view.put(_MAP_KEY, changed.SerializeToString(deterministic=True))
        return MetaResult(epoch=changed.epoch)

    def query(self, request: MetaQuery, view: ReadView) -> MetaAnswer:
        return MetaAnswer(map=self._map)

    def pulse_due(self, view: ReadView, now_ms: int) -> bool:
        return False

    def pulse(self, stamp: Stamp, view: View) -> None:
        """Nothing here expires."""

    def check_invariants(self, view: ReadView) -> None:
        pairs = list(view.scan(b"", b""))
        assert [key for key, _ in pairs] == ([_MAP_KEY] if self._map is not None else []), (
            "the view holds the map alone"
        )
        if self._map is not None:
            assert ShardMap.FromString(pairs[0][1]) == self._map, "the map in memory is the map in the view"
            assert self._map.epoch > 0, "a map has an epoch"
