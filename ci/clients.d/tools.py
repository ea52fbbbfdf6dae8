"""The clients of `ci/clients`: where each comes from, how it is run, and how many events it says were acknowledged."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

EVENTS = 2000
CONNECTIONS = 8
# The body that is sent by clients that can send only one.
BODY = '{"userId":"user_1","value":1.5}'

HERE = Path(__file__).parent
GO_MODULES = {
    "k6": "go.k6.io/k6@v1.8.1",
    "hey": "github.com/rakyll/hey@v0.1.5",
    "vegeta": "github.com/tsenart/vegeta/v12@v12.13.0",
}
NPM_PACKAGES = ["autocannon@8.0.0", "undici@7.30.2"]
PYPI_PACKAGES = ["aiohttp==3.14.5", "httpx==0.28.1", "requests==2.34.2", "urllib3==2.8.0"]


def last_number(output):
    return int(output.split()[-1])


@dataclass
class Client:
    name: str
    # "system" is the distribution, and the others are registries: "go", "npm", and "pypi".
    source: str
    # Made from the URL of /event, the directory of its tools, and a directory for its files.
    command: Callable[[str, Path, Path], list]
    acknowledged: Callable[[str], int] = last_number
    # The number of events that it sends, or None if that is not known in advance.
    events: int | None = EVENTS
    # True if it sends BODY again and again, and not the challenge's events.
    repeats: bool = False
    # The most connections that it may use.
    connections: int = CONNECTIONS
    # The number of requests whose responses it may leave unread.
    left: int = 0
    # The sum of the values that it reports as acknowledged, if it sends its own events.
    values: Callable[[str], float] | None = None

    def expected(self, output, counted):
        """Returns the sum and the users of that many events."""
        if self.values:
            return self.values(output), counted
        if self.repeats:
            return counted * json.loads(BODY)["value"], min(counted, 1)
        return float(sum(index % 1000 + 0.5 for index in range(EVENTS))), EVENTS


def found(pattern, forbidden=None):
    """Returns a function that takes a number from a text, or 0 if the text has what is forbidden."""

    def read(output):
        match = re.search(pattern, output)
        return 0 if not match or (forbidden and re.search(forbidden, output)) else int(match[1].replace(",", ""))

    return read


def ab(url, _tools, files):
    (files / "body").write_text(BODY)
    load = ["-n", str(EVENTS), "-c", str(CONNECTIONS)]
    return ["ab", "-q", "-k", *load, "-p", files / "body", "-T", "application/json", url]


def wrk(url, _tools, _files):
    return ["wrk", "-t1", f"-c{CONNECTIONS}", "-d1s", "-s", HERE / "wrk.lua", url]


def h2load(url, _tools, files):
    (files / "body").write_text(BODY)
    return ["h2load", "--h1", f"-n{EVENTS}", f"-c{CONNECTIONS}", "-d", files / "body", url]


def siege(url, _tools, files):
    # Its own settings close each connection.
    (files / "siegerc").write_text("connection = keep-alive\nprotocol = HTTP/1.1\nverbose = false\njson_output = true\n")
    load = ["-b", "-c", str(CONNECTIONS), "-r", str(EVENTS // CONNECTIONS)]
    return ["siege", "-R", files / "siegerc", *load, "--content-type=application/json", f"{url} POST {BODY}"]


def hey(url, tools, _files):
    load = ["-n", str(EVENTS), "-c", str(CONNECTIONS)]
    return [tools / "go/hey", *load, "-m", "POST", "-T", "application/json", "-d", BODY, url]


def vegeta(url, tools, files):
    (files / "body").write_text(BODY)
    (files / "target").write_text(f"POST {url}\n@{files / 'body'}\n")
    attack = f"'{tools}/go/vegeta' attack -targets '{files}/target' -rate 1000 -duration 2s"
    workers = f"-workers {CONNECTIONS} -max-workers {CONNECTIONS} -connections {CONNECTIONS}"
    return ["bash", "-c", f"{attack} {workers} | '{tools}/go/vegeta' report -type json"]


def k6(url, tools, _files):
    flags = ["--quiet", "--no-usage-report", "--address", "127.0.0.1:0", "--env", f"URL={url}"]
    return [tools / "go/k6", "run", *flags, HERE / "k6.js"]


def autocannon(url, tools, _files):
    load = ["-c", str(CONNECTIONS), "-a", str(EVENTS)]
    return [tools / "npm/node_modules/.bin/autocannon", "--json", "-n", *load, "-m", "POST", "-b", BODY, url]


def program(*start):
    """A program of this directory, which takes the same arguments as all of them."""

    def command(url, tools, _files):
        parts = [str(part).format(tools=tools, here=HERE) for part in start]
        return [*parts, url, str(EVENTS), str(CONNECTIONS)]

    return command


def python(name):
    return program("{tools}/python/bin/python", f"{{here}}/{name}_client.py")


CURL_EVENTS = 100


def curl(*flags):
    """One process that sends an event again and again, and prints the status of each response."""

    def command(url, _tools, files):
        lines = "".join(f'url = "{url}"\noutput = "/dev/null"\n' for _ in range(CURL_EVENTS))
        (files / "urls").write_text(lines)
        return ["curl", "-sS", *flags, "-d", BODY, "-w", "%{http_code}\n", "-K", files / "urls"]

    return command


def statuses(output):
    return len(re.findall(r"^20[01]$", output, re.MULTILINE))


def of_vegeta(output):
    return sum(count for status, count in json.loads(output)["status_codes"].items() if status in ("200", "201"))


CLIENTS = [
    Client("ab", "system", ab, found(r"Complete requests: +(\d+)", r"Non-2xx|Failed requests: +[1-9]"), repeats=True),
    # It opens one more connection to try the address, and stops without waiting for responses.
    Client(
        "wrk", "system", wrk, found(r"(\d+) requests in", r"Non-2xx|Socket errors"), None, True,
        connections=CONNECTIONS + 1, left=CONNECTIONS,
    ),
    Client("h2load", "system", h2load, found(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx"), repeats=True),
    Client("siege", "system", siege, found(r'"successful_transactions":\s+(\d+)'), repeats=True),
    # Go's transport may open a connection and then use another that has become free in
    # the meantime.
    Client("hey", "go", hey, found(r"\[20[01]\]\s+(\d+) responses"), repeats=True, connections=2 * CONNECTIONS),
    Client(
        "vegeta", "go", vegeta, of_vegeta, None, True, connections=2 * CONNECTIONS
    ),
    # Each of its users has a connection, and each scenario has its own users.
    Client(
        "k6", "go", k6, lambda output: json.loads(output)[0], None, connections=2 * CONNECTIONS,
        values=lambda output: json.loads(output)[1],
    ),
    Client("autocannon", "npm", autocannon, lambda output: json.loads(output)["2xx"], repeats=True),
    Client("undici", "npm", program("env", "NODE_PATH={tools}/npm/node_modules", "node", "{here}/undici.js")),
    Client("aiohttp", "pypi", python("aiohttp")),
    Client("httpx", "pypi", python("httpx")),
    Client("requests", "pypi", python("requests")),
    Client("urllib3", "pypi", python("urllib3")),
    Client("net/http", "system", program("go", "run", "{here}/nethttp.go"), connections=2 * CONNECTIONS),
    Client("HttpClient", "system", program("java", "{here}/Client.java")),
    Client("curl -0", "system", curl("-0"), statuses, CURL_EVENTS, True, CURL_EVENTS),
    # Without an interim response it would wait a minute for each.
    Client(
        "curl, Expect", "system", curl("--expect100-timeout", "60", "-H", "Expect: 100-continue"), statuses,
        CURL_EVENTS, True, 1,
    ),
    Client("curl, chunked", "system", curl("-H", "Transfer-Encoding: chunked"), statuses, CURL_EVENTS, True, 1),
]
