//! Every flag, file, and endpoint that a document names exists.

use clap::CommandFactory;
use ringtally::cli::Cli;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// The files whose whole text is read as prose and commands. In the files of `COMMENTED`, only comments are read.
const DOCUMENTS: [&str; 6] =
    ["README.md", "benches", "ci", "ci/deploy", "ci/deploy/cluster", ".github"];
const COMMENTED: [&str; 1] = [".github/workflows"];

/// Directories whose files are named from the root of the repository.
const TOP: [&str; 6] = ["src/", "tests/", "benches/", "ci/", ".ci/", ".github/"];

/// Programs that have their own flags. After `ringtally` in the same command, flags are ours again.
const OTHERS: [&str; 14] = [
    "bombardier",
    "cargo",
    "curl",
    "docker",
    "gh",
    "git",
    "numactl",
    "oha",
    "pg_dump",
    "podman",
    "prometheus",
    "psql",
    "rustup",
    "systemctl",
];

const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "OPTIONS"];

/// Paths of the machine. No endpoint begins with one of them.
const OF_THE_MACHINE: [&str; 8] = ["/dev", "/etc", "/proc", "/run", "/sys", "/tmp", "/usr", "/var"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the documents, as the path from the root and the text, or none in the published crate, which lacks some of them.
fn documents() -> Vec<(PathBuf, String)> {
    if !root().join("ci/README.md").exists() {
        return Vec::new();
    }
    let mut paths = Vec::new();
    for name in DOCUMENTS.iter().chain(&COMMENTED) {
        match read_dir(root().join(name)) {
            Ok(entries) => paths.extend(entries.map(|entry| entry.unwrap().path())),
            Err(_) => paths.push(root().join(name)),
        }
    }
    // Scripts are read by shellcheck and run by the checks. A directory is in the list by its own name.
    let is_document = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let kinds = [".md", ".yml", ".yaml", ".cfg", ".service", ".socket", "Containerfile"];
        kinds.iter().any(|kind| name.ends_with(kind))
    };
    paths.retain(is_document);
    assert!(paths.len() > 10, "{paths:?}");
    let read = |path: PathBuf| {
        let mut text = read_to_string(&path).unwrap();
        let relative = path.strip_prefix(root()).unwrap().to_owned();
        if COMMENTED.iter().any(|directory| relative.starts_with(directory)) {
            text = text
                .lines()
                .filter(|line| line.trim_start().starts_with('#'))
                .fold(String::new(), |all, line| all + line + "\n");
        }
        (relative, text)
    };
    paths.into_iter().map(read).collect()
}

/// Returns the long flags of each command, by its name. The flags of `store` include its subcommands' flags.
fn flags() -> BTreeMap<String, BTreeSet<String>> {
    let long = |command: &clap::Command| -> BTreeSet<String> {
        let own =
            command.get_arguments().filter_map(|argument| argument.get_long_and_visible_aliases());
        own.flatten().chain(["help", "version"]).map(|flag| format!("--{flag}")).collect()
    };
    let program = Cli::command();
    let mut all = BTreeMap::new();
    for command in program.get_subcommands() {
        let mut known = long(command);
        command.get_subcommands().for_each(|part| known.extend(long(part)));
        all.insert(command.get_name().to_owned(), known);
    }
    all
}

/// Appends all scripts and sources except this one: they use the flags of other programs.
fn sources(directory: &Path, all: &mut String) {
    for entry in read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_none_or(|kind| kind != "md") && !path.ends_with("named.rs") {
            *all += &read_to_string(path).unwrap_or_default();
        }
    }
}

/// Adds the flags of the benches: the fields that clap reads for them.
fn bench_flags(directory: &Path, all: &mut BTreeSet<String>) {
    for entry in read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            bench_flags(&path, all);
            continue;
        }
        let text = read_to_string(&path).unwrap_or_default();
        if path.extension().is_some_and(|kind| kind == "rs") && text.contains("#[arg(") {
            let fields = text.lines().filter_map(|line| line.trim_start().split_once(": "));
            all.extend(fields.map(|(name, _)| format!("--{}", name.replace('_', "-"))));
        }
    }
}

