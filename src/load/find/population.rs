//! A population of simulated servers with a known capacity: queues with 1 to 1,000 places that make requests wait for
//! their turn. Such a server does not get slow before it is full, so only the backlog reveals that it is full.

use super::search::{Search, Window};
use super::{LatencyLimit, Windows};
use crate::load::flow::{Flow, SAMPLES};
use crate::load::latency::Latencies;
use crate::load::report::Latency;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// The number of times that each server is tried, each time with different random numbers. 20 were tried once.
const SEEDS: u64 = 3;

/// The distribution of the time that a place takes for a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Service {
    Constant,
    Exponential,
}

/// A server that gets requests evenly, as from an open loop.
#[derive(Clone, Debug)]
struct Queue {
    places: usize,
    /// The number of requests that may wait; any further request is refused.
    room: usize,
    /// Requests per second.
    capacity: f64,
    service: Service,
    random: fastrand::Rng,
}

impl Queue {
    fn service_s(&mut self) -> f64 {
        let mean = self.places as f64 / self.capacity;
        match self.service {
            Service::Constant => mean,
            Service::Exponential => -mean * (1.0 - self.random.f64()).ln(),
        }
    }

    /// Returns the result of a window at a rate. The window begins with an empty server and ends when every request
    /// is completed.
    fn window(&mut self, rate: u64, window_s: f64, limit_s: f64) -> Window {
        let rate = rate as f64;
        #[allow(clippy::cast_possible_truncation, reason = "a window is short")]
        let requests = (rate * window_s).round() as usize;
        #[allow(clippy::cast_possible_truncation, reason = "a window is short")]
        let ns = |at_s: f64| (at_s * 1e9) as u64;
        // The times when places become free, when waiting requests start, and when requests end.
        let mut free: BinaryHeap<Reverse<u64>> = (0..self.places).map(|_| Reverse(0)).collect();
        let mut starts: VecDeque<u64> = VecDeque::new();
        let (mut ends, mut latencies) = (Vec::new(), Latencies::new());
        let mut refused = 0;
        for request in 0..requests {
            let due = ns(request as f64 / rate);
            while starts.front().is_some_and(|start| *start <= due) {
                starts.pop_front();
            }
            if starts.len() >= self.room {
                refused += 1;
                continue;
            }
            let Reverse(place) = free.pop().unwrap();
            let start = place.max(due);
            let end = start + ns(self.service_s());
            free.push(Reverse(end));
            starts.push_back(start);
            ends.push(end);
            latencies.record(end - due);
        }
        ends.sort_unstable();
        let sample = |index: u32| {
            let at_s = f64::from(index) * window_s / f64::from(SAMPLES);
            (at_s, ends.partition_point(|end| *end <= ns(at_s)) as u64)
        };
        let growth = Flow::of((0..=SAMPLES).map(sample).collect()).growth(rate, window_s, limit_s);
        let p99_s = latencies.quantile(0.99).unwrap().micros / 1e6;
        Window {
            holds: refused == 0 && p99_s < limit_s && Flow::why_not(growth).is_none(),
            why_not: None,
            growth,
            requests_per_s: 0.0,
            is_client_limited: false,
            latency: Latency::of(&Latencies::new()),
            measured: Vec::new(),
        }
    }
}

/// Returns the rate that is found for a server, and the number of windows that it took.
fn found(queue: &mut Queue, limit_s: f64) -> (u64, usize) {
    let limit: LatencyLimit = format!("p99<{limit_s}s").parse().unwrap();
    let windows = Windows::new(&limit, None, None, None).unwrap();
    let mut search = Search::new(1000, windows.least_rate());
    let mut count = 0;
    while let Some(rate) = search.next() {
        let window = queue.window(rate, windows.length(rate).as_secs_f64(), limit_s);
        search.add(rate, window);
        count += 1;
    }
    assert!(search.is_settled());
    (search.holds_at().unwrap_or(0), count)
}

/// The limit for each server is far above the time that a request takes while the server keeps up.
#[test]
fn the_capacity_of_queues_is_found_within_5_percent_and_not_exceeded() {
    let (mut above, mut below, mut all, mut windows) = (Vec::new(), Vec::new(), 0, 0);
    for seed in 0..SEEDS {
        for places in [1, 2, 10, 100, 1000] {
            for service in [Service::Constant, Service::Exponential] {
                for (capacity, room) in [(500.0, 5_000), (500.0, 40), (3000.0, 1_000_000)] {
                    let random = fastrand::Rng::with_seed(seed);
                    let mut queue = Queue { places, room, capacity, service, random };
                    let limit_s = 0.5 + 5.0 * places as f64 / capacity;
                    let (rate, count) = found(&mut queue, limit_s);
                    let ratio = rate as f64 / capacity;
                    let shown = format!("{ratio:.4} with {queue:?}");
                    all += 1;
                    windows += count;
                    // At more than 1% above its capacity, a server would not complete 99% of what is sent.
                    assert!(ratio < 1.02, "{shown}");
                    if ratio > 1.002 {
                        above.push(shown.clone());
                    }
                    if ratio < 0.95 {
                        below.push(shown);
                    }
                }
            }
        }
    }
    eprintln!("{all} servers, {} windows each; above {above:#?}, below {below:#?}", windows / all);
    assert!(above.len() * 20 <= all, "{above:#?}");
    assert!(below.len() * 20 <= all, "{below:#?}");
}
