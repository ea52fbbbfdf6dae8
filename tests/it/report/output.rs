//! The output of `load` and `challenge`: on the terminal during a run, and in its reports.

use crate::world::fake::{Fake, GOOD, Habits, load};
use crate::world::{Directory, PATIENCE, Server, ringtally, run, terminal, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// `ringtally` on a terminal, with separate standard output.
struct OnTerminal {
    child: Child,
    terminal: File,
    shown: Receiver<Vec<u8>>,
    so_far: String,
}

impl OnTerminal {
    fn start(columns: u16, args: &[&str]) -> OnTerminal {
        let (terminal, open) = terminal(columns);
        let child = ringtally()
            .args(args)
            .stdin(open())
            .stdout(Stdio::piped())
            .stderr(open())
            .spawn()
            .unwrap();
        let (sender, shown) = channel();
        let mut reader = terminal.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // This ends with an error after the child has closed its side.
            while let Ok(read) = reader.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        OnTerminal { child, terminal, shown, so_far: String::new() }
    }

    /// Waits until something is shown.
    fn shows(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.so_far.contains(what) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.so_far.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{what} is not shown: {:?}", self.so_far),
            }
        }
    }

    fn types(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end. Returns everything that was shown, and standard output.
    fn end(mut self) -> (String, String) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end: {:?}", self.so_far);
            std::thread::sleep(Duration::from_millis(5));
        }
        while let Ok(bytes) = self.shown.recv_timeout(Duration::from_secs(1)) {
            self.so_far.push_str(&String::from_utf8_lossy(&bytes));
        }
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        (std::mem::take(&mut self.so_far), stdout)
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ENTER_ALTERNATE: &str = "\x1b[?1049h";
const LEAVE_ALTERNATE: &str = "\x1b[?1049l";
const SHOW_CURSOR: &str = "\x1b[?25h";

/// Returns the lines that were drawn over each other.
fn drawn(shown: &str) -> Vec<&str> {
    shown.split("\r\x1b[K").filter(|line| !line.is_empty()).collect()
}

#[test]
fn the_progress_line_shows_every_phase_and_never_wraps() {
    let server = Server::start(&[]);
    let url = server.url();
    for columns in [60, 80] {
        let args = ["load", "9000", "4", "--rate", "9000", "--warmup", "20000", "--url", &url];
        let mut run = OnTerminal::start(columns, &args);
        for phase in ["connecting", "warming up: ", "%  "] {
            run.shows(phase);
        }
        let (shown, stdout) = run.end();
        assert!(stdout.contains("exact"), "{stdout}");
        for line in drawn(&shown) {
            assert!(line.chars().count() < usize::from(columns), "{columns}: {line}");
            assert!(!line.contains('\n'), "{line}");
        }
        assert!(shown.ends_with("\r\x1b[K"), "the line is erased: {shown:?}");
    }
}

#[test]
fn something_is_shown_while_a_server_does_not_answer() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    for (flag, phase) in [("--watch", "connecting"), ("--tui", ENTER_ALTERNATE)] {
        let mut run = OnTerminal::start(80, &["load", "--timeout", "1s", flag, "--url", &url]);
        run.shows(phase);
        run.shows("connecting");
        let (shown, _) = run.end();
        assert_eq!(shown.contains(ENTER_ALTERNATE), shown.contains(LEAVE_ALTERNATE), "{shown:?}");
    }
}

