//! A network namespace with its own loopback device, whose packets can be as small as a network card's.

use crate::failure::Failure;
use rustix::process::geteuid;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The smallest MTU of the loopback device, in bytes.
pub const MTU_MIN: u64 = 576;
/// The largest MTU, which is Linux's default.
pub const MTU_MAX: u64 = 65_536;

/// The environment variable that marks the process in the namespace and holds its MTU.
const INSIDE: &str = "RINGTALLY_LOOPBACK_MTU";

/// Moves this process into a new network namespace with a loopback device of this MTU: as root, or else in a user namespace.
/// The process executes itself again there with the same arguments, so the function returns only in the namespace.
///
/// # Errors
///
/// [`Failure::Environment`] if no namespace can be made.
pub fn enter(mtu: u64) -> Result<(), Failure> {
    if inside() == Some(mtu) {
        return Ok(());
    }
    let cannot = |why: String| {
        Failure::Environment(format!(
            "--mtu {mtu} needs a network namespace, and none can be made here: {why}: run it as root, allow user namespaces \
             (sysctl -w kernel.unprivileged_userns_clone=1), or install unshare (util-linux) and ip (iproute2)"
        ))
    };
    let flags: &[&str] = match geteuid().is_root() {
        true => &["--net"],
        false => &["--user", "--map-root-user", "--net"],
    };
    let set_up = format!("ip link set lo mtu {mtu} && ip link set lo up");
    // Try the setup first: after the `exec` below, nothing could report why it failed.
    let tried = Command::new("unshare").args(flags).args(["sh", "-c", &set_up]).output();
    let tried = tried.map_err(|error| cannot(format!("unshare: {error}")))?;
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr);
        return Err(cannot(said.trim().replace('\n', "; ")));
    }
    let program = std::env::current_exe().map_err(|error| cannot(error.to_string()))?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let script = format!("{set_up} && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(flags).args(["sh", "-c", &script]).arg(program).args(arguments);
    Err(cannot(command.env(INSIDE, mtu.to_string()).exec().to_string()))
}

fn inside() -> Option<u64> {
    std::env::var(INSIDE).ok()?.parse().ok()
}

/// Returns the MTU of the loopback device that this process uses; `None` if it cannot be read.
pub(super) fn loopback_mtu() -> Option<u64> {
    // In a new namespace, /sys still shows the devices of the old one.
    inside().or_else(|| std::fs::read_to_string("/sys/class/net/lo/mtu").ok()?.trim().parse().ok())
}
