//! The score that HttpArena's live board gives servers in a row with a fixed rate (November 2026).

/// The shares of CPU time, of the 99th percentile, and of the mean.
const CPU_SHARE: f64 = 0.50;
const P99_SHARE: f64 = 0.25;
const MEAN_SHARE: f64 = 0.25;
const _: () = assert!(CPU_SHARE + P99_SHARE + MEAN_SHARE == 1.0);
/// A latency that exceeds the best one by this many powers of ten is worth nothing.
const DECADES: f64 = 3.0;

/// The figures that determine a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scored {
    /// The share of the rate that was reached.
    pub(super) held: f64,
    pub(super) cpu_us: f64,
    pub(super) p99_us: f64,
    pub(super) mean_us: f64,
}

/// Returns the score of each server, from 0 to 1, given the figures of all servers that count.
pub(super) fn scores(all: &[Scored]) -> Vec<f64> {
    let best = |of: fn(&Scored) -> f64| all.iter().map(of).fold(f64::INFINITY, f64::min);
    let (cpu, p99, mean) =
        (best(|one| one.cpu_us), best(|one| one.p99_us), best(|one| one.mean_us));
    let latency = |us: f64, best: f64| (1.0 - (us / best).log10() / DECADES).clamp(0.0, 1.0);
    let score = |one: &Scored| {
        one.held.min(1.0)
            * (CPU_SHARE * cpu / one.cpu_us
                + P99_SHARE * latency(one.p99_us, p99)
                + MEAN_SHARE * latency(one.mean_us, mean))
    };
    all.iter().map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_all_has_one_and_each_part_its_share() {
        let best = Scored { held: 1.0, cpu_us: 10.0, p99_us: 100.0, mean_us: 50.0 };
        for (other, score) in [
            (best, 1.0),
            (Scored { held: 1.2, ..best }, 1.0),
            (Scored { held: 0.5, ..best }, 0.5),
            (Scored { cpu_us: 20.0, ..best }, 0.75),
            (Scored { p99_us: 1000.0, ..best }, 1.0 - 0.25 / 3.0),
            (Scored { p99_us: 1e9, ..best }, 0.75),
            (Scored { mean_us: 5e4, ..best }, 0.75),
        ] {
            let found = scores(&[best, other]);
            assert!(
                (found[0] - 1.0).abs() < 1e-12 && (found[1] - score).abs() < 1e-12,
                "{found:?}"
            );
        }
        assert!(scores(&[]).is_empty());
    }
}
