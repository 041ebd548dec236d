"""Many tasks count together, and the total is exact.

An increment that is sent again after a lost reply applies once, since the client resends it under the same session and sequence.
Only an unknown outcome (no answer within the deadline) would leave the total in doubt; then this program says so.

    python -m client.examples.counter [--dir .tenfold | ADDRESS...]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from client.client import Client
from client.examples.where import connected
from cluster.errors import TenfoldError

TASKS, INCREMENTS = 20, 50
KEY = "example/visits"


async def count(client: Client, visits: int) -> int:
    """Counts so many visits, one after the other; how many of them are in doubt."""
    in_doubt = 0
    for _ in range(visits):
        try:
            await client.kv.increment(KEY)
        except TenfoldError as error:
            if error.definite:  # it surely did not count: the program may decide to count again
                raise
            in_doubt += 1
    return in_doubt


async def main(arguments: Sequence[str] | None = None) -> int:
    async with connected(__doc__, arguments) as client:
        await client.kv.delete(KEY)
        # Concurrent increments leave in few calls: what waits for a node joins the next one.
        in_doubt = sum(await asyncio.gather(*[count(client, INCREMENTS) for _ in range(TASKS)]))
        found = await client.kv.get(KEY)
        total = int(found.value) if found else 0
        wanted = TASKS * INCREMENTS
        print(f"{total} of {wanted} visits counted, {in_doubt} in doubt, in {client.calls} calls")
        return 0 if wanted - in_doubt <= total <= wanted else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
