//! Which CPUs this process may use, and which shard and client gets which.
//!
//! Placement is a function of a given list of CPUs, so that odd machines are test fixtures.

/// The highest CPU number that is understood: the size of the kernel's usual affinity mask.
const CPU_MAX: usize = 1023;

/// The CPUs that the affinity mask of this process (taskset, numactl, cpusets) allows, ascending.
pub fn allowed_cpus() -> Vec<usize> {
    let mut cpus: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    cpus.sort_unstable();
    cpus
}

/// Pins the calling thread to one CPU. Returns whether the kernel agreed.
pub fn pin_to(cpu: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

/// Reads a CPU list in taskset's syntax: numbers, ranges, and ranges with a stride (`0-3,8`,
/// `0-6:2`). The result is ascending, without repetitions.
pub fn parse_cpu_list(list: &str) -> Result<Vec<usize>, String> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<usize>()
            .ok()
            .filter(|cpu| digits && *cpu <= CPU_MAX)
            .ok_or_else(|| format!("'{list}' is no CPU list such as 0-3,8"))
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
            return Err(format!("'{part}' in the CPU list '{list}' is empty"));
        }
        cpus.extend((first..=last).step_by(stride));
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// Writes a list of CPUs as taskset reads it.
pub fn format_cpu_list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// Checks that wanted CPUs are allowed; without a wish, all that are allowed.
pub fn choose(wanted: Option<&[usize]>, allowed: &[usize]) -> Result<Vec<usize>, String> {
    let Some(wanted) = wanted else {
        return Ok(allowed.to_vec());
    };
    match wanted.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(outside) => Err(format!(
            "CPU {outside} is outside the affinity mask of this process ({}): name allowed CPUs, \
             or widen the mask with taskset or the cpuset",
            format_cpu_list(allowed)
        )),
        None => Ok(wanted.to_vec()),
    }
}

/// The CPU of each shard: one a CPU, or `shards` of them sharing the CPUs in turn.
pub fn place(cpus: &[usize], shards: Option<usize>) -> Vec<usize> {
    cpus.iter().copied().cycle().take(shards.unwrap_or(cpus.len())).collect()
}

/// The CPUs that share a core with one, itself included, as far as the kernel tells.
pub fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    parse_cpu_list(list.trim()).unwrap_or_else(|_| vec![cpu])
}

/// Divides CPUs between a server and its client: disjoint halves of the cores, the odd one to the
/// server; of a single core, disjoint halves of its CPUs. A single CPU is shared.
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
    fn cpu_lists_read_as_taskset_reads_them() {
        for (list, cpus) in [
            ("0", vec![0]),
            ("0-3,8", vec![0, 1, 2, 3, 8]),
            ("8,0-1,1", vec![0, 1, 8]),
            ("0-6:2", vec![0, 2, 4, 6]),
            ("1023", vec![1023]),
        ] {
            assert_eq!(parse_cpu_list(list), Ok(cpus), "{list}");
        }
        for bad in ["", ",", "0,", "a", "-1", "1-", "3-1", "0-3:0", "+1", "1024", " 1", "0x1"] {
            assert!(parse_cpu_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cpu_outside_the_mask_is_named() {
        assert_eq!(choose(None, &[2, 5]), Ok(vec![2, 5]));
        assert_eq!(choose(Some(&[5]), &[2, 5]), Ok(vec![5]));
        assert!(choose(Some(&[2, 3]), &[2, 5]).unwrap_err().starts_with("CPU 3 is outside"));
    }

    #[test]
    fn shards_share_cpus_in_turn() {
        assert_eq!(place(&[4, 7], None), [4, 7]);
        assert_eq!(place(&[4, 7], Some(5)), [4, 7, 4, 7, 4]);
        assert_eq!(place(&[4, 7], Some(1)), [4]);
    }

    #[test]
    fn server_and_client_get_disjoint_cpus_where_there_are_two() {
        let alone = |cpu| vec![cpu];
        assert_eq!(divide(&[3], alone), (vec![3], vec![3]));
        assert_eq!(divide(&[0, 1], alone), (vec![0], vec![1]));
        assert_eq!(divide(&[0, 2, 5], alone), (vec![0, 2], vec![5]));
        // CPUs n and n + 2 share a core, or next neighbours do.
        let far = |cpu: usize| vec![cpu % 2, cpu % 2 + 2];
        assert_eq!(divide(&[0, 1, 2, 3], far), (vec![0, 2], vec![1, 3]));
        assert_eq!(divide(&[0, 2], far), (vec![0], vec![2]));
        let near = |cpu: usize| vec![cpu & !1, cpu | 1];
        assert_eq!(divide(&[0, 1, 2, 3, 4], near), (vec![0, 1, 2, 3], vec![4]));
    }
}
