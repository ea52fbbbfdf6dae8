//! The command line of the real binary: the arguments that it accepts, the advice in its refusals, and its help.

use crate::world::{Client, Server, eventually, ringtally, run, terminal, text};
use clap::Parser;
use ringtally::cli::Cli;
use ringtally::store::Store;
use ringtally::store::file::FileStore;
use ringtally::tally::{State, UserIds};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::Stdio;

const COMMANDS: [&str; 12] = [
    "serve",
    "load",
    "merge",
    "compare",
    "challenge",
    "doctor",
    "store",
    "store inspect",
    "rerun",
    "schema",
    "completions",
    "man",
];

/// Returns the help of a command at 80 columns, or the program's help for an empty name.
fn help(command: &str, flag: &str) -> String {
    let output = ringtally()
        .args(command.split_whitespace())
        .arg(flag)
        .env("COLUMNS", "80")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    text(&output.stdout)
}

/// Returns the standard error of a command that refuses its arguments.
fn refusal(args: &[&str]) -> String {
    let output = run(args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    assert!(output.stdout.is_empty() && !said.contains("panicked"), "{args:?}: {said}");
    said
}

/// Runs `load` with a JSON report.
fn load(server: &Server, args: &[&str]) -> (Option<i32>, Value, String) {
    let url = server.url();
    let output = run(&[&["load", "--url", &url, "--json", "-"], args].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), report, text(&output.stderr))
}

