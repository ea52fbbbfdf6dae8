//! Measures the load on the client itself and decides whether it limited a run.

use super::placement::Rivals;
use procfs::process::Process;
use rustix::thread::gettid;
use std::time::Duration;

/// A thread that computes for at least this share of its time limits the run.
const BUSY_MAX: f64 = 0.9;
/// A thread that is ready but waits for a CPU, or is stopped, for at least this share of its time limits the run.
const WAITING_MAX: f64 = 0.1;
/// In a run that is shorter than this, a long wait may be an accident of scheduling.
const WAITING_FROM: Duration = Duration::from_millis(100);
/// The client's CPUs limit the run if they are busy for at least the first share of the time and the client needs a CPU
/// for at least the second share.
const CPUS_BUSY_MAX: f64 = 0.97;
const WANTED_MIN: f64 = 0.5;
/// The client of an open loop was too slow if its lag at the 99th percentile was at least this long.
const LAG_US_MAX: f64 = 1000.0;

/// The time that a thread has spent since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ThreadTime {
    /// Time on a CPU.
    pub(super) cpu: Duration,
    /// Time when the thread was ready but had to wait for a CPU.
    pub(super) waiting: Duration,
}

impl ThreadTime {
    /// Returns the time of the calling thread. The waiting time is zero if the kernel does not count it.
    pub(super) fn now() -> ThreadTime {
        let schedstat = Process::myself()
            .and_then(|process| process.task_from_tid(gettid().as_raw_nonzero().get()))
            .and_then(|thread| thread.schedstat());
        let waiting_ns = schedstat.map_or(0, |schedstat| schedstat.run_delay);
        ThreadTime { cpu: thread_cpu(), waiting: Duration::from_nanos(waiting_ns) }
    }

    pub(super) fn since(self, before: ThreadTime) -> ThreadTime {
        ThreadTime {
            cpu: self.cpu.saturating_sub(before.cpu),
            waiting: self.waiting.saturating_sub(before.waiting),
        }
    }
}

/// Returns the CPU time that the calling thread has used.
pub(super) fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    // A clock that counts from zero is never negative.
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

/// The load on the client in a run, as shares of the length of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ClientLoad {
    /// The length of the run.
    pub(super) elapsed: Duration,
    /// The time that the busiest thread was on a CPU, polling excluded.
    pub(super) busy: f64,
    /// The time that the most delayed thread waited for a CPU.
    pub(super) waiting: f64,
    /// The time that the client's CPUs handled network packets, which may all have been the client's.
    pub(super) softirq: f64,
    /// The time that a thread wanted to run but did not, in long stretches.
    pub(super) suspended: f64,
    /// Other work that may have run on the client's CPUs.
    pub(super) rivals: Rivals,
    /// The use of the CPUs that the threads may run on, by any process, with the client's polling excluded.
    pub(super) cpus_busy: Option<f64>,
    /// The lag of the threads of an open loop at the 99th percentile, in microseconds.
    pub(super) lag_p99_us: Option<f64>,
}

impl ClientLoad {
    /// Returns the share of the time that the client needed a CPU. Other work on CPUs that the client leaves idle does
    /// not limit the client.
    fn wanted(&self) -> f64 {
        self.busy + self.waiting + self.softirq
    }

