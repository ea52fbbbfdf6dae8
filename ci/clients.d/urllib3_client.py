"""urllib3: threads that share a pool of connections. Prints how many events were acknowledged."""

from concurrent.futures import ThreadPoolExecutor

import urllib3
from workload import arguments, event

url, events, connections = arguments()
pool = urllib3.PoolManager(maxsize=connections, block=True)


def acknowledges(index):
    return pool.request("POST", url, body=event(index)).status in (200, 201)


with ThreadPoolExecutor(connections) as threads:
    print(sum(threads.map(acknowledges, range(events))))
