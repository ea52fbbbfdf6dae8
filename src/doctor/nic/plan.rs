//! The plan for the CPU that each queue of a network card should interrupt, given the CPUs of the shards.

/// Returns the CPU for the interrupt of each queue, given its current one, so that the numbers of queues per CPU of `cpus`
/// differ by at most one. A queue keeps its CPU if it can.
pub(super) fn assign(current: &[Option<usize>], cpus: &[usize]) -> Vec<usize> {
    let (least, mut with_one_more) = (current.len() / cpus.len(), current.len() % cpus.len());
    let mut counts = vec![0; cpus.len()];
    let mut assigned: Vec<Option<usize>> = vec![None; current.len()];
    for (queue, cpu) in current.iter().enumerate() {
        let Some(index) = cpu.and_then(|cpu| cpus.iter().position(|own| *own == cpu)) else {
            continue;
        };
        if counts[index] == least && with_one_more > 0 {
            with_one_more -= 1;
        } else if counts[index] >= least {
            continue;
        }
        counts[index] += 1;
        assigned[queue] = Some(cpus[index]);
    }
    let mut fill = |cpu: Option<usize>| {
        cpu.unwrap_or_else(|| {
            let index = (0..cpus.len()).min_by_key(|index| counts[*index]).unwrap_or(0);
            counts[index] += 1;
            cpus[index]
        })
    };
    assigned.into_iter().map(&mut fill).collect()
}

/// Returns the `cpus` that send through each queue: the CPU that it interrupts, and some others if there are fewer queues
/// than CPUs.
pub(super) fn senders(assigned: &[usize], cpus: &[usize]) -> Vec<Vec<usize>> {
    let mut senders: Vec<Vec<usize>> = assigned.iter().map(|cpu| vec![*cpu]).collect();
    let without = cpus.iter().filter(|cpu| !assigned.contains(cpu));
    for (index, cpu) in without.enumerate() {
        let queue = index % senders.len();
        senders[queue].push(*cpu);
    }
    for group in &mut senders {
        group.sort_unstable();
    }
    senders
}

/// Returns the `cpus` that each queue should spread its packets over, so that all get an equal share; empty if each CPU has
/// a queue.
pub(super) fn spread(assigned: &[usize], cpus: &[usize]) -> Vec<Vec<usize>> {
    if assigned.len() >= cpus.len() {
        vec![Vec::new(); assigned.len()]
    } else if cpus.len().is_multiple_of(assigned.len()) {
        senders(assigned, cpus)
    } else {
        vec![cpus.to_vec(); assigned.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_that_are_in_line_stay_and_the_others_fill_the_gaps() {
        for (current, cpus, expected) in [
            (&[None, None][..], &[4, 5][..], &[4, 5][..]),
            (&[Some(5), Some(4)], &[4, 5], &[5, 4]),
            (&[Some(5), Some(5)], &[4, 5], &[5, 4]),
            (&[Some(9), Some(4)], &[4, 5], &[5, 4]),
            (&[Some(4), Some(4), Some(4), Some(9)], &[4, 5], &[4, 4, 5, 5]),
            (&[Some(4), Some(4), Some(4)], &[4, 5], &[4, 4, 5]),
            (&[Some(5), None], &[4, 5, 6], &[5, 4]),
        ] {
            assert_eq!(assign(current, cpus), expected, "{current:?} on {cpus:?}");
        }
    }

    #[test]
    fn any_assignment_is_even_and_is_kept() {
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let cpus: Vec<usize> = (0..random.usize(1..9)).map(|cpu| 3 * cpu).collect();
            let current: Vec<Option<usize>> = (0..random.usize(1..20))
                .map(|_| random.bool().then(|| random.usize(0..27)))
                .collect();
            let assigned = assign(&current, &cpus);
            let count = |cpu: &usize| assigned.iter().filter(|own| *own == cpu).count();
            let counts: Vec<usize> = cpus.iter().map(count).collect();
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{seed}: {counts:?}");
            let settled: Vec<Option<usize>> = assigned.iter().copied().map(Some).collect();
            assert_eq!(assign(&settled, &cpus), assigned, "{seed}");
            let mut senders = senders(&assigned, &cpus).concat();
            senders.sort_unstable();
            senders.dedup();
            assert_eq!(senders, cpus, "{seed}: each CPU sends");
        }
    }

    #[test]
    fn few_queues_spread_their_packets_evenly() {
        assert_eq!(spread(&[0], &[0, 1, 2]), [vec![0, 1, 2]]);
        assert_eq!(spread(&[2, 0], &[0, 1, 2, 3]), [vec![1, 2], vec![0, 3]]);
        assert_eq!(spread(&[0, 1], &[0, 1, 2]), [vec![0, 1, 2], vec![0, 1, 2]]);
        assert_eq!(spread(&[0, 1], &[0, 1]).concat(), [0_usize; 0]);
    }
}
