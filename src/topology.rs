//! Which CPUs this process may use, and which of them each shard and the client get.
//!
//! Placement is a function of a given list of CPUs, so unusual machines can be test fixtures.

use crate::failure::Failure;
use std::fmt;

/// The highest CPU number accepted: glibc's affinity mask has 1,024 bits.
const CPU_MAX: usize = 1023;

/// A CPU list that cannot be used. All are the user's to correct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The list is not in taskset's syntax.
    Syntax(String),
    /// A part of the list, such as `3-1`, selects no CPU.
    EmptyRange {
        /// The part.
        part: String,
        /// The whole list.
        list: String,
    },
    /// A CPU is not in the affinity mask of this process.
    OutsideMask {
        /// The CPU.
        cpu: usize,
        /// The CPUs in the mask.
        allowed: Vec<usize>,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Syntax(list) => {
                write!(f, "invalid CPU list '{list}': use the taskset syntax, such as 0-3,8")
            }
            Error::EmptyRange { part, list } => write!(
                f,
                "'{part}' in the CPU list '{list}' selects no CPU: write the lower number first, \
                 and a stride of at least 1"
            ),
            Error::OutsideMask { cpu, allowed } => write!(
                f,
                "CPU {cpu} is outside the affinity mask of this process ({}): choose from these \
                 CPUs, or widen the mask with taskset or the cpuset",
                format_cpu_list(allowed)
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Usage(error.to_string())
    }
}

/// The CPUs in this process's affinity mask (as set by taskset, numactl, or a cpuset), in ascending
/// order.
pub fn allowed_cpus() -> Vec<usize> {
    let mut cpus: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    cpus.sort_unstable();
    cpus
}

/// Pins the calling thread to one CPU. Returns whether the kernel allowed it.
pub fn pin_to(cpu: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

/// Parses a CPU list in taskset's syntax: numbers, ranges, and ranges with a stride (`0-3,8`,
/// `0-6:2`). The result is in ascending order and without duplicates.
pub fn parse_cpu_list(list: &str) -> Result<Vec<usize>, Error> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<usize>()
            .ok()
            .filter(|cpu| digits && *cpu <= CPU_MAX)
            .ok_or_else(|| Error::Syntax(list.to_owned()))
    };
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (range, stride) = match part.split_once(':') {
            Some((range, stride)) => (range, number(stride)?),
            None => (part, 1),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(range)?, number(range)?),
        };
        if first > last || stride == 0 {
            return Err(Error::EmptyRange { part: part.to_owned(), list: list.to_owned() });
        }
        cpus.extend((first..=last).step_by(stride));
    }
    Ok(distinct(cpus))
}

/// The CPUs, each once, in ascending order.
pub fn distinct(cpus: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut cpus: Vec<usize> = cpus.into_iter().collect();
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

/// Formats a list of CPUs in taskset's syntax.
pub fn format_cpu_list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// Formats a list of CPUs in ascending order in taskset's syntax, with ranges: `0-3,8`.
pub fn format_cpu_ranges(cpus: &[usize]) -> String {
    let ranges = cpus.chunk_by(|cpu, next| *next == cpu + 1).map(|range| match range {
        [first, .., last] => format!("{first}-{last}"),
        cpus => format_cpu_list(cpus),
    });
    ranges.collect::<Vec<_>>().join(",")
}

/// Returns the wanted CPUs if all of them are allowed, or all allowed CPUs if none are named.
pub fn choose(wanted: Option<&[usize]>, allowed: &[usize]) -> Result<Vec<usize>, Error> {
    let Some(wanted) = wanted else {
        return Ok(allowed.to_vec());
    };
    match wanted.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => Err(Error::OutsideMask { cpu: *cpu, allowed: allowed.to_vec() }),
        None => Ok(wanted.to_vec()),
    }
}

/// The CPU of each shard: one shard per CPU, or `shards` of them, assigned to the CPUs in turn.
pub fn place(cpus: &[usize], shards: Option<usize>) -> Vec<usize> {
    cpus.iter().copied().cycle().take(shards.unwrap_or(cpus.len())).collect()
}

