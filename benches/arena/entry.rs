//! The servers that are compared: ours, and those in `peers/`, each with its scripts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The exit code of a `build` script whose toolchain is missing.
const TOOLCHAIN_IS_MISSING: i32 = 3;

/// The flags of our entry that coalesces completions.
const COALESCED: &[&str] = &["--engine", "ring", "--coalesce-us", "50"];

/// A server for the challenge.
pub(crate) struct Entry {
    pub(crate) name: String,
    /// What it stands for.
    pub(crate) stands_for: String,
    kind: Kind,
}

enum Kind {
    /// The binary of this package with these flags of `serve`.
    Ours(&'static [&'static str]),
    /// A folder with scripts.
    Peer(PathBuf),
}

/// The result of a build.
pub(crate) enum Build {
    Done,
    /// What is missing.
    Skipped(String),
    Failed(String),
}

/// All entries, ours first.
pub(crate) fn all() -> Vec<Entry> {
    let ours: [(&str, &str, &[&str]); 3] = [
        ("ring", "ringtally, one io_uring per shard", &["--engine", "ring"]),
        ("coalesced", "the same with --coalesce-us 50", COALESCED),
        ("streams", "ringtally, glommio's TCP streams", &["--engine", "streams"]),
    ];
    let ours = ours.map(|(name, stands_for, flags)| Entry {
        name: format!("ringtally-{name}"),
        stands_for: stands_for.into(),
        kind: Kind::Ours(flags),
    });
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/arena/peers");
    let folders = std::fs::read_dir(&peers).into_iter().flatten().flatten();
    let mut found: Vec<Entry> = folders
        .filter_map(|folder| {
            let stands_for = std::fs::read_to_string(folder.path().join("entry")).ok()?;
            Some(Entry {
                name: folder.file_name().into_string().ok()?,
                stands_for: stands_for.trim().to_owned(),
                kind: Kind::Peer(folder.path()),
            })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    ours.into_iter().chain(found).collect()
}

/// The folder of an entry's build.
pub(crate) fn build_folder(builds: &Path, name: &str) -> PathBuf {
    builds.join(name)
}

impl Entry {
    /// Whether it counts events at all: the floor responds without reading them.
    pub(crate) fn counts(&self) -> bool {
        self.name != "floor"
    }

    /// Builds it into its own folder outside of the checkout, which is quick if it was built before.
    pub(crate) fn build(&self) -> Build {
        let scripts = match &self.kind {
            Kind::Ours(flags) if *flags == COALESCED && !ringtally::uring::gathers() => {
                return Build::Skipped("--coalesce-us needs Linux 6.12 or later".into());
            }
            Kind::Ours(_) => return Build::Done,
            Kind::Peer(scripts) => scripts,
        };
        let folder = build_folder(&std::env::temp_dir().join("ringtally-peers"), &self.name);
        let built = Command::new(scripts.join("build")).arg(&folder).stdin(Stdio::null()).output();
        let output = match built {
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

    /// The command that serves it on a port of the loopback address.
    pub(crate) fn serve(&self, builds: &Path, port: u16, cpus: &[usize]) -> Command {
        let port = port.to_string();
        match &self.kind {
            Kind::Ours(flags) => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_ringtally"));
                let cpus = ringtally::topology::format_cpu_list(cpus);
                command.args(["serve", "--port", &port, "--cpus", &cpus]).args(*flags);
                command
            }
            Kind::Peer(scripts) => {
                let mut command = Command::new(scripts.join("serve"));
                command.arg(build_folder(builds, &self.name)).args([port, cpus.len().to_string()]);
                command
            }
        }
    }

    /// Its components and their versions.
    pub(crate) fn version(&self, builds: &Path) -> String {
        match &self.kind {
            Kind::Ours(_) => format!("ringtally {}", env!("CARGO_PKG_VERSION")),
            Kind::Peer(scripts) => {
                let folder = build_folder(builds, &self.name);
                let output = Command::new(scripts.join("version")).arg(folder).output();
                let said = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
                said.unwrap_or_else(|error| format!("unknown: {error}"))
            }
        }
    }
}
