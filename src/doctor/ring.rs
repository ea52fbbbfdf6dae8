//! io_uring: which of its features work here, what blocks it, and what to do about it.

use super::Check;
use super::machine::{Machine, Release, limit};
use crate::uring::{self, Feature};
use io_uring::IoUring;
use rustix::io::Errno;
use std::io;
use std::ops::Range;

/// The first version of Linux that supports the ring engine and the client, because of DEFER_TASKRUN.
pub(super) const KERNEL_FOR_RING: Release = (6, 1);

/// The limit of locked memory that glommio requires for each executor, regardless of the kernel's own accounting. It is enough
/// locked memory per shard on kernels that count rings against the limit: a shard's rings take 280 KiB, the buffers that
/// glommio registers 192 KiB, and a client thread 164 KiB.
const MEMLOCK_BYTES_PER_SHARD: u64 = 512 * 1024;

/// The releases that do not count the memory of rings against RLIMIT_MEMLOCK: Linux 5.12 left it to
/// memory cgroups, and 6.14 counts it again (`io_create_region` in its io_uring/memmap.c).
const KERNELS_WITHOUT_MEMLOCK: Range<Release> = (5, 12)..(6, 14);

/// The capability that lifts RLIMIT_MEMLOCK (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;

const SECCOMP_FIX: &str =
    "allow io_uring_setup, io_uring_enter, and io_uring_register in the seccomp profile";

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    let features = uring::probe();
    let is_blocked =
        features.iter().any(|feature| feature.result.as_ref().is_err_and(is_refused_by_policy));
    let mut checks = vec![io_uring_disabled(machine)];
    checks.extend(features.iter().map(|feature| of_feature(machine, feature)));
    checks.extend([iowait(), seccomp(machine, is_blocked), memlock(machine)]);
    checks
}

/// Reports whether a sysctl, a seccomp filter, or a security module may have refused the system call.
fn is_refused_by_policy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied || is(error, Errno::NOSYS)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// The reason why io_uring does not work, and the fix.
struct Obstacle {
    cause: &'static str,
    fix: String,
}

/// Returns what an error reveals about this machine; `None` if it is not about permissions or limits.
fn obstacle(machine: &Machine, error: &io::Error) -> Option<Obstacle> {
    let found = |cause, fix: &str| Some(Obstacle { cause, fix: fix.into() });
    let is_filtered = machine.status("Seccomp").is_some_and(|mode| mode != "0");
    // Linux 6.6 introduced the sysctl.
    let is_disabled = machine.number(IO_URING_DISABLED).is_some_and(|value| value != 0);
    match error.kind() {
        io::ErrorKind::PermissionDenied if is_disabled => found(
            "the sysctl kernel.io_uring_disabled blocks io_uring",
            "run sysctl -w kernel.io_uring_disabled=0",
        ),
        _ if is_refused_by_policy(error) && is_filtered => {
            found("a seccomp filter blocks io_uring", SECCOMP_FIX)
        }
        io::ErrorKind::PermissionDenied => found(
            "io_uring is not permitted here",
            "allow it in the policy of the security module (SELinux, AppArmor)",
        ),
        _ if is(error, Errno::NOSYS) => found(
            "this kernel has no io_uring",
            "use Linux 6.1 or later, built with CONFIG_IO_URING",
        ),
        io::ErrorKind::OutOfMemory => {
            let shards = shards_by_default(machine);
            found("io_uring may lock too little memory", &memlock_fix(machine, shards))
        }
        _ if is(error, Errno::MFILE) => found("too many files are open", "raise ulimit -n"),
        _ => None,
    }
}

/// Implements `doctor::explain_ring_error`.
pub(super) fn explain_error(machine: &Machine, error: &io::Error) -> String {
    match obstacle(machine, error) {
        Some(Obstacle { cause, fix }) => format!("{cause}: {fix} ({error})"),
        None => format!("io_uring does not work as needed: use Linux 6.1 or later ({error})"),
    }
}

/// Returns the outcome of trying a feature of the ring.
fn of_feature(machine: &Machine, Feature { name, since, result }: &Feature) -> Check {
    let name = format!("ring {name}");
    let error = match result {
        Ok(()) => return Check::ok(&name, format!("works (needs Linux {since})")),
        Err(error) => error,
    };
    if let Some(Obstacle { fix, .. }) = obstacle(machine, error) {
        return Check::warn(&name, error.to_string(), fix);
    }
    let has_it = match (machine.release(), Machine::parse_release(since)) {
        (Some(release), Some(since)) => since <= release,
        _ => false,
    };
    let update = match has_it {
        true => format!("use another kernel: Linux {since} introduced this, but it fails here"),
        false => format!("use Linux {since} or later"),
    };
    let fix = format!(
        "{update}; until then, serve works with --engine streams only, load and challenge not at all"
    );
    Check::warn(&name, error.to_string(), fix)
}

