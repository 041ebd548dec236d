"""Calls to a service outside the protocol: here the health service that every node has."""

from __future__ import annotations

import asyncio

import pytest
from grpc_health.v1 import health_pb2

from cluster.wire.foreign import ForeignChannel
from node.transport.server import Server

LIMIT_S = 10.0


async def test_a_foreign_service_answers_in_its_own_messages() -> None:
    async with asyncio.timeout(LIMIT_S):
        server = Server([], address="127.0.0.1:0")
        channel = ForeignChannel(f"127.0.0.1:{await server.start()}")
        try:
            await channel.ready()
            check = channel.unary("/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse)
            reply = await check(health_pb2.HealthCheckRequest())
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        finally:
            await channel.close()
            await server.stop(0)


async def test_nobody_there_is_seen_by_the_wait_for_a_connection() -> None:
    channel = ForeignChannel("127.0.0.1:1")
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await channel.ready()
    finally:
        await channel.close()
