//! The fate of mutants. Each mutant that `ci/mutants` lets survive is listed with a reason, and is of an existing function. For
//! that script, this program compares the list with the mutants that did survive.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// The least share of the mutants that tests must catch, in percent.
const CAUGHT_PERCENT_MIN: usize = 95;

/// The number of times that each mutant is in a list, without lines and columns: several in one function can be alike.
type Mutants = BTreeMap<String, usize>;

fn count<'a>(mutants: impl IntoIterator<Item = &'a str>) -> Mutants {
    let mut all = Mutants::new();
    for mutant in mutants {
        *all.entry(mutant.to_owned()).or_default() += 1;
    }
    all
}

/// Returns the list of the mutants that may survive.
fn survivors() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join("ci/mutating/survivors")).unwrap()
}

/// Returns the number of each mutant in that list.
fn listed(survivors: &str) -> Mutants {
    let entries = survivors.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    let entry = |line: &str| {
        let (number, mutant) = line.split_once(' ').unwrap();
        (mutant.to_owned(), number.parse().unwrap())
    };
    entries.map(entry).collect()
}

/// The fate of mutants.
struct Outcome {
    caught: Mutants,
    missed: Mutants,
    /// They do not compile.
    unviable: Mutants,
}

impl Outcome {
    /// Returns a table of the mutants that were caught, by file, and whether these are enough.
    fn score(&self) -> (String, bool) {
        let mut files = BTreeMap::<&str, [usize; 2]>::new();
        for (is_caught, mutants) in [(true, &self.caught), (false, &self.missed)] {
            for (mutant, count) in mutants {
                let file = mutant.split(':').next().unwrap();
                let [caught, all] = files.entry(file).or_default();
                (*caught, *all) = (*caught + count * usize::from(is_caught), *all + count);
            }
        }
        let [caught, all] = [0, 1].map(|at| files.values().map(|counts| counts[at]).sum::<usize>());
        let mut table = String::new();
        for (file, [caught, all]) in files.into_iter().chain([("all", [caught, all])]) {
            let percent = 100.0 * caught as f64 / all as f64;
            let _ = writeln!(table, "{file:32} {caught:4} of {all:4} caught, {percent:5.1}%");
        }
        (table, 100 * caught >= CAUGHT_PERCENT_MIN * all)
    }

    /// Returns the survivors that are not listed, and the listed mutants that were caught, or that are not among `existing`.
    fn differences(&self, listed: &Mutants, existing: &Mutants) -> Vec<String> {
        let mut found = Vec::new();
        for (mutant, survive) in &self.missed {
            let may = listed.get(mutant).copied().unwrap_or(0);
            if *survive > may {
                found.push(format!("{survive} survive, and {may} are listed: {mutant}"));
            }
        }
        for (mutant, may) in listed {
            let survive = self.missed.get(mutant).copied().unwrap_or(0);
            let has_run = [&self.caught, &self.missed, &self.unviable]
                .iter()
                .any(|mutants| mutants.contains_key(mutant));
            if has_run && survive < *may {
                found.push(format!("{may} are listed, and {survive} survive: {mutant}"));
            }
            if !existing.contains_key(mutant) {
                found.push(format!("listed, and no mutant: {mutant}"));
            }
        }
        found
    }
}

/// `RINGTALLY_MUTANTS` is a directory with the lists that `ci/mutants` has made.
#[test]
#[ignore = "ci/mutants runs it"]
fn every_mutant_is_caught_or_listed() {
    let directory = std::env::var("RINGTALLY_MUTANTS").expect("a directory with lists");
    let list = |name: &str| {
        count(std::fs::read_to_string(Path::new(&directory).join(name)).unwrap().lines())
    };
    let (caught, missed, unviable) = (list("caught"), list("missed"), list("unviable"));
    let outcome = Outcome { caught, missed, unviable };
    let (table, is_enough) = outcome.score();
    println!("{table}");
    let differences = outcome.differences(&listed(&survivors()), &list("all"));
    assert!(
        differences.is_empty(),
        "ci/mutating/survivors is not what survives:\n{}",
        differences.join("\n")
    );
    assert!(is_enough, "fewer than {CAUGHT_PERCENT_MIN}% of the mutants are caught");
}

