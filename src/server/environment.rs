//! Checks of what the process needs before it serves: io_uring, locked memory, and open files.

use super::{Config, Engine};
use crate::doctor;
use crate::engine::REJECTED_MIN;
use crate::failure::Failure;
use crate::uring;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::ErrorKind;

/// The number of descriptors that are not for connections: for the process itself and for rejected connections, and per shard
/// (rings, event descriptors, listener, and the files that glommio opens).
const DESCRIPTORS_BASE: u64 = 64;
const DESCRIPTORS_PER_SHARD: u64 = 24;

/// The default connection limit if the file limit allows more than anybody needs.
const CONNECTIONS_DEFAULT_MAX: u64 = 1_000_000;

/// Raises the soft limit of a resource to the hard limit. Returns the limit, or `u64::MAX` if it is unlimited.
fn raise(resource: Resource) -> u64 {
    let limit = getrlimit(resource);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = match setrlimit(resource, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    allowed.unwrap_or(u64::MAX)
}

/// The maximum number of rejected connections that are open at the same time in addition to
/// [`REJECTED_MIN`], even if there are descriptors for more.
const TURNED_AWAY_MAX: u64 = 4096;

/// Raises the limit of open files as far as possible. Returns the maximum number of connections, and the maximum number of
/// rejected connections that may be open in addition to them.
pub(super) fn check_descriptors(config: &Config) -> Result<(u64, usize), Failure> {
    let allowed = raise(Resource::Nofile);
    let shards = config.placement.len();
    let reserved = DESCRIPTORS_BASE + DESCRIPTORS_PER_SHARD * shards as u64;
    let wanted = config.connections_max.unwrap_or(1);
    let needed = reserved.saturating_add(wanted);
    if needed > allowed {
        let shard_plural = if shards == 1 { "" } else { "s" };
        let plural = if wanted == 1 { "" } else { "s" };
        return Err(Failure::Environment(format!(
            "{shards} shard{shard_plural} and {wanted} connection{plural} need {needed} open files, and \
             the limit is {allowed}: raise it with ulimit -n, or lower --shards or --max-connections",
        )));
    }
    let fitting = (allowed - reserved).min(CONNECTIONS_DEFAULT_MAX);
    let connections_max = config.connections_max.unwrap_or(fitting);
    let spare = (allowed - reserved - connections_max).min(TURNED_AWAY_MAX);
    let rejected_max = REJECTED_MIN + usize::try_from(spare).unwrap_or(0);
    Ok((connections_max, rejected_max))
}

/// Raises the limit of locked memory as far as possible, and fails if it is still too low.
pub(super) fn check_locked_memory(config: &Config) -> Result<(), Failure> {
    raise(Resource::Memlock);
    doctor::check_memlock(config.placement.len()).map_err(Failure::Environment)
}

/// Sets up and drops a small ring, so that a machine without io_uring gets one clear sentence.
pub(super) fn check_ring() -> Result<(), Failure> {
    uring::check().map_err(|error| Failure::Environment(doctor::explain_ring_error(&error)))
}

/// Refuses to coalesce completions if this engine or this kernel cannot.
pub(super) fn check_coalescing(config: &Config, engine: Engine) -> Result<(), Failure> {
    if config.coalesce.is_zero() || engine == Engine::Ring && uring::gathers() {
        return Ok(());
    }
    Err(Failure::Environment(match engine {
        Engine::Ring => "--coalesce-us needs Linux 6.12 or later: leave it out".into(),
        _ => "--coalesce-us needs the ring engine, and this is the streams engine: leave it out"
            .into(),
    }))
}

/// Returns the requested data plane or, for `auto`, the best data plane that works here.
pub(super) fn choose_engine(config: &Config) -> Result<Engine, Failure> {
    if config.engine == Engine::Streams {
        return Ok(Engine::Streams);
    }
    let features = uring::probe();
    let Some(missing) = features.iter().find(|feature| feature.result.is_err()) else {
        return Ok(Engine::Ring);
    };
    let lacks = format!(
        "the ring engine does not work here: it needs {} (Linux {})",
        missing.name, missing.since
    );
    if config.engine == Engine::Ring {
        return Err(Failure::Environment(format!(
            "{lacks}: use Linux 6.1 or later, or pass --engine streams"
        )));
    }
    config.log.warn(&format!("{lacks}: using the streams engine"));
    Ok(Engine::Streams)
}

/// Refuses to poll network devices if this engine or this kernel cannot.
pub(super) fn check_busy_poll(config: &Config, engine: Engine) -> Result<(), Failure> {
    if config.busy_poll.is_zero() {
        return Ok(());
    }
    let refused = |why: &str| {
        Err(Failure::Environment(format!(
            "--busy-poll-us does not work here: {why}, or leave the flag out"
        )))
    };
    if engine != Engine::Ring {
        return refused("it polls through the ring engine: pass --engine ring");
    }
    match uring::check_busy_poll() {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::InvalidInput => refused(
            "this kernel cannot poll network devices through a ring: use Linux 6.9 or later",
        ),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            refused("this kernel polls no network devices: use one with CONFIG_NET_RX_BUSY_POLL")
        }
        Err(error) => refused(&format!("the kernel says \"{error}\": allow io_uring_register")),
    }
}