/// Checks whether a thread that waits in a ring counts as idle. Not a fault: it affects monitoring only.
fn iowait() -> Check {
    let name = "ring iowait";
    match IoUring::new(2) {
        Ok(ring) if ring.params().is_feature_no_iowait() => {
            Check::ok(name, "waiting for requests counts as idle time (needs Linux 6.15)")
        }
        Ok(_) => Check::skip(
            name,
            "waiting for requests counts as iowait, which monitoring can take for a slow disk \
             (before Linux 6.15)",
        ),
        Err(error) => Check::skip(name, format!("a ring cannot be set up: {error}")),
    }
}

const IO_URING_DISABLED: &str = "proc/sys/kernel/io_uring_disabled";

fn io_uring_disabled(machine: &Machine) -> Check {
    let name = "io_uring_disabled";
    let blocked_for = match machine.number(IO_URING_DISABLED) {
        None => {
            return Check::skip(name, "this kernel has no such setting (Linux 6.6 introduced it)");
        }
        Some(0) => return Check::ok(name, "0: every process may use io_uring"),
        Some(1) => "1: only privileged processes and members of kernel.io_uring_group may use it",
        Some(_) => "2: no process may use io_uring",
    };
    Check::warn(name, blocked_for, "run sysctl -w kernel.io_uring_disabled=0")
}

fn seccomp(machine: &Machine, is_blocked: bool) -> Check {
    let name = "seccomp";
    match machine.status("Seccomp").as_deref() {
        Some("0") => Check::ok(name, "no filter"),
        Some("2") if !is_blocked => Check::ok(name, "a filter that allows io_uring"),
        Some("2") => Check::warn(name, "a filter, and io_uring is blocked", SECCOMP_FIX),
        Some(mode) => Check::warn(name, format!("mode {mode}"), SECCOMP_FIX),
        None => Check::skip(name, "/proc/self/status does not say"),
    }
}

/// Returns the number of shards that `serve` starts by default: one per CPU.
fn shards_by_default(machine: &Machine) -> usize {
    machine.cpus_allowed().map_or(1, |cpus| cpus.len().max(1))
}

/// Returns the limit of locked memory that `shards` shards need, in bytes.
fn memlock_bytes(machine: &Machine, shards: usize) -> u64 {
    let is_counted = machine.release().is_none_or(|own| !KERNELS_WITHOUT_MEMLOCK.contains(&own));
    match is_counted && !machine.has_capability(CAP_IPC_LOCK) {
        true => MEMLOCK_BYTES_PER_SHARD.saturating_mul(shards as u64),
        // The kernel does not require more, but glommio requires this.
        false => MEMLOCK_BYTES_PER_SHARD,
    }
}

fn memlock_fix(machine: &Machine, shards: usize) -> String {
    let kib = memlock_bytes(machine, shards) / 1024;
    format!("raise the limit with ulimit -l {kib}, or LimitMEMLOCK={kib}K in a systemd unit")
}

/// Implements `doctor::check_memlock`.
pub(super) fn check_memlock(machine: &Machine, shards: usize) -> Result<(), String> {
    // Above this, the kernel decides: it may need less than `memlock_bytes`.
    let limit = machine.limits().and_then(|limits| limit(limits.max_locked_memory.soft_limit));
    match limit {
        Some(bytes) if bytes < MEMLOCK_BYTES_PER_SHARD => Err(format!(
            "the limit of locked memory is {} KiB, and a shard needs 512 KiB: {}",
            bytes / 1024,
            memlock_fix(machine, shards)
        )),
        // Unlimited, enough, or unreadable: if it turns out to be too little, the shard reports that.
        _ => Ok(()),
    }
}

