//! Records the revision that the program is built from: the revision of the working tree or, in a published crate, the revision
//! that cargo notes next to the sources.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    let (revision, is_dirty) = of_crate().or_else(of_tree).unwrap_or_default();
    println!("cargo::rustc-env=RINGTALLY_REVISION={revision}");
    println!("cargo::rustc-env=RINGTALLY_IS_DIRTY={is_dirty}");
}

/// Returns the revision that `cargo package` has noted, and whether its sources were modified.
fn of_crate() -> Option<(String, bool)> {
    let noted = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = noted.split_once("\"sha1\"")?;
    let revision = rest.split('"').nth(1)?.to_owned();
    Some((revision, noted.contains("\"dirty\": true")))
}

/// Returns the revision that git reports, and whether the sources are modified, in a release build. A debug build does not name
/// a revision, because it would have to be rebuilt after each commit.
fn of_tree() -> Option<(String, bool)> {
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return None;
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // If the repository of another project contains the sources, its revision is not theirs.
    if Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()
        != std::env::current_dir().ok()?.canonicalize().ok()
    {
        return None;
    }
    // Run again after any change to the sources, and after any commit.
    for place in ["HEAD", "index"] {
        println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", place])?);
    }
    for sources in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={sources}");
    }
    let is_dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some((git(&["rev-parse", "HEAD"])?, is_dirty))
}
