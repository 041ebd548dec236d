"""Links between nodes, cut one way and both: real sockets on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chaos.nemesis.links import Links


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A node that answers each line in capitals, and what it heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            heard.append(line)
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()


async def dial(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0.005)


@asynccontextmanager
async def world() -> AsyncIterator[tuple[Links, asyncio.StreamReader, asyncio.StreamWriter, list[bytes]]]:
    """n1 has dialled n2 and been answered."""
    async with asyncio.timeout(10), echo() as (one, _), echo() as (two, heard), Links({"n1": one, "n2": two}) as links:
        assert set(links.routes("n1")) == {two} and set(links.routes("n2")) == {one}
        reader, writer = await dial(links.routes("n1")[two])
        writer.write(b"a\n")
        assert await reader.readline() == b"A\n"
        try:
            yield links, reader, writer, heard
        finally:
            writer.transport.abort()


async def test_what_is_sent_into_a_cut_arrives_when_it_is_healed() -> None:
    async with world() as (links, reader, writer, heard):
        links.cut("n1", "n2")
        writer.write(b"b\n")
        await writer.drain()
        direct, past = await dial(links.link("n1", "n2").address)
        past.write(b"c\n")
        assert await direct.readline() == b"C\n" and heard == [b"a\n", b"c\n"], "who goes past the link is heard"
        past.transport.abort()
        links.heal()
        assert await reader.readline() == b"B\n" and heard == [b"a\n", b"c\n", b"b\n"]


async def test_a_cut_of_the_way_back_leaves_the_way_there() -> None:
    async with world() as (links, reader, writer, heard):
        links.cut("n2", "n1")
        writer.write(b"b\n")
        await until(lambda: heard == [b"a\n", b"b\n"])
        answer = asyncio.ensure_future(reader.readline())
        await asyncio.sleep(0)
        assert not answer.done()
        links.heal()
        assert await answer == b"B\n"


async def test_nobody_connects_through_a_cut_and_a_node_alone_is_cut_both_ways() -> None:
    async with world() as (links, _, _, heard):
        links.isolate(["n2"])
        assert links.link("n1", "n2").there.held and links.link("n1", "n2").back.held
        reader, writer = await dial(links.link("n1", "n2").proxy)
        writer.write(b"c\n")
        await writer.drain()
        assert heard == [b"a\n"]
        links.heal()
        assert await reader.readline() == b"C\n"
        writer.transport.abort()


async def test_an_end_that_goes_is_told_to_the_other() -> None:
    async with world() as (links, reader, _, _):
        links.link("n1", "n2").reset()
        with pytest.raises(ConnectionError):
            assert not await reader.readline()
            raise ConnectionResetError  # closed in order is as good
        async with asyncio.timeout(5):
            await until(lambda: not links.link("n1", "n2")._connections)
