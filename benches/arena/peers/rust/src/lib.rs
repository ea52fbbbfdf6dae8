//! What the Rust peers share: the arguments, the event as serde reads it, and totals as most users
//! of these frameworks would write them, with atomics and a concurrent set.

#[cfg(feature = "tally")]
mod tally;

#[cfg(feature = "tally")]
pub use tally::{Event, HEALTHY, RESET, Tally, stats};

/// The port and the number of threads, from `NAME PORT THREADS`.
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
