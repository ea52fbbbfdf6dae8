//! Values that flags take.

use crate::topology;
use std::time::Duration;

/// CPUs, as typed.
#[derive(Clone, Debug)]
pub(super) struct CpuList(pub(super) Vec<usize>);

pub(super) fn cpu_list(text: &str) -> Result<CpuList, String> {
    topology::parse_cpu_list(text).map(CpuList)
}

/// The longest timeout.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| "write a time with its unit, such as 10s or 500ms".to_owned())?;
    match duration {
        Duration::ZERO => Err("a timeout is at least 1ms".into()),
        longer if longer > DURATION_MAX => Err("a timeout is at most 24h".into()),
        duration => Ok(duration.max(Duration::from_millis(1))),
    }
}