    /// Returns the reasons why the client limited the run; empty if it did not.
    pub(super) fn limits(&self) -> Vec<String> {
        let percent = |share: f64| share * 100.0;
        let mut limits = Vec::new();
        if self.busy >= BUSY_MAX {
            limits.push(format!("a client thread was {:.0}% busy", percent(self.busy)));
        }
        if self.waiting >= WAITING_MAX && self.elapsed >= WAITING_FROM {
            limits.push(format!(
                "a client thread waited for a CPU {:.0}% of the time, because {} ran on it",
                percent(self.waiting),
                self.rivals.in_words()
            ));
        }
        if self.suspended >= WAITING_MAX {
            limits.push(format!(
                "the client did not run for {:.0}% of the time",
                percent(self.suspended)
            ));
        }
        let is_wanted = self.wanted() >= WANTED_MIN;
        if let Some(busy) = self.cpus_busy.filter(|busy| is_wanted && *busy >= CPUS_BUSY_MAX) {
            let shared = match self.rivals {
                Rivals::Server => ", which the server shares,",
                Rivals::Others | Rivals::Unknown => "",
            };
            limits.push(format!("the client's CPUs{shared} were {:.0}% busy", percent(busy)));
        }
        if let Some(lag_us) = self.lag_p99_us.filter(|lag_us| *lag_us >= LAG_US_MAX) {
            limits.push(format!("the client sent late by {:.1} ms at p99", lag_us / 1e3));
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_limit_from_each_edge_on() {
        assert_eq!(ClientLoad::default().limits(), Vec::<String>::new());
        let below = ClientLoad {
            elapsed: WAITING_FROM,
            busy: 0.89,
            waiting: 0.09,
            softirq: 0.0,
            suspended: 0.09,
            rivals: Rivals::Others,
            cpus_busy: Some(0.96),
            lag_p99_us: Some(999.0),
        };
        assert_eq!(below.limits(), Vec::<String>::new());
        for (at, says) in [
            (ClientLoad { busy: 0.9, ..below }, "90% busy"),
            (ClientLoad { waiting: 0.1, ..below }, "waited for a CPU 10%"),
            (ClientLoad { suspended: 0.1, ..below }, "did not run for 10%"),
            (ClientLoad { cpus_busy: Some(0.97), ..below }, "CPUs were 97% busy"),
            (ClientLoad { lag_p99_us: Some(1000.0), ..below }, "late by 1.0 ms"),
        ] {
            let limits = at.limits();
            assert!(limits.len() == 1 && limits[0].contains(says), "{limits:?}");
        }
    }

    /// If a client is mostly idle, other work may use all of its CPUs.
    #[test]
    fn busy_cpus_limit_only_a_client_that_wants_them() {
        let idle = ClientLoad {
            elapsed: Duration::from_secs(9),
            busy: 0.2,
            waiting: 0.09,
            cpus_busy: Some(1.0),
            ..ClientLoad::default()
        };
        assert_eq!(idle.limits(), Vec::<String>::new());
        for wants in [ClientLoad { busy: 0.41, ..idle }, ClientLoad { softirq: 0.21, ..idle }] {
            assert!(wants.limits()[0].contains("CPUs were 100% busy"), "{wants:?}");
            let shared = ClientLoad { rivals: Rivals::Server, ..wants };
            assert!(shared.limits()[0].contains("the server shares"), "{shared:?}");
        }
    }

    #[test]
    fn what_else_ran_on_the_clients_cpus_is_named() {
        for (rivals, says) in [
            (Rivals::Others, "because other work ran on it"),
            (Rivals::Server, "because the server, which shares it, or other work ran on it"),
            (Rivals::Unknown, "because other work, perhaps the server, ran on it"),
        ] {
            let waiting =
                ClientLoad { elapsed: WAITING_FROM, waiting: 0.5, rivals, ..ClientLoad::default() };
            assert!(waiting.limits()[0].ends_with(says), "{:?}", waiting.limits());
        }
    }

    #[test]
    fn a_short_run_may_wait() {
        let elapsed = WAITING_FROM - Duration::from_nanos(1);
        let short = ClientLoad { elapsed, waiting: 1.0, ..ClientLoad::default() };
        assert_eq!(short.limits(), Vec::<String>::new());
    }

    /// A thread that runs uses its CPU, and a thread that sleeps neither uses it nor waits for it.
    #[test]
    fn the_time_of_a_thread_is_its_own() {
        let before = ThreadTime::now();
        while thread_cpu() - before.cpu < Duration::from_millis(20) {}
        let worked = ThreadTime::now();
        assert!(worked.since(before).cpu >= Duration::from_millis(20));
        std::thread::sleep(Duration::from_millis(100));
        let slept = ThreadTime::now().since(worked);
        assert!(slept.cpu < Duration::from_millis(50), "{slept:?}");
    }
}