fn memlock(machine: &Machine) -> Check {
    let name = "memlock";
    let Some(limits) = machine.limits() else {
        return Check::skip(name, "/proc/self/limits cannot be read");
    };
    // The server raises its soft limit to the hard limit.
    let Some(bytes) = limit(limits.max_locked_memory.hard_limit) else {
        return Check::ok(name, "unlimited");
    };
    let shards = shards_by_default(machine);
    let needed = memlock_bytes(machine, shards);
    let plural = if shards == 1 { " needs" } else { "s need" };
    let value = format!("{} KiB; {shards} shard{plural} {} KiB", bytes / 1024, needed / 1024);
    Check::warn_if(bytes < needed, name, value, &memlock_fix(machine, shards))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::machine::fixture::{Fixture, limits};
    use super::*;

    const DISABLED: &str = IO_URING_DISABLED;
    const RELEASE: &str = "proc/sys/kernel/osrelease";
    const STATUS: &str = "proc/self/status";

    #[test]
    fn a_blocked_io_uring_is_found() {
        let with = |text| {
            let check = io_uring_disabled(&Fixture::new(&[(DISABLED, text)]).machine());
            assert_eq!(check.fix.is_some(), check.verdict == Verdict::Warn);
            check.verdict
        };
        assert_eq!(
            [with("0\n"), with("1\n"), with("2\n")],
            [Verdict::Ok, Verdict::Warn, Verdict::Warn]
        );
        let filtered = Fixture::new(&[(STATUS, "Name:\tx\nSeccomp:\t2\n")]);
        assert_eq!(seccomp(&filtered.machine(), false).verdict, Verdict::Ok);
        assert_eq!(seccomp(&filtered.machine(), true).verdict, Verdict::Warn);
    }

    #[test]
    fn advice_names_only_what_this_machine_has() {
        let advice = |files: &[(&str, &str)], errno: Errno| {
            explain_error(&Fixture::new(files).machine(), &errno.into())
        };
        let filter = (STATUS, "Seccomp:\t2\n");
        let no_filter = (STATUS, "Seccomp:\t0\n");
        let sysctl = "sysctl -w kernel.io_uring_disabled=0";
        // Linux 6.6 and later have the sysctl. Either it blocks the call, or something else does.
        let said = advice(&[(DISABLED, "2\n"), no_filter], Errno::PERM);
        assert!(said.contains(sysctl) && !said.contains("seccomp"), "{said}");
        for files in [&[(DISABLED, "0\n"), filter] as &[_], &[filter]] {
            for errno in [Errno::PERM, Errno::NOSYS] {
                let said = advice(files, errno);
                assert!(said.contains("io_uring_setup") && !said.contains("sysctl"), "{said}");
            }
        }
        let said = advice(&[no_filter], Errno::PERM);
        assert!(said.contains("SELinux") && !said.contains("sysctl"), "{said}");
        assert!(advice(&[no_filter], Errno::NOSYS).contains("CONFIG_IO_URING"));
        assert!(advice(&[], Errno::NOMEM).contains("ulimit -l 512,"));
        assert!(advice(&[], Errno::MFILE).contains("ulimit -n"));
        assert!(advice(&[], Errno::INVAL).contains("Linux 6.1"));
    }

    #[test]
    fn a_missing_feature_is_explained_for_server_and_client() {
        let on = |release: &str, errno: Errno| {
            let feature =
                Feature { name: "multishot receive", since: "6.0", result: Err(errno.into()) };
            let check = of_feature(&Fixture::new(&[(RELEASE, release)]).machine(), &feature);
            assert_eq!(check.verdict, Verdict::Warn);
            check.fix.unwrap()
        };
        let fix = on("5.19.3", Errno::INVAL);
        assert!(fix.starts_with("use Linux 6.0 or later; "), "{fix}");
        assert!(fix.contains("serve works with --engine streams only"), "{fix}");
        assert!(fix.contains("load and challenge not at all"), "{fix}");
        assert!(on("6.0.0", Errno::INVAL).starts_with("use another kernel"));
        // Without permission, neither engine works.
        assert!(!on("6.0.0", Errno::PERM).contains("streams"));
    }

    #[test]
    fn memlock_counts_per_shard_where_the_kernel_counts() {
        let memlock_on = |release: &str, status: &str, locked: &str| {
            let fixture = Fixture::new(&[
                ("proc/self/limits", &limits("1024", locked)),
                (RELEASE, release),
                (STATUS, status),
            ]);
            let check = memlock(&fixture.machine());
            assert_eq!(check.fix.is_some(), check.verdict == Verdict::Warn);
            (check.verdict, check.fix.unwrap_or_default())
        };
        let one = "CapEff:\t0000000000000000\nCpus_allowed_list:\t0\n";
        let four = "CapEff:\t0000000000000000\nCpus_allowed_list:\t0-3\n";
        let root = "CapEff:\t0000000000004000\nCpus_allowed_list:\t0-3\n";
        for (release, status, needed_bytes) in [
            ("5.11", one, 524_288),
            ("5.11", four, 4 * 524_288),
            ("5.12", four, 524_288),
            ("6.13", four, 524_288),
            ("6.14", one, 524_288),
            ("6.14", four, 4 * 524_288),
            ("odd", four, 4 * 524_288),
            // This release is exempt from the kernel's limit, but not from glommio's check.
            ("6.14", root, 524_288),
        ] {
            let verdict = |bytes: u64| memlock_on(release, status, &bytes.to_string()).0;
            assert_eq!(verdict(needed_bytes), Verdict::Ok, "{release} {status}");
            assert_eq!(verdict(needed_bytes + 1), Verdict::Ok, "{release} {status}");
            assert_eq!(verdict(needed_bytes - 1), Verdict::Warn, "{release} {status}");
        }
        assert_eq!(memlock_on("6.14", four, "unlimited").0, Verdict::Ok);
        let (_, fix) = memlock_on("6.14", four, "65536");
        assert!(fix.contains("ulimit -l 2048,") && fix.contains("LimitMEMLOCK=2048K"), "{fix}");
    }

    #[test]
    fn a_limit_below_what_glommio_requires_is_refused_with_the_fix() {
        let with = |locked: &str| {
            let fixture =
                Fixture::new(&[("proc/self/limits", &limits("1024", locked)), (RELEASE, "6.18")]);
            check_memlock(&fixture.machine(), 2)
        };
        let refusal = with("524287").unwrap_err();
        assert!(refusal.contains("511 KiB") && refusal.contains("ulimit -l 1024"), "{refusal}");
        assert_eq!([with("524288"), with("524289"), with("unlimited")], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(check_memlock(&Fixture::new(&[]).machine(), 2), Ok(()));
    }
}