#[test]
fn survivors_that_are_not_listed_and_listed_mutants_that_are_caught_are_found() {
    let listed =
        listed("# A comment.\n2 a.rs: x\n  A reason.\n1 a.rs: y\n  Another.\n1 b.rs: gone\n");
    let existing = count(["a.rs: x", "a.rs: x", "a.rs: x", "a.rs: y", "b.rs: z"]);
    let differences = |caught: &[&str], missed: &[&str], unviable: &[&str]| {
        let of = |mutants: &[&str]| count(mutants.iter().copied());
        let outcome = Outcome { caught: of(caught), missed: of(missed), unviable: of(unviable) };
        outcome.differences(&listed, &existing)
    };
    let gone = "listed, and no mutant: b.rs: gone";
    assert_eq!(differences(&[], &[], &[]), [gone], "what has not run may survive");
    assert_eq!(differences(&["a.rs: x"], &["a.rs: x", "a.rs: x", "a.rs: y"], &[]), [gone]);
    assert_eq!(
        differences(&["a.rs: y"], &["a.rs: x", "a.rs: x", "a.rs: x", "b.rs: z"], &[]),
        [
            "3 survive, and 2 are listed: a.rs: x",
            "1 survive, and 0 are listed: b.rs: z",
            "1 are listed, and 0 survive: a.rs: y",
            gone,
        ]
    );
    assert_eq!(
        differences(&["a.rs: x"], &["a.rs: x"], &["a.rs: y"]),
        ["2 are listed, and 1 survive: a.rs: x", "1 are listed, and 0 survive: a.rs: y", gone]
    );
}

#[test]
fn the_share_of_caught_mutants_is_enough_from_the_limit_on() {
    for (caught, missed, is_enough) in [(95, 5, true), (94, 6, false), (0, 0, true)] {
        let outcome = Outcome {
            caught: Mutants::from([("a.rs: x".to_owned(), caught)]),
            missed: Mutants::from([("b.rs: x".to_owned(), missed)]),
            unviable: Mutants::new(),
        };
        let (table, found) = outcome.score();
        assert_eq!(found, is_enough, "{table}");
        assert!(table.lines().last().unwrap().starts_with("all "), "{table}");
    }
}

/// Returns the function that a mutation is in: `replace OLD with NEW in FUNCTION`, or `replace FUNCTION -> TYPE with NEW`.
fn function(mutation: &str) -> &str {
    let path = match mutation.rsplit_once(" in ") {
        Some((_, path)) => path,
        None => {
            let rest = mutation.split_once("replace ").map_or(mutation, |(_, rest)| rest);
            rest.split(" -> ").next().unwrap().split(" with ").next().unwrap()
        }
    };
    path.rsplit("::").next().unwrap()
}

#[test]
fn every_mutant_that_may_survive_has_a_function_and_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = survivors();
    let script = std::fs::read_to_string(root.join("ci/mutants")).unwrap();
    let (_, mutated) = script.split_once("\nmutated=(").unwrap();
    let mutated: Vec<&str> =
        mutated.split_once(')').unwrap().0.split_whitespace().map(str::trim).collect();
    assert!(mutated.iter().all(|path| root.join(path).exists()), "{mutated:?}");
    let mut lines = list.lines().filter(|line| !line.starts_with('#')).peekable();
    let mut listed = 0;
    while let Some(line) = lines.next() {
        let (number, mutant) = line.split_once(' ').unwrap();
        assert!(number.parse::<u32>().is_ok_and(|number| number > 0), "a number: {line}");
        let (file, mutation) = mutant.split_once(": ").unwrap();
        assert!(mutated.iter().any(|path| Path::new(file).starts_with(path)), "{line}");
        let source = std::fs::read_to_string(root.join(file)).unwrap();
        let name = function(mutation);
        assert!(
            ["(", "<"].iter().any(|end| source.contains(&format!("fn {name}{end}"))),
            "{file} lacks the function {name}: {line}"
        );
        let mut words = 0;
        while let Some(reason) = lines.next_if(|line| line.starts_with("  ")) {
            words += reason.split_whitespace().count();
        }
        assert!(words >= 5, "no reason: {line}");
        listed += 1;
    }
    assert!(listed > 0, "no mutant is listed");
}