#[test]
fn the_whole_screen_is_given_back_however_the_run_ends() {
    let server = Server::start(&[]);
    let url = server.url();
    enum End {
        Done,
        Key(&'static str),
        Signal(Signal),
    }
    for (columns, end) in [
        (80, End::Done),
        (60, End::Key("q")),
        (80, End::Key("\x03")),
        (80, End::Signal(Signal::TERM)),
        (60, End::Signal(Signal::INT)),
    ] {
        // This is long enough that only one of the runs ends by itself.
        let requests = if matches!(end, End::Done) { "3000" } else { "300000" };
        let args = ["load", requests, "4", "--rate", "3000", "--tui", "--url", &url];
        let mut run = OnTerminal::start(columns, &args);
        // The screen moves the cursor over blanks, so only single words are shown as they are.
        run.shows("Ctrl-C");
        run.shows("average");
        match end {
            End::Done => {}
            End::Key(key) => run.types(key),
            End::Signal(signal) => {
                let pid = Pid::from_raw(run.child.id().cast_signed()).unwrap();
                kill_process(pid, signal).unwrap();
            }
        }
        let (shown, stdout) = run.end();
        let (_, after) = shown.rsplit_once(LEAVE_ALTERNATE).unwrap();
        assert!(after.contains(SHOW_CURSOR), "{after:?}");
        assert!(!after.contains("average"), "nothing is drawn later: {after:?}");
        assert!(stdout.contains("exact"), "what was measured is reported: {stdout}");
        let is_interrupted = stdout.contains("interrupted before it was over");
        assert_eq!(is_interrupted, requests != "3000", "{stdout}");
    }
}

#[test]
fn two_reports_on_standard_output_are_refused() {
    for (flags, says) in [
        (&["--json", "-", "--hdr", "-"][..], "--json - and --hdr - would be mixed"),
        (&["--html", "-", "--hdr", "-"], "--hdr - and --html - would be mixed"),
    ] {
        for command in ["load", "challenge"] {
            let output = run(&[&[command, "10", "1"], flags].concat());
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            assert!(text(&output.stderr).contains(says), "{output:?}");
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn every_report_has_the_thresholds_and_the_setup() {
    let server = Server::start(&[]);
    let page = std::env::temp_dir().join(format!("ringtally-page-{}.html", std::process::id()));
    let (url, path) = (server.url(), page.to_str().unwrap());
    let output = run(&[
        "load",
        "3000",
        "4",
        "--rate",
        "2000",
        "--warmup",
        "100",
        "--watch",
        "--url",
        &url,
        "--fail-if",
        "held<0.05",
        "--fail-if",
        "p95>15s",
        "--fail-if",
        "rps<1M",
        "--fail-if",
        "p99.99>1h",
        "--json",
        "-",
        "--html",
        path,
    ]);
    // The unit h is not allowed here: a usage error.
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let output = run(&[
        "load",
        "3000",
        "4",
        "--rate",
        "2000",
        "--warmup",
        "100",
        "--watch",
        "--url",
        &url,
        "--fail-if",
        "held<0.05",
        "--fail-if",
        "p95>15s",
        "--fail-if",
        "rps<1M",
        "--json",
        "-",
        "--html",
        path,
    ]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("--fail-if rps<1M: rps is "), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let passed: Vec<bool> = report["thresholds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|threshold| threshold["passed"].as_bool().unwrap())
        .collect();
    assert_eq!(passed, [true, true, false], "{report}");
    let held = report["thresholds"][0]["value"].as_f64().unwrap();
    assert!(held > 0.9 || report["client_limited"] == true, "{report}");
    assert!(report["latency_us"]["p95"].is_number() && report["latency_us"]["p99_99"].is_number());
    assert_eq!(report["setup"]["engine"], crate::world::engine());
    let html = std::fs::read_to_string(&page).unwrap();
    std::fs::remove_file(&page).unwrap();
    for words in [
        "passed held&lt;0.05",
        "failed rps&lt;1M",
        "100 of 100 requests acknowledged",
        "from /stats during the run",
        "2,000 requests/s asked for",
    ] {
        assert!(html.contains(words), "{words}");
    }
}

#[test]
fn a_server_that_names_no_engine_has_none() {
    let fake = Fake::start(Habits { refuses: 2, ..GOOD });
    let (_, report) = load(&fake.url(), &["10", "1"]);
    assert_eq!(report["setup"]["engine"], Value::Null);
    let output = run(&["load", "10", "1", "--url", &fake.url()]);
    let summary = text(&output.stdout);
    let names: Vec<&str> = summary.lines().map(|line| line[..10].trim()).collect();
    let place = |name| names.iter().position(|own| *own == name).unwrap();
    assert!(place("refused") < place("client"), "{summary}");
    let client = &names[place("client") + 1..place("totals")];
    assert!(client.iter().all(|name| ["", "machine", "warning"].contains(name)), "{summary}");
    assert!(!summary.contains("softirq"), "{summary}");
}

/// Reports of real runs can be compared with each other, but not with runs that were set up differently.
#[test]
fn runs_are_compared_with_runs_that_were_set_up_alike() {
    let server = Server::start(&["--shards", "1"]);
    let directory = Directory::new("compare");
    let report = |name: &str, flags: &[&str]| {
        let file = directory.file(name);
        let url = server.url();
        let args =
            [&["load", "3000", "8", "--url", &url, "--quiet", "--json", &file], flags].concat();
        assert_eq!(run(&args).status.code(), Some(0));
        // Other work on this machine may have limited the client.
        let text = std::fs::read(&file).unwrap();
        let mut json: Value = serde_json::from_slice(&text).unwrap();
        json["client_limited"] = false.into();
        std::fs::write(&file, json.to_string()).unwrap();
        file
    };
    let runs: Vec<String> = (0..10).map(|number| report(&number.to_string(), &[])).collect();
    let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
    let other = report("other", &["--pipeline", "2"]);
    let (base, head) = runs.split_at(5);
    let compare = |base: &[&str], head: &[&str], flags: &[&str]| {
        let output = run(&[&["compare"], base, &["--with"], head, flags].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, table, said) = compare(base, head, &["--fail-if", "rps<-99%"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(table.contains("rps") && table.contains("p99.9") && table.contains("passed rps<-99%"));
    let (code, json, said) = compare(base, head, &["--fail-if", "rps>-99%", "--json", "-"]);
    assert!(code == Some(1) && said.contains("--fail-if rps>-99%: it holds"), "{said}");
    let json: Value = serde_json::from_str(&json).unwrap();
    let rps = &json["figures"]["rps"];
    let [low, median, high] =
        ["low_percent", "change_percent", "high_percent"].map(|name| rps[name].as_f64().unwrap());
    assert!(low <= median && median <= high, "{rps}");
    // One run on each side decides nothing, whatever the results are.
    for limit in ["rps<0%", "rps>0%"] {
        let (code, table, said) = compare(&base[..1], &head[..1], &["--fail-if", limit]);
        assert!(code == Some(2) && said.contains("an interval needs 5 runs per side"), "{said}");
        assert!(table.contains("[too few runs]") && table.contains("inconclusive rps"), "{table}");
    }
    let (code, _, said) = compare(base, &[head[0], &other], &[]);
    assert!(code == Some(2) && said.contains("pipeline: 1 | 2"), "{said}");
    let (code, table, said) = compare(base, &[&other], &["--difference", "pipeline"]);
    assert!(code == Some(0) && table.contains("compared: pipeline 1 with 2"), "{table} {said}");
    // A path that cannot be written is reported before anything is compared.
    let (code, table, said) = compare(base, head, &["--html", "/none/page.html"]);
    assert!(code == Some(3) && table.is_empty() && said.contains("/none/page.html"), "{said}");
}

/// The report of a challenge has the flags of its server, and the command that repeats the run.
#[test]
fn a_challenge_can_be_repeated_from_its_report() {
    let directory = Directory::new("challenge-flags");
    let challenge = |arguments: &[&str], name: &str| -> (String, Value) {
        let file = directory.file(name);
        let output = run(&[arguments, &["--quiet", "--json", &file]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        (file, report)
    };
    let command = |report: &Value| -> Vec<String> {
        serde_json::from_value(report["setup"]["command"].clone()).unwrap()
    };
    let (plain, _) = challenge(&["challenge", "500", "4"], "plain");
    let flags =
        ["--spin-us", "0", "--coalesce-us", "200", "--dialect", "fasterapi", "--shards", "3"];
    let tuned = [&["challenge", "500", "4", "--timeout", "3s", "--watch"][..], &flags].concat();
    let (tuned, report) = challenge(&tuned, "tuned");
    assert_eq!(
        (&report["setup"]["server"]["spin_us"], &report["setup"]["server"]["store"]),
        (&"0".into(), &Value::Null)
    );
    // The repeated run has the same flags and the same CPUs.
    let words = command(&report);
    let words: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    let (again, repeated) = challenge(&words, "again");
    assert_eq!(command(&repeated), command(&report));
    for name in ["setup", "server_cpus", "requests"] {
        let of = |report: &Value| {
            let mut part = report[name].clone();
            part.as_object_mut().map(|setup| setup.remove("url"));
            part
        };
        assert_eq!(of(&repeated), of(&report), "{name}");
    }
    assert_eq!(run(&["compare", &tuned, "--with", &again]).status.code(), Some(0));
    let output = run(&["compare", &plain, "--with", &tuned]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for difference in [
        "server_spin_us: auto | 0",
        "server_coalesce_us: 0 | 200",
        "server_dialect: 1mrc | fasterapi",
        "server_shards: none | 3",
        "timeout_s: 10.0 | 3.0",
        "watch: no | yes",
    ] {
        assert!(said.contains(difference), "{difference}: {said}");
    }
}

#[test]
fn a_report_that_cannot_be_written_is_known_before_the_run() {
    let server = Server::start(&["--shards", "1"]);
    let directory = Directory::new("unwritable");
    server.client().event("before", 1.0);
    let (url, nowhere) = (server.url(), directory.file("none/report.json"));
    for flags in
        [["--json", &nowhere], ["--html", &nowhere], ["--hdr", directory.0.to_str().unwrap()]]
    {
        let output = run(&[&["load", "100", "2", "--url", &url], &flags[..]].concat());
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(3) && said.contains("cannot write"), "{said}");
        assert!(output.stdout.is_empty());
    }
    // The server was not even reset.
    assert_eq!(server.stats().total, 1);
    let report = directory.file("report");
    let flags = ["load", "100", "2", "--url", &url, "--json", &report, "--html", &report];
    let output = run(&flags);
    let said = text(&output.stderr);
    assert!(
        output.status.code() == Some(2) && said.contains("--json and --html name one"),
        "{said}"
    );
    assert_eq!((server.stats().total, std::fs::read_dir(&directory.0).unwrap().count()), (1, 0));
}

#[test]
fn a_run_that_fails_leaves_the_report_of_the_one_before() {
    let directory = Directory::new("kept");
    let file = directory.file("report.json");
    std::fs::write(&file, "old").unwrap();
    // No server listens there.
    let output = run(&["load", "100", "2", "--url", "http://127.0.0.1:1", "--json", &file]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    let fake = Fake::start(GOOD);
    let output = run(&["load", "100", "2", "--url", &fake.url(), "--json", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"verdict\": \"exact\""));
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 1);
}

#[test]
fn the_verdict_decides_the_exit_code_and_every_report_is_tried() {
    let directory = Directory::new("full");
    for (loses, code) in [(50, 1), (0, 3)] {
        let fake = Fake::start(Habits { loses, ..GOOD });
        let page = directory.file(&format!("{code}.html"));
        let url = fake.url();
        let flags = ["load", "100", "2", "--url", &url, "--json", "/dev/full", "--html", &page];
        let output = run(&flags);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("cannot write /dev/full"), "{said}");
        assert_eq!(said.contains("the result is not exact"), loses > 0, "{said}");
        assert!(std::fs::read_to_string(&page).unwrap().contains("</html>"));
    }
}

/// As with `| head`, the reader has read enough.
#[test]
fn a_pipe_that_is_closed_is_no_failure() {
    let fake = Fake::start(GOOD);
    let url = fake.url();
    let load = ["load", "100", "2", "--url", &url, "--json", "-", "--quiet"];
    for args in [&load[..], &load[..5], &["man"], &["completions", "zsh"], &["doctor"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = ringtally().args(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
    }
}
