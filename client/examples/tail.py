"""Follows the changes of a prefix, stops, and goes on from its token without missing or repeating one.

A reader that keeps the token of the last event it has dealt with can crash at any time: with the token it goes on behind that event,
whoever leads the shards by then.

    python -m client.examples.tail [--dir .tenfold | ADDRESS...]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from client.client import Client
from client.examples.where import connected
from client.watch import Watch

PREFIX = "example/news/"
BEFORE, AFTER = 10, 15


async def follow(watch: Watch, events: int) -> tuple[list[str], str]:
    """So many events, and the token of the last one."""
    seen: list[str] = []
    token = ""
    async for event in watch:
        seen.append(event.key.decode())
        token = event.token
        if len(seen) == events:
            break
    return seen, token


async def publish(client: Client, first: int, last: int) -> list[str]:
    keys = [f"{PREFIX}{number:03}" for number in range(first, last)]
    await asyncio.gather(*[client.kv.put(key, "extra, extra") for key in keys])
    return keys


async def main(arguments: Sequence[str] | None = None) -> int:
    async with connected(__doc__, arguments) as client:
        # Entered, the watch has a place in every shard: what is published from here on is surely seen.
        async with client.kv.watch(prefix=PREFIX) as watch:
            published = await publish(client, 0, BEFORE)
            seen, token = await follow(watch, BEFORE // 2)
        published += await publish(client, BEFORE, BEFORE + AFTER)  # nobody watches now
        async with client.kv.watch(prefix=PREFIX, token=token) as watch:
            rest, _ = await follow(watch, len(published) - len(seen))
        print(f"{len(seen)} events, then {len(rest)} more from the token; {len(published)} were published")
        return 0 if sorted(seen + rest) == sorted(published) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
