"""Checks the live page: page.py SERVER_BINARY BROWSER SCREENSHOT_FOLDER. `ci/page` runs it."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from playwright.sync_api import sync_playwright

BINARY, BROWSER, PICTURES = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
# The texts that the page shows.
LIVE = "live"
LATE = "no response"
UNKNOWN = "–"
# The element of each total.
IDS = {"totalRequests": "total-requests", "uniqueUsers": "unique-users", "sum": "sum", "avg": "avg"}

START_S = 10
STOP_S = 10
BROWSER_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0",
]

# The text elements with less contrast to the nearest painted background than WCAG 2, level AA, requires.
POOR_CONTRASTS = r"""() => {
    const channels = (color) => color.match(/[\d.]+/g).map(Number);
    const luminance = (color) => channels(color).slice(0, 3).map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const background = (node) => {
        const color = getComputedStyle(node).backgroundColor;
        return channels(color)[3] === 0 && node.parentElement ? background(node.parentElement) : color;
    };
    const hasText = (node) => node.tagName !== "SCRIPT"
        && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    return [...document.body.querySelectorAll("*")].filter(hasText).filter((node) => {
        const style = getComputedStyle(node);
        const ink = luminance(node.closest("svg") ? style.fill : style.color);
        const paper = luminance(background(node));
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05) < 4.5;
    }).map((node) => node.outerHTML.slice(0, 80));
}"""
IS_STORE_HIDDEN = "() => document.getElementById('store').hidden"
NO_NEGATIVE_RATE = "() => rounds.every((entry) => entry.rate === null || entry.rate >= 0)"

passed = 0


def check(what, seen, expected=True):
    global passed
    if seen != expected:
        print(f"ci/page: {what}: expected {expected!r}, saw {seen!r}")
        sys.exit(1)
    passed += 1


class Processes(contextlib.ExitStack):
    """What this script starts, stopped at its end in the reverse order."""

    def start(self, *command, **more):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **more)
        self.callback(self.stop, process)
        return process

    @staticmethod
    def stop(process):
        if process.poll() is not None:
            return
        process.terminate()
        # A process that a check stopped handles the signal after it continues.
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def serve(self, port, *flags):
        """Starts a server. Returns its process and its URL."""
        log = self.enter_context(tempfile.TemporaryFile("w+"))
        server = self.start(BINARY, "serve", "--port", str(port), *flags, stdout=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            log.seek(0)
            if ready := re.search(r"listening on (\S+)", log.read()):
                return server, ready[1]
            time.sleep(0.1)
        sys.exit("ci/page: the server did not start")

    def load(self, url, events):
        return self.start(BINARY, "load", str(events), "32", "--url", url, "--no-reset", "--quiet",
                          "--values", "half", "--rate", "20000")

    def browse(self, playwright):
        """Starts the browser and connects to it. Started by Playwright itself, it would keep every tab visible."""
        folder = self.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        self.start(BROWSER, *BROWSER_FLAGS, f"--user-data-dir={folder}", "about:blank",
                   stderr=subprocess.DEVNULL)
        port_file = pathlib.Path(folder, "DevToolsActivePort")
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if port_file.exists() and (words := port_file.read_text().split()):
                return playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{words[0]}", no_defaults=True)
            time.sleep(0.1)
        sys.exit("ci/page: the browser did not start")


class Page:
    """The page in a tab, with everything it requested and wrote to the console."""

    def __init__(self, browser):
        self.context = browser.contexts[0]
        self.tab = self.context.pages[0]
        self.requested, self.console = [], []
        self.context.on("request", self.note_request)
        self.tab.on("console", lambda message: self.console.append(message.text))
        self.tab.on("pageerror", lambda error: self.console.append(str(error)))
        self.devtools = self.context.new_cdp_session(self.tab)

    def note_request(self, request):
        # A new tab loads Chromium's own pages from within Chromium.
        if not request.url.startswith(("chrome:", "data:")):
            self.requested.append(request.url)

    def run(self, script, argument=None):
        return self.tab.evaluate(script, argument)

    def wait(self, seconds):
        self.tab.wait_for_timeout(seconds * 1000)

    def eventually(self, what, holds, seconds=10.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if holds():
                return check(what, True)
            self.wait(0.1)
        check(what, False)

    def text(self, place):
        return self.run("(place) => document.getElementById(place).textContent", place)

    def value(self, place):
        return self.run("(place) => document.getElementById(place).dataset.value", place)

    def number(self, place):
        """The whole number that an element shows, or None."""
        digits = self.text(place).replace(",", "")
        return int(digits) if digits.isdigit() else None

    def look(self, width, height, scheme):
        self.devtools.send("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})
        self.tab.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def shoot(self, name):
        self.tab.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    def check_late(self, what, cause):
        """Runs `cause`, after which the server does not respond, and checks that the page says so."""
        self.run("""() => {
            const word = document.getElementById("state-word");
            window.announced = [];
            window.observer?.disconnect();
            window.observer = new MutationObserver(() => window.announced.push(word.textContent));
            window.observer.observe(word, {childList: true});
        }""")
        cause()
        self.eventually(f"the page says that the server {what}", lambda: f"{LATE} for" in self.text("state"), 4)
        self.eventually("the seconds without a response are counted", lambda: int(
            re.search(r"for (\d+) s", self.text("state"))[1]) >= 4)
        check("no rate is shown while none is known", self.text("rate-now"), UNKNOWN)

    def check_live_again(self, what):
        self.eventually(f"the page is live once the server {what}", lambda: self.text("state") == LIVE)
        check("each state is announced once", self.run("() => window.announced"), [LATE, LIVE])
        check("no rate is negative", self.run(NO_NEGATIVE_RATE))

    def shows_stats(self, url):
        with fetch(url + "/stats") as response:
            stats = dict(re.findall(r'"(\w+)":([^,}]+)', response.read().decode()))
        return all(self.value(place) == stats[name] for name, place in IDS.items())


def fetch(url, method="GET"):
    return urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10)


def stats_requests(url):
    """How many requests to /stats the server has counted."""
    with fetch(url + "/metrics") as response:
        return int(re.search(r'endpoint="/stats",status="200"} (\d+)', response.read().decode())[1])


def check_response(url):
    with fetch(url + "/") as response:
        policy = response.headers["Content-Security-Policy"]
        check("everything that is not named is forbidden", policy.startswith("default-src 'none'; "))
        check("the type is stated and not guessed",
              (response.headers["Content-Type"], response.headers["X-Content-Type-Options"]),
              ("text/html; charset=utf-8", "nosniff"))
        check("the page is small", len(response.read()) < 20 * 1024)


def check_idle(page, url):
    page.eventually("the page of an idle server is live", lambda: page.text("state") == LIVE)
    page.eventually("the page shows an idle server's totals", lambda: page.shows_stats(url))
    page.shoot("desktop-idle")


def check_functions(page):
    # 98 in the first bucket and 2 in the second: rank 99 is halfway from 10 to 25 µs.
    for counts, expected in [((98, 100, 100), 17.5e-6), ((100, 100, 100), 9.9e-6), ((0, 0, 100), 25e-6)]:
        seconds = page.run("""(counts) => {
            const of = (counts) => ({buckets: counts.map((count, index) =>
                ({le: [1e-5, 2.5e-5, Infinity][index], count: count + 7}))});
            return p99Seconds(of([0, 0, 0]), of(counts));
        }""", list(counts))
        check("p99 is what Prometheus computes", round(seconds, 9), expected)
    # A server that is restarted between two polls is never seen to be away.
    for change, expected in [({}, True), ({"startSeconds": 2}, False), ({"events": 4}, False),
                             ({"buckets": [{"count": 6}]}, False)]:
        check(f"the history continues after {json.dumps(change)}", page.run("""(change) => {
            const before = {startSeconds: 1, events: 5, buckets: [{count: 7}]};
            return continues(before, {...before, ...change});
        }""", change), expected)


def check_under_load(page, url, load):
    page.eventually("a rate is shown", lambda: 5_000 < (page.number("rate-now") or 0) < 40_000)
    page.eventually("a p99 is shown",
                    lambda: re.fullmatch(r"(under )?[\d.]+ (µs|ms|s)", page.text("p99-now")))
    for chart in ["rate-chart", "p99-chart"]:
        page.eventually(f"{chart} has a curve", lambda: "L" in page.run(
            "(chart) => document.querySelector(`#${chart} .curve`).getAttribute('d')", chart))
        check(f"{chart} has a description", " over " in page.run(
            "(chart) => document.getElementById(chart).getAttribute('aria-label')", chart))
    page.eventually("every shard has a row", lambda: page.run(
        "() => document.querySelectorAll('#shards tr').length") == len(os.sched_getaffinity(0)))
    check("the balance is shown", bool(re.search(r"most \d+, fewest \d+", page.text("balance"))))
    for width, height, form in [(360, 740, "phone"), (1200, 900, "desktop")]:
        for scheme in ["light", "dark"]:
            page.look(width, height, scheme)
            page.wait(1.2)
            check(f"nothing is wider than a {form}", page.run("""() => {
                const root = document.documentElement;
                return root.scrollWidth <= root.clientWidth;
            }"""))
            check("nothing moves by itself", page.run("() => document.getAnimations().length"), 0)
            check("every text has enough contrast", page.run(POOR_CONTRASTS), [])
            page.shoot(f"{form}-{scheme}")
    check("the load succeeds", load.wait(60), 0)
    page.eventually("the page shows the totals after a load", lambda: page.shows_stats(url))
    check("the sum is written as the server writes it", page.text("sum").replace(",", ""), page.value("sum"))


def check_reset(page, url):
    fetch(url + "/reset", "POST").close()
    page.eventually("a reset is shown",
                    lambda: page.text("total-requests") == "0" and page.text("avg") == "0.0")
    check("no rate is negative", page.run(NO_NEGATIVE_RATE))


def check_quiet(page):
    before = len(page.requested)
    page.wait(5)
    # Two requests in each of five seconds, and two more if the first and the last second are cut.
    count = len(page.requested) - before
    check(f"the page sends two requests per second at most: {count} in 5 s", 4 <= count <= 12)
    check("the console is silent", page.console, [])


def check_hidden(page, url):
    other = page.context.new_page()
    other.bring_to_front()
    page.wait(1.5)
    before = stats_requests(url)
    page.wait(4)
    check("a hidden page sends nothing", stats_requests(url) - before, 0)
    page.tab.bring_to_front()
    page.eventually("a page that is visible again is live", lambda: stats_requests(url) - before > 1)


def check_own_script_only(page):
    page.console.clear()
    page.run("""() => {
        const script = document.createElement("script");
        script.textContent = "window.intruder = 1";
        document.body.append(script);
    }""")
    check("a script that is not the page's own does not run", page.run("() => window.intruder"), None)
    page.wait(0.2)
    check("the policy is the reason", "Content Security Policy" in str(page.console))


def main():
    # Without this, SIGTERM would leave the started processes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Processes() as processes, sync_playwright() as playwright:
        server, url = processes.serve(0)
        check_response(url)
        page = Page(processes.browse(playwright))
        page.look(1200, 900, "light")
        page.tab.goto(url + "/")
        check_idle(page, url)
        check_functions(page)
        check_under_load(page, url, processes.load(url, 100_000))
        check_reset(page, url)
        check_quiet(page)
        check_hidden(page, url)

        page.check_late("does not respond", lambda: server.send_signal(signal.SIGSTOP))
        server.send_signal(signal.SIGCONT)
        page.check_live_again("continues")
        check("the console reports only responses that did not come",
              [text for text in page.console if "ERR_" not in text], [])
        page.check_late("is gone", lambda: processes.stop(server))
        check("a server without a store says nothing of one", page.run(IS_STORE_HIDDEN))
        folder = processes.enter_context(tempfile.TemporaryDirectory())
        server, url = processes.serve(url.rsplit(":", 1)[1], "--store", folder + "/tally.redb")
        page.check_live_again("is back")
        page.eventually("a server with a store says that the totals are durable",
                        lambda: not page.run(IS_STORE_HIDDEN) and "are durable" in page.text("store"))
        page.eventually("the page shows the totals of a new server", lambda: page.shows_stats(url))
        check("the page talks to its own server and to nobody else", sorted(set(page.requested)),
              [url + path for path in ["/", "/metrics", "/stats"]])
        check_own_script_only(page)
    print(f"ci/page: {passed} checks passed; screenshots in {PICTURES}")


main()
