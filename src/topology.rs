//! The CPUs that this process may use, and their distribution to the shards and the client.
//!
//! Placement is a function of a given list of CPUs, so unusual machines can be test fixtures.

use crate::failure::Failure;
use std::fmt;
use std::path::Path;

/// The highest CPU number accepted: glibc's affinity mask has 1,024 bits.
const CPU_MAX: usize = 1023;

/// A reason why a CPU list cannot be used. The user can correct any of them.
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
    /// The affinity mask of this process cannot be read, or has only CPUs that it cannot be pinned to.
    NoMask,
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
            Error::NoMask => write!(
                f,
                "this process may run on no CPU up to {CPU_MAX}, or its affinity mask cannot be read: \
                 allow sched_getaffinity or mount /proc, and choose lower CPUs with taskset"
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = error.to_string();
        match error {
            Error::NoMask => Failure::Environment(message),
            Error::Syntax(_) | Error::EmptyRange { .. } | Error::OutsideMask { .. } => {
                Failure::Usage(message)
            }
        }
    }
}

/// Returns the CPUs in this process's affinity mask (as set by taskset, numactl, or a cpuset), in ascending order. The list is
/// empty if the mask cannot be read: [`choose`] makes that an error.
pub fn allowed_cpus() -> Vec<usize> {
    let mask = core_affinity::get_core_ids().unwrap_or_default();
    let mask: Vec<usize> = mask.iter().map(|core| core.id).collect();
    if !mask.is_empty() {
        return distinct(mask);
    }
    // With more than 1,024 CPUs, the mask does not fit the system call. A filter may also forbid the call.
    allowed_in(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// Returns the CPUs that a process may use and be pinned to, from its status (proc_pid_status(5)).
fn allowed_in(status: &str) -> Vec<usize> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let ranges = list.unwrap_or_default().trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?.min(CPU_MAX))
    });
    distinct(ranges.flatten())
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

/// Returns the CPUs, each once, in ascending order.
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
    if allowed.is_empty() {
        return Err(Error::NoMask);
    }
    let Some(wanted) = wanted else {
        return Ok(allowed.to_vec());
    };
    match wanted.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => Err(Error::OutsideMask { cpu: *cpu, allowed: allowed.to_vec() }),
        None => Ok(wanted.to_vec()),
    }
}

/// Returns the CPU of each shard: one shard per CPU, or `shards` of them, assigned to the CPUs in turn.
pub fn place(cpus: &[usize], shards: Option<usize>) -> Vec<usize> {
    cpus.iter().copied().cycle().take(shards.unwrap_or(cpus.len())).collect()
}

/// Returns the CPUs that share a core with `cpu`, including itself; only itself if that is unknown.
pub fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    parse_cpu_list(list.trim()).unwrap_or_else(|_| vec![cpu])
}

/// The devices that list the CPUs of each kind of core on Intel's hybrid processors.
const KINDS: [&str; 3] = ["cpu_core", "cpu_atom", "cpu_lowpower"];

/// Returns the kind of core that a CPU belongs to, as a number that CPUs of one kind share.
pub fn core_kind(cpu: usize) -> u32 {
    kind_of("/sys/devices".as_ref(), cpu)
}

/// Returns the kind of core of a CPU, as a directory of devices lists it.
pub(crate) fn kind_of(devices: &Path, cpu: usize) -> u32 {
    let read = |path: String| std::fs::read_to_string(devices.join(path)).unwrap_or_default();
    let is_in = |kind: &str| {
        let list = parse_cpu_list(read(format!("{kind}/cpus")).trim());
        list.is_ok_and(|cpus| cpus.contains(&cpu))
    };
    match KINDS.iter().position(|kind| is_in(kind)) {
        Some(kind) => u32::try_from(kind).unwrap_or(0),
        // On other processors, the kernel lists the speed of each core if they differ.
        None => read(format!("system/cpu/cpu{cpu}/cpu_capacity")).trim().parse().unwrap_or(0),
    }
}

/// Returns the CPUs that have the same kind of core as any of `others`, or all CPUs if none has.
pub fn alike(cpus: &[usize], others: &[usize], kind: &dyn Fn(usize) -> u32) -> Vec<usize> {
    let kinds: Vec<u32> = others.iter().map(|cpu| kind(*cpu)).collect();
    let alike: Vec<usize> =
        cpus.iter().copied().filter(|cpu| kinds.contains(&kind(*cpu))).collect();
    if alike.is_empty() { cpus.to_vec() } else { alike }
}