/// Returns the flag in a word, without the characters around it and without its value.
fn as_flag(word: &str) -> Option<&str> {
    let start = word.trim_start_matches(['`', '(', '[', '"', '\'']);
    let name = start.strip_prefix("--")?;
    let length = name.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-');
    let name = &name[..length.unwrap_or(name.len())];
    (name.len() > 1).then(|| &start[..name.len() + 2])
}

fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| !c.is_alphanumeric() && !"./_-".contains(c)).trim_end_matches('.')
}

/// The owner of the flags that come next in a line.
#[derive(Clone, Copy, PartialEq)]
enum Whose<'a> {
    Nobody,
    /// Flags of this command of the program.
    Ours(&'a str),
    Others,
    /// Flags of a script of this repository.
    Script(&'a str),
}

/// Returns the flags of a line with their owners, and the owner of the flags in the next line.
fn named_flags<'a>(
    line: &'a str,
    commands: &BTreeMap<String, BTreeSet<String>>,
    mut whose: Whose<'a>,
) -> (Vec<(Whose<'a>, &'a str)>, Whose<'a>) {
    let mut found = Vec::new();
    let words: Vec<&str> = line.split_whitespace().collect();
    for (at, word) in words.iter().enumerate() {
        let name = bare(word);
        let begins = word.starts_with('`') || at == 0 || bare(words[at - 1]).ends_with("ringtally");
        let before_flag = words.get(at + 1).is_some_and(|next| next.starts_with("--"));
        if word.starts_with('`') || ["|", "&&"].contains(word) {
            whose = Whose::Nobody;
        }
        if let Some(flag) = as_flag(word) {
            found.push((whose, flag));
        } else if commands.contains_key(name) && (begins || before_flag) {
            whose = Whose::Ours(name);
        } else if OTHERS.contains(&name) && begins {
            whose = Whose::Others;
        } else if name.starts_with("ci/") && begins {
            whose = Whose::Script(name);
        }
        // This is the end of a code span, or of a part that punctuation separates, except in a YAML list.
        let is_separated = word.ends_with([';', ')', ',']) && !line.contains(": [");
        if word.trim_start_matches('`').contains('`') || is_separated {
            whose = Whose::Nobody;
        }
    }
    let goes_on = line.trim_end().ends_with('\\');
    (found, if goes_on { whose } else { Whose::Nobody })
}

