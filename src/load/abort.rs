//! Ends a run once a threshold can no longer pass, no matter how the rest of the run goes.
//!
//! The rest of a run can only add to a count, and slow requests remain slow even if all further requests take no time.
//! Each figure at the end of the run is therefore bounded by the measurements that have been made.

use super::latency::Latencies;
use super::shared::{Progress, Run};
use super::thresholds::Threshold;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The thresholds that end a run.
pub(super) struct Abort<'a> {
    thresholds: &'a [Threshold],
    /// The size of the run; `None` if the run has as many requests as it can send within its duration.
    of: Option<Whole>,
}

/// The size of a run.
#[derive(Clone, Copy)]
struct Whole {
    events: u64,
    requests: u64,
}

/// The measurements at the time of a check.
struct SoFar<'a> {
    latency: &'a Latencies,
    elapsed: Duration,
    progress: &'a dyn Fn(fn(&Progress) -> &AtomicU64) -> u64,
}

impl<'a> Abort<'a> {
    pub(super) fn new(thresholds: &'a [Threshold], run: &Run) -> Abort<'a> {
        let rest = run.part.rest(0);
        let whole = || Whole {
            events: run.workload.len_of(rest),
            requests: rest.len(run.workload.requests()),
        };
        Abort { thresholds, of: (!run.is_open_ended()).then(whole) }
    }

    /// Ends the run if a threshold can no longer pass.
    pub(super) fn check(&self, run: &Run, latency: &Latencies, elapsed: Duration) {
        if self.thresholds.is_empty() {
            return;
        }
        let progress = |of: fn(&Progress) -> &AtomicU64| -> u64 {
            run.progress.iter().map(|thread| of(thread).load(Ordering::Relaxed)).sum()
        };
        let so_far = SoFar { latency, elapsed, progress: &progress };
        if let Some(threshold) = self.thresholds.iter().find(|it| self.is_lost(it, &so_far)) {
            // Only the first such threshold is kept.
            let _ = run.aborted_by.set(threshold.clone());
        }
    }

    /// Reports whether a threshold will fail, no matter how the rest of the run goes.
    fn is_lost(&self, threshold: &Threshold, so_far: &SoFar<'_>) -> bool {
        let name = threshold.figure().name;
        let (least, most) = (self.least(name, so_far), self.most(name, so_far));
        least.is_some_and(|least| threshold.fails_from(least))
            || most.is_some_and(|most| threshold.fails_up_to(most))
    }

    /// Returns a lower bound on a figure at the end of the run, in microseconds if the figure is a time; `None` if a
    /// bound is not known.
    fn least(&self, name: &str, so_far: &SoFar<'_>) -> Option<f64> {
        let SoFar { latency, progress, .. } = so_far;
        let count = |of: fn(&Progress) -> &AtomicU64| Some(progress(of) as f64);
        match name {
            "refused" => count(|thread| &thread.refused),
            "unknown" => count(|thread| &thread.unknown),
            "reconnects" => count(|thread| &thread.reconnects),
            "timeouts" => count(|thread| &thread.timeouts),
            "connect_failures" => count(|thread| &thread.connect_failures),
            "rejected" => count(|thread| &thread.rejected),
            "malformed" => count(|thread| &thread.malformed),
            "max" => latency.max().map(|max| max.micros),
            "mean" => {
                let sum = latency.mean()?.micros * latency.len() as f64;
                Some(sum / self.of?.requests.max(1) as f64)
            }
            percentile => {
                let percent: f64 = percentile.strip_prefix('p')?.parse().ok()?;
                latency.least_quantile_of(percent / 100.0, self.of?.requests)
            }
        }
    }

    /// Returns an upper bound on a figure at the end of the run; `None` if a bound is not known.
    fn most(&self, name: &str, so_far: &SoFar<'_>) -> Option<f64> {
        let Whole { events, .. } = self.of?;
        match name {
            "rps" | "acked_per_s" => Some(events as f64 / so_far.elapsed.as_secs_f64()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_lost(threshold: &str, so_far: &[u64], requests: Option<u64>) -> bool {
        let mut latency = Latencies::new();
        so_far.iter().for_each(|micros| latency.record(micros * 1000));
        let abort = Abort {
            thresholds: &[],
            of: requests.map(|requests| Whole { events: requests, requests }),
        };
        let progress = |_: fn(&Progress) -> &AtomicU64| so_far.len() as u64;
        let elapsed = Duration::from_secs(2);
        let so_far = SoFar { latency: &latency, elapsed, progress: &progress };
        abort.is_lost(&threshold.parse().unwrap(), &so_far)
    }

    #[test]
    fn a_run_is_lost_as_soon_as_nothing_can_save_it() {
        let slow = |count: usize| vec![9000; count];
        for (threshold, so_far, requests, lost) in [
            // The 99th percentile of 1,000 requests leaves out the slowest 10.
            ("p99>5ms", slow(10), Some(1000), false),
            ("p99>5ms", slow(11), Some(1000), true),
            ("p50>5ms", slow(500), Some(1000), false),
            ("p50>5ms", slow(501), Some(1000), true),
            ("p99.9>5ms", slow(2), Some(1000), true),
            ("p99<5ms", slow(1000), Some(1000), false),
            ("max>5ms", slow(1), None, true),
            ("max>=9ms", vec![8000], None, false),
            ("mean>5us", vec![5000], Some(1000), false),
            ("mean>5us", vec![5100], Some(1000), true),
            ("mean!=5us", vec![5100], Some(1000), true),
            // The final number of requests is unknown.
            ("p99>5ms", slow(1000), None, false),
            ("mean>5us", slow(1000), None, false),
            // A count may grow, but it never shrinks.
            ("refused>2", vec![1; 2], None, false),
            ("refused>2", vec![1; 3], None, true),
            ("timeouts>=3", vec![1; 3], None, true),
            ("unknown!=2", vec![1; 2], None, false),
            ("unknown!=2", vec![1; 3], None, true),
            ("malformed==3", vec![1; 3], None, false),
            ("reconnects<3", vec![1; 2], None, false),
            // 1,000 events take 2 s or more.
            ("rps<501", vec![], Some(1000), true),
            ("rps<500", vec![], Some(1000), false),
            ("acked_per_s<=500", vec![], Some(1000), true),
            ("rps<501", vec![], None, false),
            ("rps>1", vec![], Some(1000), false),
            // These figures are known only at the end.
            ("unsent>0", slow(9), Some(1000), false),
            ("verdict!=exact", slow(9), Some(1000), false),
            ("client_cpu_us>0", slow(9), Some(1000), false),
        ] {
            assert_eq!(is_lost(threshold, &so_far, requests), lost, "{threshold}, {requests:?}");
        }
    }

    /// A threshold that was reported as lost fails, no matter how the run continues or at what point it is cut off.
    #[test]
    fn what_is_lost_fails_whatever_follows() {
        let mut random = fastrand::Rng::with_seed(41);
        let mut found = 0;
        for _ in 0..3000 {
            let requests = random.u64(1..300);
            let sent = random.u64(0..=requests);
            let mut micros = |count: u64| -> Vec<u64> {
                let slow = random.u64(1..10);
                (0..count)
                    .map(|_| random.u64(1..100) * if random.u64(0..10) < slow { 100 } else { 1 })
                    .collect()
            };
            let so_far = micros(sent);
            let end = micros(requests - sent);
            let figure = ["p50", "p90", "p99", "max", "mean"][random.usize(0..5)];
            let limit = random.u64(1..10_000);
            let threshold = format!("{figure}>{limit}us");
            if !is_lost(&threshold, &so_far, Some(requests)) {
                continue;
            }
            found += 1;
            let cut = random.usize(0..=end.len());
            let mut latency = Latencies::new();
            so_far.iter().chain(&end[..cut]).for_each(|micros| latency.record(micros * 1000));
            let value = match figure {
                "mean" => latency.mean(),
                "max" => latency.max(),
                percentile => latency.quantile(percentile[1..].parse::<f64>().unwrap() / 100.0),
            };
            assert!(value.unwrap().micros > limit as f64, "{threshold}: {value:?}");
        }
        assert!(found > 300, "{found} were lost");
    }
}
