//! The figures that documents publish come from the result files, and each of these files states the commit, the day, and the
//! machine of its measurement.
//!
//! In a document, `<!-- figures of FILE -->` precedes a table. Every row of the table has the figures of one line of that file.

use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 2] = ["README.md", "benches/README.md"];

/// Tables without figures, and tables that were measured before results were kept, by the beginning of their first row.
const WITHOUT_A_FILE: [&str; 9] = [
    "| request | response |",
    "| bench |",
    "| entry | design |",
    "| near saturation |",
    "| measure | figure |",
    "| what | each user stays",
    "| statement | 500",
    "| values | before",
    "| load | events/s",
];

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// Returns the numbers in a text, without their commas.
fn numbers(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let mut all = vec![String::new()];
    for (at, &c) in characters.iter().enumerate() {
        let next_is_digit = characters.get(at + 1).is_some_and(char::is_ascii_digit);
        let in_number = !all.last().unwrap().is_empty();
        if c.is_ascii_digit() || (c == '.' && in_number && next_is_digit) {
            all.last_mut().unwrap().push(c);
        } else if in_number && !(c == ',' && next_is_digit) {
            all.push(String::new());
        }
    }
    all.retain(|number| !number.is_empty());
    all
}

/// Returns the tables of a document: the file that a comment before each table names, and its rows.
fn tables(text: &str) -> Vec<(Option<&str>, Vec<&str>)> {
    let mut all = Vec::new();
    let mut file = None;
    let mut is_in_one = false;
    for line in text.lines() {
        if let Some(named) = line.strip_prefix("<!-- figures of ") {
            file = named.strip_suffix(" -->");
        } else if line.starts_with('|') {
            if !is_in_one {
                all.push((file.take(), Vec::new()));
            }
            all.last_mut().unwrap().1.push(line);
        }
        is_in_one = line.starts_with('|');
    }
    all
}

/// Reports whether one line of the result has all figures of the row.
fn is_of(row: &str, result: &str) -> bool {
    let published = numbers(row);
    result.lines().any(|line| {
        let measured = numbers(line);
        published.iter().all(|number| measured.contains(number))
    })
}

#[test]
fn published_figures_are_those_of_the_result_files() {
    for document in DOCUMENTS {
        let Some(text) = read(document) else { continue };
        for (file, rows) in tables(&text) {
            let Some(file) = file else {
                let is_known = WITHOUT_A_FILE.iter().any(|start| rows[0].starts_with(start));
                assert!(
                    is_known,
                    "{document}: no comment names the file that has the figures: {}",
                    rows[0]
                );
                continue;
            };
            let Some(result) = read(file) else { continue };
            // Skips the head of the table, and the line below it.
            for row in &rows[2..] {
                assert!(
                    is_of(row, &result),
                    "{document}: no line of {file} has the figures of {row}"
                );
            }
        }
    }
}

/// Returns the result files: all that documents name, and all that `ci/publish` has left.
fn result_files() -> Vec<PathBuf> {
    let mut all = Vec::new();
    for document in DOCUMENTS {
        let text = read(document).unwrap_or_default();
        all.extend(tables(&text).into_iter().filter_map(|(file, _)| file.map(PathBuf::from)));
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    for entry in std::fs::read_dir(kept).into_iter().flatten() {
        all.push(entry.unwrap().path());
    }
    all.sort();
    all.dedup();
    all
}

/// Returns the commit and the day in the first line of a result: `COMMAND at COMMIT on DATE: MACHINE`.
fn stamp(result: &str) -> Option<(&str, &str)> {
    let (_, after) = result.lines().next()?.rsplit_once(" at ")?;
    let (commit, after) = after.split_once(" on ")?;
    let (day, machine) = after.split_once(": ")?;
    let is_commit = commit.len() >= 7 && commit.chars().all(|c| c.is_ascii_hexdigit());
    let is_day = day.len() == 10 && day.split('-').count() == 3 && numbers(day).len() == 3;
    let is_machine = machine.contains("Linux ") && machine.contains("CPU");
    (is_commit && is_day && is_machine).then_some((commit, day))
}

#[test]
fn results_say_when_where_and_at_which_commit_they_were_measured() {
    let mut first: Option<(String, String)> = None;
    for file in result_files() {
        let Some(result) = read(&file) else { continue };
        let Some((commit, day)) = stamp(&result) else {
            panic!("{file:?} does not begin with COMMAND at COMMIT on DATE: MACHINE");
        };
        let (same_commit, same_day) =
            first.get_or_insert_with(|| (commit.to_owned(), day.to_owned()));
        assert_eq!(
            (commit, day),
            (same_commit.as_str(), same_day.as_str()),
            "{file:?} is of another run"
        );
        if let Some(raw) = read(file.with_extension("json")) {
            assert!(
                raw.contains(commit) && raw.contains(day),
                "the JSON next to {file:?} is of another run"
            );
        }
    }
}

#[test]
fn entries_are_counted_once() {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/arena/peers");
    let Ok(peers) = std::fs::read_dir(peers) else { return };
    let count = peers.filter(|peer| peer.as_ref().unwrap().path().join("entry").exists()).count();
    let mut named = 0;
    for document in ["README.md", "benches/README.md", "ci/README.md"] {
        let text = read(document).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        for pair in words.windows(2).filter(|pair| pair[1].starts_with("entries")) {
            let in_words = ["teen", "twenty", "thirty"];
            assert!(
                !in_words.iter().any(|part| pair[0].contains(part)),
                "{document}: count entries in digits"
            );
            if let Ok(number) = pair[0].parse::<usize>() {
                named += 1;
                assert_eq!(
                    number, count,
                    "{document}: there are {count} entries in benches/arena/peers"
                );
            }
        }
    }
    assert!(named > 0, "ci/README.md states the number of entries");
}

#[test]
fn figures_are_found_in_text() {
    assert_eq!(
        numbers("| a4 | 214,839 [1-2] | 4.63, 5.0 |"),
        ["4", "214839", "1", "2", "4.63", "5.0"]
    );
    let result = "x\n| a | 214839 [1-2] | 4.63 |\n| b | 7 |";
    assert!(is_of("| A | 214,839 | 4.63 |", result));
    assert!(!is_of("| A | 214,839 | 7 |", result), "of two lines");
    let text = "<!-- figures of a.md -->\n\n| x |\n|--|\n| 1 |\n\n| y |\n";
    assert_eq!(
        tables(text),
        [(Some("a.md"), vec!["| x |", "|--|", "| 1 |"]), (None, vec!["| y |"])]
    );
    let line = "`cargo bench` at 0123abc on 2026-11-28: AMD EPYC, CPUs 0-1, Linux 6.18";
    assert_eq!(stamp(line), Some(("0123abc", "2026-11-28")));
    assert_eq!(stamp("`cargo bench` on 2026-11-28: AMD EPYC, CPUs 0-1, Linux 6.18"), None);
}