/// Divides CPUs between a server and its client: each gets half of the cores of each kind, and the server the odd one. A kind
/// with only one core is left out if others have more. With a single core, each gets half of its CPUs; a single CPU is shared.
pub fn divide(
    cpus: &[usize],
    siblings: impl Fn(usize) -> Vec<usize>,
    kind: impl Fn(usize) -> u32,
) -> (Vec<usize>, Vec<usize>) {
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
    let mut kinds: Vec<(u32, Vec<Vec<usize>>)> = Vec::new();
    for core in &cores {
        let own = kind(core[0]);
        match kinds.iter_mut().find(|(kind, _)| *kind == own) {
            Some((_, cores)) => cores.push(core.clone()),
            None => kinds.push((own, vec![core.clone()])),
        }
    }
    if kinds.iter().any(|(_, cores)| cores.len() > 1) {
        kinds.retain(|(_, cores)| cores.len() > 1);
    } else {
        kinds = vec![(0, cores)];
    }
    let (mut server, mut client) = (Vec::new(), Vec::new());
    for (_, cores) in kinds {
        let (first, rest) = cores.split_at(cores.len().div_ceil(2));
        server.extend(first.concat());
        client.extend(rest.concat());
    }
    (server, client)
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
        let equal = |_| 0;
        assert_eq!(divide(&[3], alone, equal), (vec![3], vec![3]));
        assert_eq!(divide(&[0, 1], alone, equal), (vec![0], vec![1]));
        assert_eq!(divide(&[0, 2, 5], alone, equal), (vec![0, 2], vec![5]));
        // CPUs n and n + 2 share a core, or neighbors do.
        let far = |cpu: usize| vec![cpu % 2, cpu % 2 + 2];
        assert_eq!(divide(&[0, 1, 2, 3], far, equal), (vec![0, 2], vec![1, 3]));
        assert_eq!(divide(&[0, 2], far, equal), (vec![0], vec![2]));
        let near = |cpu: usize| vec![cpu & !1, cpu | 1];
        assert_eq!(divide(&[0, 1, 2, 3, 4], near, equal), (vec![0, 1, 2, 3], vec![4]));
    }

    #[test]
    fn server_and_client_get_the_same_kinds_of_core() {
        let alone = |cpu| vec![cpu];
        let kind = |cpu| u32::from(cpu >= 4);
        let all: Vec<usize> = (0..8).collect();
        assert_eq!(divide(&all, alone, kind), (vec![0, 1, 4, 5], vec![2, 3, 6, 7]));
        assert_eq!(divide(&[2, 3, 4], alone, kind), (vec![2], vec![3]));
        assert_eq!(divide(&[3, 4], alone, kind), (vec![3], vec![4]));
        assert_eq!(alike(&[2, 3, 4, 5], &[0], &kind), [2, 3]);
        assert_eq!(alike(&[4, 5], &[0], &kind), [4, 5]);
    }

    #[test]
    fn the_kind_of_a_core_is_what_the_kernel_tells() {
        let devices = std::env::temp_dir().join(format!("ringtally-kinds-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = devices.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(kind_of(&devices, 0), kind_of(&devices, 7));
        write("system/cpu/cpu0/cpu_capacity", "1024\n");
        write("system/cpu/cpu7/cpu_capacity", "446\n");
        assert_eq!([0, 7].map(|cpu| kind_of(&devices, cpu)), [1024, 446]);
        write("cpu_core/cpus", "0-3\n");
        write("cpu_atom/cpus", "4-7\n");
        assert_eq!([0, 3, 4, 7].map(|cpu| kind_of(&devices, cpu)), [0, 0, 1, 1]);
        std::fs::remove_dir_all(&devices).unwrap();
    }

    #[test]
    fn the_mask_is_read_from_the_status_as_far_as_a_process_can_be_pinned() {
        for (list, cpus) in [
            ("Cpus_allowed_list:\t0-2,5\n", vec![0, 1, 2, 5]),
            ("Name:\tx\nCpus_allowed_list:\t1022-2047\nMems", vec![1022, 1023]),
            ("Cpus_allowed_list:\t1024-2047\n", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(allowed_in(list), cpus, "{list}");
        }
    }

    #[test]
    fn a_mask_that_cannot_be_read_is_an_error_of_the_environment() {
        for wanted in [None, Some(&[0][..])] {
            let error = choose(wanted, &[]).unwrap_err();
            assert_eq!(Failure::from(error).exit_code(), 3);
        }
    }
}
