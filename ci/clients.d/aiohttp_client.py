"""aiohttp: coroutines that share a pool of connections. Prints how many events were acknowledged."""

import asyncio

import aiohttp
from workload import arguments, event


async def main():
    url, events, connections = arguments()

    async def work(session, first):
        acknowledged = 0
        for index in range(first, events, connections):
            async with session.post(url, data=event(index)) as response:
                await response.read()
                acknowledged += response.ok
        return acknowledged

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        print(sum(await asyncio.gather(*(work(session, first) for first in range(connections)))))


asyncio.run(main())
