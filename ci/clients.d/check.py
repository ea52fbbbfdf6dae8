"""Runs the clients of tools.py against the server, with each dialect of the acknowledgement, and checks after each that
all it says was acknowledged was counted, and nothing else, over connections that are reused.

`check.py SERVER TOOLS [NAME...]`: the program of the server, and a directory for the tools that registries have. Exits 1
if a check failed, and on the GitHub runner also if a client could not be installed.
"""

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools import CLIENTS, GO_MODULES, NPM_PACKAGES, PYPI_PACKAGES

START_S = 10
CLIENT_S = 120
INSTALL_S = 900
CLOSE_S = 10

# The dialects of the acknowledgement, and the status of each.
DIALECTS = {"1mrc": "200", "fasterapi": "201"}


class Server:
    """The server under test, and one connection to look at it."""

    def __init__(self, program, dialect, files):
        flags = ["--port", "0", "--dialect", dialect, "--idle-timeout", "10m"]
        log = files / "server.log"
        self.process = subprocess.Popen([program, "serve", *flags], stdout=subprocess.DEVNULL, stderr=log.open("wb"))
        deadline = time.monotonic() + START_S
        while not (ready := re.search(r"listening on http://(\S+)", log.read_text())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                sys.exit(f"the server did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)
        self.url = f"http://{ready[1]}/event"
        self.connection = http.client.HTTPConnection(ready[1], timeout=CLIENT_S)

    def ask(self, method, path):
        self.connection.request(method, path)
        response = self.connection.getresponse()
        body = response.read().decode()
        if response.status != 200:
            sys.exit(f"{method} {path} gets {response.status}: {body}")
        return body

    def stats(self):
        return json.loads(self.ask("GET", "/stats"))

    def metrics(self):
        """Returns the open connections, the accepted ones, and the responses to events by status."""
        text = self.ask("GET", "/metrics")

        def total(name):
            return sum(int(number) for number in re.findall(rf"^{name}{{.*}} (\d+)$", text, re.MULTILINE))

        to_events = r'^http_requests_total{method="POST",endpoint="/event",status="(\d+)"} (\d+)$'
        responses = {status: int(count) for status, count in re.findall(to_events, text, re.MULTILINE)}
        return total("ringtally_connections"), total("ringtally_accepted_total"), responses

    def wait_for_closed_connections(self):
        """What a client has sent before it closed its connections is counted by then."""
        deadline = time.monotonic() + CLOSE_S
        while self.metrics()[0] > 1 and time.monotonic() < deadline:
            time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(START_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def faults(client, dialect, output, before, after, stats):
    """Returns what does not hold after a client has run."""
    acknowledged = client.acknowledged(output)
    counted = stats["totalRequests"]
    if client.events is not None and acknowledged != client.events:
        yield f"{acknowledged} of {client.events} events were acknowledged"
    if acknowledged == 0 or not acknowledged <= counted <= acknowledged + client.left:
        yield f"{counted} events are counted, and {acknowledged} were acknowledged"
    total, users = client.expected(output, counted)
    wanted = {"sum": total, "uniqueUsers": users, "avg": total / counted if counted else 0.0}
    for key, value in wanted.items():
        if stats[key] != value:
            yield f"{key} is {stats[key]}, and must be {value}"
    new = {status: count - before[2].get(status, 0) for status, count in after[2].items()}
    responses = {status: count for status, count in new.items() if count}
    if responses != {DIALECTS[dialect]: counted}:
        yield f"the statuses of the responses are {responses}"
    if (opened := after[1] - before[1]) > client.connections:
        yield f"{opened} connections were opened, and {client.connections} are enough"


def run(client, dialect, server, tools, files):
    """Returns a line about the run of one client, and whether all of it holds."""
    server.ask("POST", "/reset")
    before = server.metrics()
    command = client.command(server.url, tools, files)
    environment = os.environ | {"HOME": str(files), "GOCACHE": str(tools / "go-build")}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_S, env=environment)
    except subprocess.TimeoutExpired:
        return f"did not end within {CLIENT_S} s", False
    server.wait_for_closed_connections()
    after, stats = server.metrics(), server.stats()
    try:
        found = list(faults(client, dialect, ran.stdout, before, after, stats))
    except (ValueError, KeyError, IndexError) as error:
        found = [f"its output is not understood ({error!r})"]
    if ran.returncode != 0:
        found.append(f"it exits {ran.returncode}")
    if found:
        return f"{'; '.join(found)}\n{(ran.stdout + ran.stderr)[-1500:]}", False
    return f"{stats['totalRequests']} events over {after[1] - before[1]} connections", True


class Installer:
    """What the registries have, installed once per version. `reason` says why a client cannot run."""

    def __init__(self, tools):
        self.tools = tools
        self.reasons = {}

    def reason(self, client):
        if client.source == "system":
            program = next(part for part in client.command("", self.tools, self.tools) if part != "env")
            return None if shutil.which(program) else f"{program} is not installed"
        key = client.name if client.source == "go" else client.source
        if key not in self.reasons:
            self.reasons[key] = getattr(self, client.source)(client.name)
        return self.reasons[key]

    def go(self, name):
        return self.once(f"go/{name}", GO_MODULES[name], [["go", "install", GO_MODULES[name]]])

    def npm(self, _name):
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        return self.once("npm", " ".join(NPM_PACKAGES), [[*install, "--prefix", self.tools / "npm", *NPM_PACKAGES]])

    def pypi(self, _name):
        venv = self.tools / "python"
        pip = [venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        commands = [[sys.executable, "-m", "venv", "--clear", venv], [*pip, *PYPI_PACKAGES]]
        return self.once("python", " ".join(PYPI_PACKAGES), commands)

    def once(self, name, versions, commands):
        """Runs the commands, unless that has been done for these versions."""
        done = self.tools / f"{name.replace('/', '-')}.installed"
        if (self.tools / name).exists() and done.exists() and done.read_text() == versions:
            return None
        environment = os.environ | {"GOBIN": str(self.tools / "go")}
        for command in commands:
            try:
                subprocess.run(
                    command, check=True, capture_output=True, text=True, timeout=INSTALL_S, env=environment
                )
            except FileNotFoundError:
                return f"{command[0]}, which installs it, is not there"
            except subprocess.TimeoutExpired:
                return f"{versions} was not installed within {INSTALL_S} s"
            except subprocess.CalledProcessError as error:
                return f"{versions} cannot be installed: {(error.stderr.strip().splitlines() or ['no reason'])[-1]}"
        done.write_text(versions)
        return None


def main():
    program, tools = sys.argv[1], Path(sys.argv[2]).absolute()
    names = [client.name for client in CLIENTS]
    chosen = sys.argv[3:] or names
    if unknown := [name for name in chosen if name not in names]:
        sys.exit(f"no client named {', '.join(unknown)}; there are: {', '.join(names)}")
    tools.mkdir(parents=True, exist_ok=True)
    installer = Installer(tools)
    on_runner = os.environ.get("CI") == os.environ.get("GITHUB_ACTIONS") == "true"
    clients, failed = [], 0
    for client in CLIENTS:
        if client.name in chosen and (reason := installer.reason(client)):
            failed += on_runner
            print(f"{'FAILED' if on_runner else 'SKIPPED'} {client.name}: {reason}", flush=True)
        elif client.name in chosen:
            clients.append(client)
    for dialect in DIALECTS:
        with tempfile.TemporaryDirectory() as files:
            server = Server(program, dialect, Path(files))
            try:
                for client in clients:
                    line, holds = run(client, dialect, server, tools, Path(files))
                    failed += not holds
                    print(f"{'ok' if holds else 'FAILED'} {client.name}, {dialect}: {line}", flush=True)
            finally:
                server.stop()
    print(f"{len(clients)} clients, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
