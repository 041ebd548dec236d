"""Who is asked to change the members, and what is made of the answers: nodes played by a table, asked in real time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.errors import Code, TenfoldError
from cluster.local import admin as admin_module
from cluster.local.admin import Admin
from cluster.local.ask import Asker
from cluster.ports import ChannelBroken
from proto.gen import node_pb2

REQUEST = node_pb2.DrainRequest(node="n4")


class Nodes:
    """Address to what is answered there; who was asked."""

    def __init__(self, **answers: Exception | int) -> None:
        self.answers: dict[str, Exception | int] = dict(answers)
        self.asked: list[str] = []

    def admin(self) -> Admin:
        return Admin(Asker(dial=lambda address: _Channel(self, address)), lambda: list(self.answers))


class _Channel:
    def __init__(self, nodes: Nodes, address: str) -> None:
        self._nodes, self._address = nodes, address

    async def call(self, service: str, method: str, request: Any, *, timeout_s: float) -> Any:
        assert (service, method, request) == ("Node", "Drain", REQUEST)
        self._nodes.asked.append(self._address)
        answer = self._nodes.answers[self._address]
        if isinstance(answer, Exception):
            raise answer
        return node_pb2.AdminReply(epoch=answer)

    def replies(self, service: str, method: str, request: Any) -> AsyncIterator[Any]:
        raise NotImplementedError

    def stream(self, service: str, method: str) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        pass


def elsewhere(leader: str) -> TenfoldError:
    return TenfoldError(Code.NOT_LEADER, "asked elsewhere", leader=leader)


async def test_the_leader_is_followed_at_once_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_module, "PAUSE_S", 60.0)
    nodes = Nodes(a=elsewhere("c"), b=elsewhere("c"), c=7)
    admin = nodes.admin()
    async with asyncio.timeout(10):
        for _ in range(3):
            assert (await admin.ask("Drain", REQUEST)).epoch == 7
    assert nodes.asked[1:] == ["c", "c", "c"]


async def test_the_next_is_asked_where_one_is_away_or_knows_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_module, "PAUSE_S", 0.001)
    unknown = TenfoldError(Code.UNKNOWN_OUTCOME, "who knows")
    nodes = Nodes(a=ChannelBroken("refused", sent=False), b=TimeoutError(), c=elsewhere(""), d=unknown, e=9)
    assert (await nodes.admin().ask("Drain", REQUEST)).epoch == 9
    assert nodes.asked == ["b", "c", "d", "e"]


async def test_two_that_name_each_other_are_not_asked_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_module, "PAUSE_S", 0.05)
    nodes = Nodes(a=elsewhere("b"), b=elsewhere("a"))
    with pytest.raises(TenfoldError, match=r"Drain: no meta leader answered within 0\.2 s.*: asked elsewhere") as late:
        await nodes.admin().ask("Drain", REQUEST, timeout_s=0.2)
    assert late.value.code is Code.DEADLINE_EXCEEDED and len(nodes.asked) <= 5 * 4


@pytest.mark.parametrize("code", [Code.MEMBER_BUSY, Code.INVALID_ARGUMENT])
async def test_a_refusal_is_told_at_once(code: Code) -> None:
    nodes = Nodes(a=TenfoldError(code, "no"), b=TenfoldError(code, "no"))
    with pytest.raises(TenfoldError, match="no") as refused:
        await nodes.admin().ask("Drain", REQUEST)
    assert refused.value.code is code and len(nodes.asked) == 1


async def test_without_a_node_that_runs_nothing_is_waited_for() -> None:
    with pytest.raises(TenfoldError, match="no node of the cluster runs") as refused:
        await Nodes().admin().ask("Drain", REQUEST)
    assert refused.value.code is Code.UNAVAILABLE