#[test]
fn every_flag_that_a_document_names_exists() {
    let commands = flags();
    let ours: BTreeSet<&String> = commands.values().flatten().collect();
    let mut used = String::new();
    if root().join("ci").exists() {
        ["src", "benches", "ci", ".ci", "tests"]
            .iter()
            .for_each(|name| sources(&root().join(name), &mut used));
    }
    let mut benches = BTreeSet::new();
    bench_flags(&root().join("benches"), &mut benches);
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        let mut whose = Whose::Nobody;
        for (number, line) in text.lines().enumerate() {
            let named;
            (named, whose) = named_flags(line, &commands, whose);
            for (owner, flag) in named {
                let elsewhere = used.contains(flag) || benches.contains(flag);
                let exists = match owner {
                    Whose::Ours(command) => commands[command].contains(flag),
                    Whose::Others => true,
                    Whose::Script(_) => elsewhere,
                    Whose::Nobody => elsewhere || ours.contains(&flag.to_owned()),
                };
                if !exists {
                    let of = if let Whose::Ours(command) = owner { command } else { "" };
                    wrong.push(format!("{}:{}: {of} {flag}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "these flags do not exist:\n{}", wrong.join("\n"));
}

#[test]
fn whose_flags_are_named_is_known() {
    let commands = flags();
    let of = |line| -> Vec<(String, String)> {
        let name = |whose| match whose {
            Whose::Ours(command) => command.to_owned(),
            Whose::Others => "others".to_owned(),
            Whose::Script(script) => script.to_owned(),
            Whose::Nobody => String::new(),
        };
        let (named, _) = named_flags(line, &commands, Whose::Nobody);
        named.into_iter().map(|(whose, flag)| (name(whose), flag.to_owned())).collect()
    };
    let pair = |owner: &str, flag: &str| (owner.to_owned(), flag.to_owned());
    let token = "a token (serve --admin-token-file, load --token-file).";
    assert_eq!(of(token), [pair("serve", "--admin-token-file"), pair("load", "--token-file")]);
    let run = "podman run --rm ringtally serve --host 0.0.0.0";
    assert_eq!(
        of("`podman run --rm` and `load -c 8 --rate=5`, which `--rate` is"),
        [pair("others", "--rm"), pair("load", "--rate"), pair("", "--rate"),]
    );
    assert_eq!(of(run), [pair("others", "--rm"), pair("serve", "--host")]);
    assert_eq!(
        of("ringtally load --rate 5 | jq --raw-output"),
        [pair("load", "--rate"), pair("", "--raw-output"),]
    );
    assert_eq!(of("`ci/client --peers` measures it"), [pair("ci/client", "--peers")]);
    assert_eq!(
        of("command: [serve, --host, 0.0.0.0, --port]"),
        [pair("serve", "--host"), pair("serve", "--port"),]
    );
}

#[test]
fn every_file_that_a_document_names_exists() {
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        let here = root().join(path.parent().unwrap());
        for (number, line) in text.lines().enumerate() {
            let links = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            let links = links.filter(|link| !link.contains("://"));
            let linked = links.map(|link| here.join(link.split('#').next().unwrap()));
            let words = line.split(|c: char| c.is_whitespace() || "`()[]\"',;".contains(c));
            let named = words.map(|word| bare(word).split(['#', ':']).next().unwrap());
            let named = named.filter(|word| TOP.iter().any(|top| word.starts_with(top)));
            for file in linked.chain(named.map(|word| root().join(word))) {
                // A pattern names many files.
                if !file.exists() && !line.contains(['*', '{']) {
                    wrong.push(format!("{}:{}: {}", path.display(), number + 1, file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "these files do not exist:\n{}", wrong.join("\n"));
}

/// Returns the paths of a line that are meant as endpoints: after a method, in a URL of this machine, or alone as code.
fn named_endpoints(line: &str) -> Vec<&str> {
    let is_path = |path: &&str| {
        path.starts_with('/')
            && path.chars().all(|c| c.is_ascii_lowercase() || "/._".contains(c))
            && !OF_THE_MACHINE.iter().any(|start| path.starts_with(start))
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    let after_a_method = words.windows(2).filter_map(|pair| {
        let is_method = METHODS.contains(&bare(pair[0]));
        is_method.then(|| bare(pair[1]))
    });
    let in_urls = line.split("http://").skip(1).filter_map(|rest| {
        let is_here = rest.starts_with("127.0.0.1") || rest.starts_with("localhost");
        let url = rest.split(|c: char| c.is_whitespace() || "`\"')".contains(c)).next()?;
        url.find('/').filter(|_| is_here).map(|at| bare(&url[at..]))
    });
    let as_code = line.split('`').skip(1).step_by(2);
    after_a_method.chain(in_urls).chain(as_code).filter(is_path).collect()
}

#[test]
fn every_endpoint_that_a_document_names_is_served() {
    let description: Value =
        serde_json::from_str(include_str!("../../../src/openapi.json")).unwrap();
    let served: BTreeSet<&String> = description["paths"].as_object().unwrap().keys().collect();
    let mut wrong = Vec::new();
    let mut count = 0;
    let documents = documents();
    for (path, text) in &documents {
        for (number, line) in text.lines().enumerate() {
            for endpoint in named_endpoints(line) {
                count += 1;
                if !served.contains(&endpoint.to_owned()) {
                    wrong.push(format!("{}:{}: {endpoint}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "these endpoints are not served:\n{}", wrong.join("\n"));
    assert!(count > 20 || documents.is_empty(), "only {count} were found");
    let line =
        "`GET /stats` and `/reset` of http://127.0.0.1:8000/event, not `/proc/stat` or `a/b`";
    assert_eq!(named_endpoints(line), ["/stats", "/event", "/reset"]);
}
