//! The servers under comparison: ours, and the servers in `peers/`, each with its scripts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The exit code of a `build` script whose toolchain is missing.
const TOOLCHAIN_IS_MISSING: i32 = 3;

/// The flags of the entry of ours that coalesces completions.
const COALESCED: &str = "--engine ring --coalesce-us 50";

/// A server for the challenge.
pub(crate) struct Entry {
    pub(crate) name: String,
    /// The servers that it stands for.
    pub(crate) stands_for: String,
    kind: Kind,
}

enum Kind {
    /// This package's server with these flags of `serve`.
    Ours(&'static str),
    /// A directory with scripts.
    Peer(PathBuf),
}

/// The result of a build.
pub(crate) enum Build {
    Done,
    /// The toolchain that is missing.
    Skipped(String),
    Failed(String),
}

/// Returns all entries, ours first.
pub(crate) fn all() -> Vec<Entry> {
    let ours = [
        ("ring", "ringtally, one io_uring per shard", "--engine ring"),
        ("coalesced", "the same with --coalesce-us 50", COALESCED),
        ("streams", "ringtally, glommio's TCP streams", "--engine streams"),
    ];
    let ours = ours.map(|(name, stands_for, flags)| Entry {
        name: format!("ringtally-{name}"),
        stands_for: stands_for.into(),
        kind: Kind::Ours(flags),
    });
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/arena/peers");
    let directories = std::fs::read_dir(&peers).into_iter().flatten().flatten();
    let mut found: Vec<Entry> = directories
        .filter_map(|directory| {
            let stands_for = std::fs::read_to_string(directory.path().join("entry")).ok()?;
            Some(Entry {
                name: directory.file_name().into_string().ok()?,
                stands_for: stands_for.trim().to_owned(),
                kind: Kind::Peer(directory.path()),
            })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    ours.into_iter().chain(found).collect()
}

impl Entry {
    /// Returns whether it counts events at all: the floor responds without reading them, and so does a server of
    /// static responses.
    pub(crate) fn counts(&self) -> bool {
        !["floor", "statico"].contains(&self.name.as_str())
    }

    /// Returns the directory of its build, outside of the checkout.
    fn build_directory(&self) -> PathBuf {
        std::env::temp_dir().join("ringtally-peers").join(&self.name)
    }

    /// Builds it, which is quick if it was built before.
    pub(crate) fn build(&self) -> Build {
        let scripts = match &self.kind {
            Kind::Ours(flags) if *flags == COALESCED && !ringtally::uring::gathers() => {
                return Build::Skipped("--coalesce-us needs Linux 6.12 or later".into());
            }
            Kind::Ours(_) => return Build::Done,
            Kind::Peer(scripts) => scripts,
        };
        let mut build = Command::new(scripts.join("build"));
        let output = match build.arg(self.build_directory()).stdin(Stdio::null()).output() {
            Ok(output) => output,
            Err(error) => return Build::Failed(format!("its build script cannot be run: {error}")),
        };
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        match output.status.code() {
            Some(0) => Build::Done,
            Some(TOOLCHAIN_IS_MISSING) => Build::Skipped(said),
            _ => Build::Failed(format!("its build failed: {said}")),
        }
    }

    /// Returns its argument for `challenge --server`.
    pub(crate) fn server(&self) -> String {
        let name = &self.name;
        match &self.kind {
            Kind::Ours(flags) => format!("{name}=ringtally {flags}"),
            Kind::Peer(scripts) => format!(
                "{name}='{}' '{}' {{port}} {{threads}}",
                scripts.join("serve").display(),
                self.build_directory().display()
            ),
        }
    }

    /// Returns its components and their versions.
    pub(crate) fn version(&self) -> String {
        match &self.kind {
            Kind::Ours(_) => format!("ringtally {}", env!("CARGO_PKG_VERSION")),
            Kind::Peer(scripts) => {
                let output =
                    Command::new(scripts.join("version")).arg(self.build_directory()).output();
                let said = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
                said.unwrap_or_else(|error| format!("unknown: {error}"))
            }
        }
    }
}
