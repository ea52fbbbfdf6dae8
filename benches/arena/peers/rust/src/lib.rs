//! The code that the Rust peers share: the arguments, the event as serde reads it, totals as most users of these frameworks
//! would write them, with atomics and a concurrent set, and HTTP for the peers that are only a runtime.

#[cfg(feature = "exchange")]
mod exchange;
#[cfg(feature = "tally")]
mod tally;

#[cfg(feature = "exchange")]
pub use exchange::{Exchange, RECEIVE_BYTES};
#[cfg(feature = "tally")]
pub use tally::{Event, HEALTHY, RESET, Tally, stats};

/// Returns the port and the number of threads, from `NAME PORT THREADS`.
pub fn arguments() -> (u16, usize) {
    let numbers: Vec<usize> = std::env::args().skip(1).flat_map(|text| text.parse()).collect();
    match numbers[..] {
        [port, threads] if port <= usize::from(u16::MAX) && threads > 0 => (port as u16, threads),
        _ => {
            eprintln!("usage: NAME PORT THREADS");
            std::process::exit(2);
        }
    }
}

/// Serves the port of the arguments on each of their threads, with one tally for all of them.
#[cfg(feature = "exchange")]
pub fn on_each_thread(serve: fn(u16, std::sync::Arc<Tally>)) {
    let (port, threads) = arguments();
    let tally = std::sync::Arc::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let tally = tally.clone();
            scope.spawn(move || serve(port, tally));
        }
    });
}