/// The CPUs that share a core with `cpu`, itself included; only itself if the kernel does not say.
pub fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    parse_cpu_list(list.trim()).unwrap_or_else(|_| vec![cpu])
}

/// Divides CPUs between a server and its client: each gets half of the cores, and the server the
/// odd one. With a single core, each gets half of its CPUs; a single CPU is shared.
pub fn divide(cpus: &[usize], siblings: impl Fn(usize) -> Vec<usize>) -> (Vec<usize>, Vec<usize>) {
    let mut cores: Vec<Vec<usize>> = Vec::new();
    for cpu in cpus {
        let shared = siblings(*cpu);
        match cores.iter_mut().find(|core| core.iter().any(|other| shared.contains(other))) {
            Some(core) => core.push(*cpu),
            None => cores.push(vec![*cpu]),
        }
    }
    if let [core] = cores.as_slice() {
        cores = core.iter().map(|cpu| vec![*cpu]).collect();
    }
    if cores.len() < 2 {
        return (cpus.to_vec(), cpus.to_vec());
    }
    let (server, client) = cores.split_at(cores.len().div_ceil(2));
    (server.concat(), client.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_parsed_as_taskset_does() {
        for (list, cpus) in [
            ("0", vec![0]),
            ("0-3,8", vec![0, 1, 2, 3, 8]),
            ("8,0-1,1", vec![0, 1, 8]),
            ("0-6:2", vec![0, 2, 4, 6]),
            ("1023", vec![1023]),
        ] {
            assert_eq!(parse_cpu_list(list), Ok(cpus), "{list}");
        }
        for bad in ["", ",", "0,", "a", "-1", "1-", "+1", "1024", " 1", "0x1"] {
            assert_eq!(parse_cpu_list(bad), Err(Error::Syntax(bad.to_owned())));
        }
        for empty in ["3-1", "0-3:0"] {
            let error = parse_cpu_list(empty).unwrap_err();
            assert!(matches!(error, Error::EmptyRange { .. }), "{error}");
        }
    }

    #[test]
    fn neighbors_are_written_as_ranges() {
        for (cpus, list) in
            [(&[][..], ""), (&[7], "7"), (&[0, 1], "0-1"), (&[0, 2, 3, 4, 8, 127], "0,2-4,8,127")]
        {
            assert_eq!(format_cpu_ranges(cpus), list);
        }
    }

    #[test]
    fn a_cpu_outside_the_mask_is_named() {
        assert_eq!(choose(None, &[2, 5]), Ok(vec![2, 5]));
        assert_eq!(choose(Some(&[5]), &[2, 5]), Ok(vec![5]));
        let error = choose(Some(&[2, 3]), &[2, 5]).unwrap_err();
        assert!(error.to_string().starts_with("CPU 3 is outside"), "{error}");
        assert_eq!(Failure::from(error).exit_code(), 2);
    }

    #[test]
    fn shards_share_cpus_in_turn() {
        assert_eq!(place(&[4, 7], None), [4, 7]);
        assert_eq!(place(&[4, 7], Some(5)), [4, 7, 4, 7, 4]);
        assert_eq!(place(&[4, 7], Some(1)), [4]);
    }

    #[test]
    fn server_and_client_get_disjoint_cpus_if_there_are_two() {
        let alone = |cpu| vec![cpu];
        assert_eq!(divide(&[3], alone), (vec![3], vec![3]));
        assert_eq!(divide(&[0, 1], alone), (vec![0], vec![1]));
        assert_eq!(divide(&[0, 2, 5], alone), (vec![0, 2], vec![5]));
        // CPUs n and n + 2 share a core, or neighbors do.
        let far = |cpu: usize| vec![cpu % 2, cpu % 2 + 2];
        assert_eq!(divide(&[0, 1, 2, 3], far), (vec![0, 2], vec![1, 3]));
        assert_eq!(divide(&[0, 2], far), (vec![0], vec![2]));
        let near = |cpu: usize| vec![cpu & !1, cpu | 1];
        assert_eq!(divide(&[0, 1, 2, 3, 4], near), (vec![0, 1, 2, 3], vec![4]));
    }
}