#[test]
fn a_refused_value_says_what_is_expected() {
    for (args, expected) in [
        (
            &["serve", "--host", "example.org"][..],
            "an IPv4 or IPv6 address of this machine, or localhost",
        ),
        (&["serve", "--host", "127.0.0.1:80"], "without a port"),
        (&["serve", "--port", "99999"], "from 0 to 65535"),
        (&["serve", "--port", "-1"], "from 0 to 65535"),
        (&["serve", "--idle-timeout", "-1s"], "a time from 1ms to 24h with its unit"),
        (&["serve", "--idle-timeout", "10"], "a time from 1ms to 24h with its unit"),
        (&["serve", "--header-timeout", "1us"], "a time from 1ms to 24h with its unit"),
        (&["serve", "--drain-timeout", "25h"], "a time from 1ms to 24h with its unit"),
        (&["serve", "--spin-us", "1000001"], "from 0 to 1000000"),
        (&["serve", "--spin-us", "-1"], "or auto"),
        (&["serve", "--coalesce-us", "10001"], "from 0 to 10000"),
        (&["serve", "--shards", "0"], "from 1 to"),
        (&["serve", "--max-connections", "0"], "of at least 1,"),
        (&["serve", "--max-body", "0"], "from 1 to 4294967295, such as 16384 or 8MiB"),
        (&["serve", "--max-batch", "4GiB"], "from 1 to 4294967295, such as 16384 or 8MiB"),
        (&["serve", "--max-batch", "2MiB", "--max-batch-memory", "1MiB"], "1MiB has no room"),
        (&["serve", "--cpus", "3-1"], "selects no CPU"),
        (&["serve", "--cpus", "x"], "invalid CPU list 'x': use the taskset syntax, such as 0-3,8"),
        (&["serve", "--cpus", "1023"], "outside the affinity mask"),
        (&["serve", "--admin-token-file", "/nonexistent"], "cannot read --admin-token-file"),
        (&["load", "0"], "from 1 to"),
        (&["load", "-5"], "from 1 to"),
        (&["load", "1", "0"], "from 1 to 64511"),
        (&["load", "-c", "0"], "a whole number from 1 to 64511"),
        (&["load", "-n", "0"], "from 1 to"),
        (&["load", "1", "64512"], "from 1 to 64511"),
        (&["load", "--rate", "1.0005"], "with at most 3 decimals"),
        (&["load", "--rate", "-1"], "from 0 to 1e9"),
        (&["load", "--rate", "0"], "leave out --rate for a closed loop"),
        (&["load", "--rate", "0:0"], "nothing is ever sent"),
        (&["load", "--rate", "10s@5"], "pass stages as --stages 10s@5"),
        (&["load", "--stages", "1000"], "such as 10s@1000 or 30s@5000:20000"),
        (&["load", "--stages", "10s@0,5s@0:0"], "nothing is sent in any stage"),
        (&["load", "--stages", "0s@1000,5s@5"], "a jump does not need a stage"),
        (&["load", "--stages", "5s@5", "--rate", "5"], "--stages and --rate are both rates"),
        (&["load", "--stages", "5s@5", "--duration", "5s"], "both say when the run ends"),
        (&["load", "--duration", "30s", "64"], "pass connections as -c"),
        (&["load", "-n", "1000", "64"], "64 is REQUESTS, and --requests is given, too"),
        (&["load", "1000", "64", "-c", "8"], "WORKERS and --connections are both given"),
        (&["load", "-c", "5s@5", "-n", "100"], "REQUESTS and --connections with stages both"),
        (&["load", "-c", "5:10", "-n", "100"], "pass --duration or --stages"),
        (&["load", "-c", "0:10", "--duration", "5s"], "a whole number from 1 to 64511"),
        (&["load", "-c", "64512"], "a whole number from 1 to 64511"),
        (&["load", "-c", "1.5"], "a whole number from 1 to 64511"),
        (&["load", "--duration", "0s"], "a time from 1ms to 24h with its unit"),
        (&["load", "--stages", "10s:1000"], "'10s:1000' is not a stage: write TIME@RATE"),
        (&["load", "--fail-if", "rate<5"], "--fail-if rate<5 can never pass: only --find-rate"),
        (&["load", "--abort-if", "held<0.99"], "has no rate to hold, pass --rate"),
        (&["load", "--fail-if", "server_cpu_us>5"], "only the challenge command measures"),
        (&["challenge", "--fail-if", "rate<5"], "only --find-rate finds one"),
        (&["load", "--duration", "24h", "--rate", "1G"], "a run has at most 4,398,046,511,104"),
        (&["load", "--stages", "1ms@0,1h@0:0.001", "--users", "0"], "of at least 1,"),
        (&["load", "--rate", "0:0.001", "-n", "4000G"], "take centuries"),
        (&["load", "--abort-if", "p99"], "such as p99>5ms"),
        (&["load", "--find-rate", "p99<5ms", "--abort-if", "p99>5ms"], "--abort-if"),
        (&["load", "--find-rate", "p99<5ms", "--duration", "5s"], "pass --window for their length"),
        (&["load", "--find-rate", "p99<5ms", "--rate", "1:2"], "begins with a whole number"),
        (
            &[
                "load",
                "-c",
                "1:9",
                "--duration",
                "1s",
                "--part",
                "1/2",
                "--json",
                "-",
                "--start-in",
                "3s",
            ],
            "1 of the connections would be used",
        ),
        (&["challenge", "--duration", "1s", "64"], "pass connections as -c"),
        (&["load", "--users", "0"], "of at least 1,"),
        (&["load", "--pipeline", "1025"], "from 1 to 1024"),
        (&["load", "--threads", "1025"], "from 1 to 1024"),
        (&["load", "--values", "thirds"], "integer, half, one"),
        (&["load", "--timeout", "soon"], "a time from 1ms to 24h with its unit"),
        (&["load", "--token-file", "/dev/null"], "must hold one token"),
        (&["load", "--token-file", "/dev/null", "--no-reset"], "cannot be used with"),
        (&["load", "--url", "ftp://x"], "only http is supported"),
        (&["load", "--url", "http://127.0.0.1:8000/stats"], "leave out the path"),
        (&["load", "--url", "http://127.0.0.1:99999"], "from 1 to 65535"),
        (&["load", "--fail-if", "p99"], "such as p99>5ms"),
        (&["load", "--find-rate", "rps>5"], "an upper limit of a latency"),
        (&["load", "--find-rate", "foo"], "such as p99<5ms"),
        (&["load", "--find-rate", "p99>5ms"], "an upper limit of a latency"),
        (&["load", "--find-rate", "p99<5ms", "--watch"], "--watch"),
        (&["load", "--window", "1s"], "--find-rate <CONDITION>"),
        (&["load", "--part", "4/3"], "such as 2/3"),
        (&["load", "--part", "1/2", "--start-in", "3s"], "--json <FILE>"),
        (&["load", "--start-in", "3s"], "--part <K/N>"),
        (&["load", "--part", "1/2", "--json", "-"], "with --start-at or --start-in"),
        (&["load", "--part", "1/2", "--json", "-", "--start-at", "noon"], "date +%s"),
        (
            &["load", "--part", "1/2", "--json", "-", "--start-at", "0"],
            "the start is 0.0 s from now",
        ),
        (&["load", "--part", "1/2", "--json", "-", "--start-in", "2s"], "at least 3 s"),
        (
            &["load", "9", "2", "--part", "1/3", "--json", "-", "--start-in", "3s"],
            "use fewer parts",
        ),
        (&["load", "--part", "1/2", "--start-in", "3s", "--json", "-", "--tui"], "--tui"),
        (&["compare", "a.json"], "--with <REPORT>..."),
        (&["compare", "a.json", "--with", "b.json", "--fail-if", "p99>5ms"], "such as +5% or -3%"),
        (&["compare", "a", "--with", "b", "--json", "-", "--html", "-"], "would be mixed"),
        (&["compare", "/dev/null", "--with", "/dev/null"], "pass reports that load"),
        (&["merge"], "<PART>..."),
        (&["merge", "/nonexistent"], "cannot merge /nonexistent"),
        (&["merge", "/dev/null"], "pass files that load --part wrote"),
        (&["challenge", "--cpus", "1023"], "outside the affinity mask"),
        (&["challenge", "--client-cpus", "x"], "invalid CPU list"),
        (&["challenge", "--shards", "0"], "from 1 to"),
        (&["man", "brew"], "use serve, load, merge, compare, challenge"),
        (&["man", "store-brew"], "there is no command store-brew"),
        (&["store"], "inspect"),
        (&["store", "inspect"], "<STORE>"),
        (&["other"], "unrecognized subcommand"),
    ] {
        let said = refusal(args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}

#[test]
fn a_flag_that_does_not_exist_suggests_the_right_one() {
    for (args, expected) in [
        (&["serve", "--prot", "1"][..], "a similar argument exists: '--port'"),
        (&["load", "--urll", "x"], "a similar argument exists: '--url'"),
        (&["challenge", "--pipelin", "4"], "a similar argument exists: '--pipeline'"),
        (&["doctor", "--jsn"], "a similar argument exists: '--json'"),
        (&["serve", "--engine", "rng"], "a similar value exists: 'ring'"),
        (&["completions", "bsh"], "a similar value exists: 'bash'"),
        (&["lod"], "a similar subcommand exists: 'load'"),
        // Flags of other commands.
        (&["--port", "9000"], "serve has '--port'"),
        (&["load", "--dialect", "1mrc"], "serve and challenge have '--dialect'"),
        (&["load", "--shards", "2"], "serve, challenge, and doctor have '--shards'"),
        (&["serve", "--url", "x"], "load and merge have '--url'"),
        // Arguments without a flag.
        (&["load", "--workers", "64"], "WORKERS is given without a flag"),
        (&["challenge", "--workers", "64"], "WORKERS is given without a flag"),
    ] {
        let said = refusal(args);
        let tips: Vec<&str> = said.lines().filter(|line| line.contains("tip: ")).collect();
        assert!(tips.len() == 1 && tips[0].contains(expected), "{args:?}: {said}");
    }
}

/// Returns the words of an example's `ringtally` command as a shell would split them, without other programs' words.
fn words(example: &str) -> Vec<String> {
    let own = &example[example.find("ringtally").unwrap()..];
    let end = [" && ", " | ", " > ", "   "].iter().filter_map(|end| own.find(end)).min();
    let own = own[..end.unwrap_or(own.len())].replace("$start", "1900000000");
    // Quotes keep words together but are not part of them.
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for c in own.chars() {
        match c {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

#[test]
fn every_help_has_examples_and_every_example_is_accepted() {
    for command in COMMANDS {
        let help = help(command, "--help");
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{command}"));
        let examples = examples.lines().take_while(|line| line.starts_with("  "));
        let examples = examples.filter(|line| line.contains("ringtally"));
        let examples: Vec<Vec<String>> = examples.map(words).collect();
        assert!(examples.len() >= 2, "{command}: {help}");
        for example in examples {
            assert!(example.join(" ").starts_with(&format!("ringtally {command}")), "{example:?}");
            if let Err(error) = Cli::try_parse_from(&example) {
                panic!("{example:?}: {error}");
            }
        }
    }
}

#[test]
fn the_help_starts_with_three_commands_that_run() {
    let help = help("", "--help");
    let (_, rest) = help.split_once("Start here:\n").unwrap();
    let commands: Vec<Vec<String>> =
        rest.lines().take_while(|line| !line.is_empty()).map(words).collect();
    assert_eq!(
        commands,
        [["ringtally", "challenge"], ["ringtally", "serve"], ["ringtally", "load"]]
    );
    for command in commands {
        assert!(Cli::try_parse_from(command).is_ok());
    }
}

#[test]
fn the_password_of_a_database_is_in_no_error_and_no_title() {
    for (url, expected) in [
        ("postgres://u:s3cret@x@h/d", "more than one @"),
        ("postgres://u:s3cret/x@h/d", "more than one @"),
        ("postgres://u:s3cret@h/d?sslmode=s3cret", "sslmode"),
        ("postgres://u:s3cret@h/d?s3cret=1", "unknown parameter"),
    ] {
        for args in [&["serve", "--store", url][..], &["store", "inspect", url]] {
            let output = run(args);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains(expected) && !said.contains("s3cret"), "{said}");
        }
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://u:s3cret@{}/d?connect_timeout=20", silent.local_addr().unwrap());
    let mut server = ringtally()
        .args(["serve", "--port", "0", "--store-timeout", "20s", "--store", &url])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let connection = silent.accept().unwrap();
    let title = std::fs::read_to_string(format!("/proc/{}/cmdline", server.id())).unwrap();
    let name = std::fs::read_to_string(format!("/proc/{}/comm", server.id())).unwrap();
    drop(silent);
    drop(connection);
    server.kill().unwrap();
    let said = text(&server.wait_with_output().unwrap().stderr);
    assert!(title.contains("postgres://u@127.0.0.1") && !title.contains("s3cret"), "{title}");
    assert_eq!(name, "ringtally\n");
    assert!(!said.contains("s3cret"), "{said}");
    let output = run(&["store", "inspect", "postgres://u:s3cret@127.0.0.1:1/d"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("postgres://u@127.0.0.1:1/d") && !said.contains("s3cret"), "{said}");
}

/// Returns the output of a command on a terminal, and its exit code.
fn shown(columns: u16, args: &[&str], variables: &[(&str, &str)]) -> (String, Option<i32>) {
    let (mut controller, open) = terminal(columns);
    let mut child = ringtally()
        .args(args)
        .env_clear()
        .env("TERM", "xterm")
        .envs(variables.iter().copied())
        .stdin(open())
        .stdout(open())
        .stderr(open())
        .spawn()
        .unwrap();
    drop(open);
    let mut bytes = Vec::new();
    // This ends with an error after the child has closed its side.
    let _ = controller.read_to_end(&mut bytes);
    (text(&bytes).replace("\r\n", "\n"), child.wait().unwrap().code())
}

#[test]
fn colors_and_widths_are_those_that_the_terminal_and_its_user_want() {
    let server = Server::start(&["--shards", "1"]);
    let url = server.url();
    let load = ["load", "1000", "2", "--url", &url];
    for (args, code) in [
        (&["--help"][..], 0),
        (&["load", "--help"], 0),
        (&["serve", "--prot"], 2),
        (&["doctor"], 0),
        (&load, 0),
    ] {
        let (colored, ended) = shown(200, args, &[]);
        assert_eq!(ended, Some(code), "{args:?}: {colored}");
        // This means a color, not just the sequence that erases a progress line.
        let has_color = |said: &str| {
            said.split("\x1b[").skip(1).any(|part| {
                part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
            })
        };
        assert!(has_color(&colored), "{args:?}: {colored}");
        let (plain, _) = shown(200, args, &[("NO_COLOR", "1")]);
        assert!(!has_color(&plain), "{args:?}: {plain}");
        let (narrow, _) = shown(60, args, &[("NO_COLOR", "1")]);
        // Each state of a progress line replaces the previous one.
        for line in narrow.lines().flat_map(|line| line.split("\r\x1b[K")) {
            let is_one_word = !line.trim().contains(' ');
            assert!(line.chars().count() <= 60 || is_one_word, "{args:?}: {line}");
        }
    }
}

#[test]
fn a_server_can_be_bound_by_name_and_by_a_bracketed_address() {
    for (host, bound) in [("localhost", "127.0.0.1"), ("[::1]", "::1")] {
        let server = Server::start(&["--host", host, "--shards", "1"]);
        assert_eq!(server.address.ip().to_string(), bound);
        assert_eq!(server.stats().total, 0);
        let url = format!("http://localhost:{}", server.address.port());
        let url = if bound == "::1" { server.url() } else { url };
        assert_eq!(run(&["load", "10", "1", "--url", &url]).status.code(), Some(0));
    }
}

#[test]
fn counts_may_be_short_and_the_last_of_a_repeated_flag_wins() {
    let server = Server::start(&["--shards", "1"]);
    let flags =
        ["1e3", "0.01k", "--users", "1", "--users", "2k", "--values", "half", "--values", "one"];
    let (code, report, said) = load(&server, &flags);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(report["requests"], 1000);
    assert_eq!(report["setup"]["connections"], 10);
    assert_eq!(
        (&report["setup"]["users"], &report["setup"]["values"]),
        (&2000.into(), &"one".into())
    );
}

#[test]
fn each_threshold_counts_when_several_are_given() {
    let server = Server::start(&["--shards", "1"]);
    for (thresholds, code) in [
        (["p99>3600s", "rps<0.001"], 0),
        (["p99>3600s", "rps>0.001"], 1),
        (["p99>0us", "rps<0.001"], 1),
    ] {
        let flags = ["100", "2", "--fail-if", thresholds[0], "--fail-if", thresholds[1]];
        let (found, _, said) = load(&server, &flags);
        assert_eq!(found, Some(code), "{thresholds:?}: {said}");
    }
}

#[test]
fn a_token_file_must_hold_one_token() {
    let file: PathBuf =
        std::env::temp_dir().join(format!("ringtally-cli-token-{}", std::process::id()));
    let path = file.to_str().unwrap();
    for wrong in ["", " \n", "two tokens", "t\u{f6}ken"] {
        std::fs::write(&file, wrong).unwrap();
        for args in [["serve", "--admin-token-file", path], ["load", "--token-file", path]] {
            let said = refusal(&args);
            assert!(said.contains("must hold one token of visible ASCII"), "{wrong:?}: {said}");
        }
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn the_help_fits_80_columns_without_lines_of_one_word() {
    for command in [""].into_iter().chain(COMMANDS) {
        for flag in ["-h", "--help"] {
            let indentation = |line: &str| line.len() - line.trim_start().len();
            let mut before = "";
            let help = help(command, flag);
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{command} {flag}: {line}");
                let goes_on = before.len() > 60
                    && indentation(line) >= indentation(before)
                    && !line.trim_start().starts_with('-');
                let is_one_word = line.split_whitespace().count() == 1;
                assert!(!is_one_word || !goes_on, "{command} {flag}, a line of one word: {line}");
                before = line;
            }
        }
    }
    let whole = help("", "--help");
    let places: Vec<usize> =
        ["  ringtally challenge", "  ringtally serve", "  ringtally load", "Usage:"]
            .iter()
            .map(|part| whole.find(part).unwrap_or_else(|| panic!("no {part}: {whole}")))
            .collect();
    assert!(places.is_sorted(), "{whole}");
    assert!(whole.contains("1  the result is wrong, or a threshold failed"), "{whole}");
    assert!(help("challenge", "-h").contains("half of the cores"));
    assert!(help("serve", "-h").contains("[default: all]"));
}

#[test]
fn a_short_help_has_a_line_per_flag_under_headings() {
    for (command, headings) in [
        ("serve", &["Listening", "Performance", "Limits", "Store", "Timeouts", "Operations"][..]),
        ("load", &["Target", "Workload", "Pacing", "Distributed", "Search", "Output"]),
        ("challenge", &["Judging other servers", "Workload", "Pacing", "Output"]),
    ] {
        let help = help(command, "-h");
        for heading in headings {
            assert!(help.contains(&format!("\n{heading}:\n")), "{heading}: {help}");
        }
        let (_, flags) = help.split_once("\nOptions:\n").unwrap();
        let (flags, _) = flags.split_once("\nExamples:\n").unwrap();
        for line in flags.lines() {
            let is_heading = line.is_empty() || !line.starts_with(' ') && line.ends_with(':');
            assert!(is_heading || line.trim_start().starts_with('-'), "{line}: {help}");
        }
    }
    let flags = help("challenge", "--help");
    assert!(
        flags.contains("\nRingtally's own server:\n") && flags.contains("--max-users"),
        "{flags}"
    );
    assert!(!help("challenge", "-h").contains("--max-users"));
}

#[test]
fn the_help_names_every_figure_that_a_threshold_may_have() {
    let said = refusal(&["load", "--fail-if", "nonsense>1"]);
    let names = said.lines().next().unwrap().rsplit_once("use ").unwrap().1;
    let figures: Vec<&str> = names.split(", ").collect();
    assert!(figures.len() >= 15, "{said}");
    let help = help("load", "--help");
    let is_separator = |c: char| c.is_whitespace() || ",<>=!:".contains(c);
    let words: BTreeSet<&str> = help.split(is_separator).collect();
    for figure in figures {
        assert!(words.contains(figure), "{figure} is not in the help of --fail-if");
    }
}

#[test]
fn shells_complete_and_man_describes_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        let script = text(&output.stdout);
        assert!(script.contains("challenge") && script.contains("max-connections"), "{shell}");
    }
    assert!(text(&run(&["man"]).stdout).starts_with(".ie"));
    for command in COMMANDS {
        let page = text(&run(&["man", &command.replace(' ', "-")]).stdout);
        assert!(page.contains(&format!("ringtally\\-{}", command.replace(' ', "\\-"))), "{page}");
        assert!(page.contains(&format!("\\fBringtally {command}\\fR")), "{page}");
    }
}

#[test]
fn a_store_is_inspected_without_a_server() {
    let path = std::env::temp_dir().join(format!("ringtally-cli-store-{}", std::process::id()));
    let inspect = || {
        let output = run(&["store", "inspect", path.to_str().unwrap()]);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let refused = |code, expected: &str| {
        let (found, printed, said) = inspect();
        assert_eq!((found, printed.as_str()), (Some(code), ""), "{said}");
        assert!(said.starts_with("error: the store /") && said.contains(expected), "{said}");
    };
    refused(3, "does not exist: check the path");
    let (mut store, state) = FileStore::open(&path).unwrap();
    let mut users = UserIds::default();
    users.push(b"a");
    users.push(b"b");
    let sum = [0.5, 1e300, -1e300].into_iter().collect();
    store.commit(&State { events: 4, users: 2, sum, ..state }, &users).unwrap();
    refused(3, "is in use by another ringtally: stop that server");
    drop(store);
    // A process that another test has just started has this process's files until its exec.
    eventually("the store is free", || inspect().0 == Some(0));
    let expected =
        "{\"totalRequests\":4,\"uniqueUsers\":2,\"sum\":0.5,\"avg\":0.125,\"users\":2}\n";
    assert_eq!(inspect(), (Some(0), expected.to_owned(), String::new()));
    std::fs::write(&path, "a diary").unwrap();
    refused(3, "was not written by ringtally: pass another path");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_ready_server_writes_its_address_to_a_descriptor() {
    let mut child = ringtally()
        .args(["serve", "--port", "0", "--shards", "1", "--ready-fd", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut address = String::new();
    stdout.read_line(&mut address).unwrap();
    assert_eq!(Client::connect(address.trim_end().parse().unwrap()).stats().total, 0);
    child.kill().unwrap();
    child.wait().unwrap();
    let said = refusal(&["serve", "--port", "0", "--ready-fd", "999"]);
    assert!(said.contains("pass a descriptor that is open for writing"), "{said}");
}

#[test]
fn a_server_of_challenge_that_does_not_start_is_reported_once() {
    // These are more files than any limit allows.
    let output = run(&["challenge", "1", "1", "--max-connections", "1e15"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.starts_with("error: the server did not start: "), "{said}");
    assert!(said.contains("ulimit -n") && said.lines().count() == 1, "{said}");
}
