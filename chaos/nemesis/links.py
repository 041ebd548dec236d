"""A TCP proxy for each ordered pair of nodes: what one node dials of another goes through it, and can be cut there.

A link passes bytes both ways until one direction is held: then what arrives from that side is neither read nor answered, as behind
a cable that was pulled, and the connection stands until somebody's keepalive notices. Nodes learn of their links by a file of
routes that they read at the start (`Layout.write_routes`); clients dial the nodes themselves. After reliability.md, faults of the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024


class Gate:
    """One direction of a link: open, or held."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    @property
    def held(self) -> bool:
        return not self._open.is_set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        await self._open.wait()


class Link:
    """What `source` dials of `target`. `there` are the bytes to the target, `back` those that come in answer."""

    def __init__(self, source: str, target: str, address: str) -> None:
        self.source, self.target, self.address = source, target, address
        self.there, self.back = Gate(), Gate()
        self.proxy = ""
        self.passed_bytes = 0
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], None] = {}

    async def open(self) -> None:
        """Listens on a port of its own on loopback; `proxy` is its address then."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.proxy = f"127.0.0.1:{port}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def reset(self) -> None:
        """Breaks every connection that stands."""
        for task in list(self._connections):
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = None
        try:
            await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of the ends is gone, or the link is reset: the other one is told by the close below
        finally:
            del self._connections[task]
            _drop(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.there.passed()  # a connection is not made through a cut either
        host, _, port = self.address.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer, self.there)),
            asyncio.create_task(self._pump(far_reader, writer, self.back)),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            _drop(far_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: Gate) -> None:
        while True:
            await gate.passed()
            data = await reader.read(CHUNK_BYTES)
            await gate.passed()  # what was on its way when the cut came is held as well
            if not data:
                raise ConnectionResetError("one end closed")
            writer.write(data)
            self.passed_bytes += len(data)
            await writer.drain()


def _drop(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, RuntimeError):
        writer.transport.abort()


class Links:
    """All links among `addresses` (node to host:port). `async with` opens and closes them."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._links = {
            (source, target): Link(source, target, address)
            for source in addresses
            for target, address in addresses.items()
            if source != target
        }

    async def __aenter__(self) -> Self:
        try:
            for link in self._links.values():
                await link.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self.heal()
        for link in self._links.values():
            await link.close()

    def routes(self, source: str) -> dict[str, str]:
        """What `source` dials, and where its link listens."""
        return {link.address: link.proxy for (node, _), link in self._links.items() if node == source}

    def link(self, source: str, target: str) -> Link:
        return self._links[source, target]

    def cut(self, source: str, target: str) -> None:
        """One way: nothing that `source` sends reaches `target`, on whichever connection; what `target` sends still arrives."""
        self._links[source, target].there.hold()
        self._links[target, source].back.hold()

    def isolate(self, nodes: Iterable[str]) -> None:
        """Both ways, between `nodes` and all others."""
        inside = set(nodes)
        for source, target in self._links:
            if (source in inside) != (target in inside):
                self.cut(source, target)

    def heal(self) -> None:
        """Everything that was held goes on."""
        for link in self._links.values():
            link.there.release()
            link.back.release()
