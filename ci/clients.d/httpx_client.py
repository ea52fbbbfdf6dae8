"""httpx: coroutines that share a pool of connections. Prints how many events were acknowledged."""

import asyncio

import httpx
from workload import arguments, event


async def main():
    url, events, connections = arguments()

    async def work(client, first):
        acknowledged = 0
        for index in range(first, events, connections):
            response = await client.post(url, content=event(index))
            acknowledged += response.is_success
        return acknowledged

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=connections)) as client:
        print(sum(await asyncio.gather(*(work(client, first) for first in range(connections)))))


asyncio.run(main())
