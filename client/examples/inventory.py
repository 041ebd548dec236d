"""A shop that never sells what it does not have, though its customers all come at once.

Stock and orders of an item share the hash tag {lamp}, so they lie in one shard and a transaction can change them together: an order
exists if and only if the stock went down for it. The compare on the stock's version makes the second of two buyers look again.

    python -m client.examples.inventory [--dir .tenfold | ADDRESS...]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from client.client import Client
from client.examples.where import connected
from client.results import Compare, Condition, Delete, Put

STOCK, CUSTOMERS = 10, 25
STOCK_KEY = "example/{lamp}/stock"
ORDERS = "example/{lamp}/order/"


async def buy(client: Client, customer: int) -> bool:
    """Whether the customer got a lamp."""
    while True:
        stock = await client.kv.get(STOCK_KEY)
        left = int(stock.value) if stock else 0
        if stock is None or left == 0:
            return False
        sold = await client.kv.transaction(
            [Compare(STOCK_KEY, Condition.VERSION_EQUAL, stock.version)],
            [Put(STOCK_KEY, str(left - 1)), Put(f"{ORDERS}{customer:03}", "one lamp")],
            [Delete(f"{ORDERS}{customer:03}")],  # somebody was faster; nothing is sold
        )
        if sold.succeeded:
            return True


async def main(arguments: Sequence[str] | None = None) -> int:
    async with connected(__doc__, arguments) as client:
        async for item in client.kv.scan(prefix=ORDERS, keys_only=True):
            await client.kv.delete(item.key)
        await client.kv.put(STOCK_KEY, str(STOCK))
        happy = sum(await asyncio.gather(*[buy(client, customer) for customer in range(CUSTOMERS)]))
        left = await client.kv.get(STOCK_KEY)
        orders = await client.kv.count(ORDERS)
        print(
            f"{happy} of {CUSTOMERS} customers got a lamp, {orders} orders, {left.value.decode() if left else '?'} left"
        )
        return 0 if happy == orders == min(STOCK, CUSTOMERS) and left and left.value == b"0" else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
