"""What the clients written in Python share: their arguments, and the challenge's events."""

import json
import sys

USERS = 75_000


def arguments():
    """Returns the URL of /event, the number of events, and the number of connections."""
    url, events, connections = sys.argv[1:]
    return url, int(events), int(connections)


def event(index):
    return json.dumps({"userId": f"user_{index % USERS}", "value": index % 1000 + 0.5}).encode()
