"""requests: a session per thread. Prints how many events were acknowledged."""

from concurrent.futures import ThreadPoolExecutor

import requests
from workload import arguments, event

url, events, connections = arguments()


def work(first):
    with requests.Session() as session:
        return sum(session.post(url, data=event(index)).ok for index in range(first, events, connections))


with ThreadPoolExecutor(connections) as threads:
    print(sum(threads.map(work, range(connections))))
