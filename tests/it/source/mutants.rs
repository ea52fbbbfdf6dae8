//! The mutants that `ci/mutants` lets survive are mutants of existing functions, each with its reason.

use std::path::Path;

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
    let list = std::fs::read_to_string(root.join("ci/mutating/survivors")).unwrap();
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
