//! Simulations by seed. A failing seed is printed: `RINGTALLY_SEED=n` replays it, `RINGTALLY_SEEDS=n` tries the first n seeds,
//! `RINGTALLY_SEEDS=m..n` tries the seeds from m up to n, without n, and `RINGTALLY_SEEDS=nx` tries n times as many seeds as
//! each simulation does by default.

use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

/// Returns the seeds that the environment names, or else the first `seeds`.
fn chosen(seeds: u64) -> Range<u64> {
    let number = |text: &str| text.parse::<u64>().unwrap();
    let value = |name| std::env::var(name).ok();
    match (value("RINGTALLY_SEED"), value("RINGTALLY_SEEDS")) {
        (Some(seed), _) => number(&seed)..number(&seed) + 1,
        (None, Some(text)) => match (text.split_once(".."), text.strip_suffix('x')) {
            (Some((first, end)), _) => number(first)..number(end),
            (None, Some(times)) => 0..seeds * number(times),
            (None, None) => 0..number(&text),
        },
        (None, None) => 0..seeds,
    }
}

/// Runs a simulation with the seeds that the environment names, or else with the first `seeds`.
pub fn for_each_seed(seeds: u64, mut simulate: impl FnMut(u64)) {
    let chosen = chosen(seeds);
    println!("seeds {chosen:?}");
    for seed in chosen {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| simulate(seed))) {
            eprintln!("replay with RINGTALLY_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// Returns whether any of the first seeds detects what a simulation breaks.
pub fn is_found_out(seeds: u64, simulate: impl Fn(u64)) -> bool {
    (0..seeds).any(|seed| panics(|| simulate(seed)))
}

/// Returns whether something panics. The panic is expected, so nothing is printed about it.
pub fn panics(run: impl FnOnce()) -> bool {
    thread_local! {
        static IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
    }
    static HOOKED: Once = Once::new();
    // The hook applies to the whole process, and other tests run in it at the same time.
    HOOKED.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_EXPECTED.get() {
                usual(panic);
            }
        }));
    });
    IS_EXPECTED.set(true);
    let has_panicked = catch_unwind(AssertUnwindSafe(run)).is_err();
    IS_EXPECTED.set(false);
    has_panicked
}
