//! Documents that quote the program match its source.

use std::path::Path;

/// Returns the text of every source file below a directory, with each string that continues on the next line joined.
fn sources(directory: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            let mut lines = text.split("\\\n");
            all += lines.next().unwrap();
            lines.for_each(|line| all += line.trim_start());
        }
    }
    all
}

#[test]
fn every_error_that_troubleshooting_explains_is_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("ci/deploy/TROUBLESHOOTING.md")).unwrap();
    let source = sources(&root.join("src"));
    let quoted: Vec<&str> =
        document.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    assert!(quoted.len() >= 30, "{} headings", quoted.len());
    for error in quoted {
        for part in error.split('…').map(str::trim).filter(|part| part.len() > 1) {
            assert!(source.contains(part), "{error}: {part:?} is not in src");
        }
    }
}
