//! The verdict of `benches/paired` on synthetic ratios whose true value is known, and its reports. Its source is included here
//! and tested on simulated machines, which are noisy, drift, and are disturbed from time to time.

#[allow(dead_code, reason = "the bench uses the rest of it")]
#[path = "../../../benches/paired"]
mod bench {
    pub(super) mod blocks;
    pub(super) mod counts;
    pub(super) mod options;
    pub(super) mod report;
    pub(super) mod server;
    pub(super) mod verdict;
}

use crate::world::seeds::for_each_seed;
use crate::world::{Directory, schema};
use bench::blocks::{Block, Leg};
use bench::options::Options;
use bench::report::{Comparison, Report};
use bench::server::Places;
use bench::verdict::{Evidence, FLOOR_BLOCKS_MIN, HEAD_BLOCKS_MIN, Pair, Verdict, log_ratio};
use clap::Parser;
use ringtally::compare::Counted;
use ringtally::failure::Failure;
use ringtally::load::export;
use ringtally::statistics::{Interval, median};
use serde_json::{Value, json};

/// A simulated machine that adds noise to the cost of each leg.
struct Machine {
    random: fastrand::Rng,
    /// The relative standard deviation of a leg.
    noise: f64,
    /// The relative growth of every cost from one leg to the next.
    drift: f64,
    /// The share of legs that something else on the machine makes 50% more expensive.
    disturbed: f64,
    legs: usize,
}

impl Machine {
    fn quiet(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Machine { random, noise: 0.015, drift: 0.0, disturbed: 0.0, legs: 0 }
    }

    /// Returns an approximately normal value with a standard deviation of one: the sum of twelve uniform values.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.random.f64()).sum::<f64>() - 6.0
    }

    fn leg(&mut self, cost: f64) -> f64 {
        self.legs += 1;
        let disturbed = if self.random.f64() < self.disturbed { 1.5 } else { 1.0 };
        let drifted = 1.0 + self.drift * self.legs as f64;
        cost * drifted * disturbed * (1.0 + self.noise * self.normal())
    }

    /// Returns the log ratio of a block for a server that costs `times` as much as the base.
    fn block(&mut self, times: f64) -> f64 {
        log_ratio([1.0, times, times, 1.0].map(|cost| self.leg(cost)))
    }

    /// Compares until there is a verdict, or for `blocks_max` blocks of head and base.
    fn compare(&mut self, times: f64, blocks_max: usize) -> Verdict {
        let mut evidence = Evidence::default();
        while evidence.head.len() < blocks_max {
            let pair = evidence.next();
            let block = self.block(if pair == Pair::Head { times } else { 1.0 });
            evidence.add(pair, block);
            let verdict = evidence.verdict(1);
            if verdict != Verdict::Inconclusive {
                return verdict;
            }
        }
        Verdict::Inconclusive
    }
}

/// Returns the verdicts of `tries` comparisons with different seeds.
fn verdicts(tries: u64, compare: impl Fn(u64) -> Verdict) -> Vec<Verdict> {
    (0..tries).map(compare).collect()
}

fn count(verdicts: &[Verdict], wanted: Verdict) -> usize {
    verdicts.iter().filter(|verdict| **verdict == wanted).count()
}

#[test]
fn the_interval_contains_the_truth_19_times_in_20() {
    for blocks in [HEAD_BLOCKS_MIN, 25] {
        let holds = (0..400).filter(|seed| {
            let mut machine = Machine::quiet(*seed);
            let ratios: Vec<f64> = (0..blocks).map(|_| machine.block(1.05)).collect();
            let interval = Interval::of(&ratios, *seed).expect("there are ratios");
            interval.low <= 1.05_f64.ln() && 1.05_f64.ln() <= interval.high
        });
        let share = holds.count() as f64 / 400.0;
        assert!((0.92..=0.985).contains(&share), "{share} with {blocks} blocks");
    }
}

#[test]
fn the_interval_narrows_with_more_blocks_and_contains_the_median() {
    let mut machine = Machine::quiet(7);
    let ratios: Vec<f64> = (0..160).map(|_| machine.block(1.0)).collect();
    let [few, many] = [10, 160].map(|blocks| Interval::of(&ratios[..blocks], 1).expect("ratios"));
    assert!(many.half_width() < few.half_width() / 2.0);
    for interval in [few, many] {
        assert!(interval.low <= interval.median && interval.median <= interval.high);
    }
    assert_eq!(Interval::of(&[], 1), None);
}

#[test]
fn the_order_of_blocks_does_not_matter() {
    let mut machine = Machine::quiet(3);
    let mut ratios: Vec<f64> = (0..31).map(|_| machine.block(1.02)).collect();
    let interval = Interval::of(&ratios, 9);
    for seed in 0..20 {
        fastrand::Rng::with_seed(seed).shuffle(&mut ratios);
        assert_eq!(Interval::of(&ratios, 9), interval);
    }
}

#[test]
fn a_median_is_the_middle_or_between_the_two_in_the_middle() {
    assert_eq!(median(&mut []), None);
    assert_eq!(median(&mut [3.0]), Some(3.0));
    assert_eq!(median(&mut [9.0, 1.0]), Some(5.0));
    assert_eq!(median(&mut [9.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&mut [9.0, 4.0, 1.0, 2.0]), Some(3.0));
}

#[test]
fn even_drift_within_a_block_cancels() {
    assert!(log_ratio([1.00, 1.05, 1.10, 1.15]).abs() < 1e-12);
    assert!(log_ratio([8.0, 4.0, 4.0, 8.0]) + 2.0_f64.ln() < 1e-12);
}

#[test]
fn no_change_on_a_drifting_and_disturbed_machine_is_no_change() {
    // 15% over the 60 legs of the shortest comparison, and every twentieth leg disturbed.
    let machine = |seed| Machine { drift: 0.15 / 60.0, disturbed: 0.05, ..Machine::quiet(seed) };
    for_each_seed(100, |seed| {
        let verdict = machine(seed).compare(1.0, 14);
        assert!(matches!(verdict, Verdict::Same | Verdict::Inconclusive), "{verdict:?}");
    });
    let many = verdicts(40, |seed| machine(seed).compare(1.0, 40));
    assert!(count(&many, Verdict::Same) >= 36, "{}", count(&many, Verdict::Same));
}

#[test]
fn a_change_of_five_percent_is_found_in_both_directions() {
    for (times, wanted) in [(1.05, Verdict::Slower), (0.95, Verdict::Faster)] {
        let verdicts = verdicts(100, |seed| Machine::quiet(seed).compare(times, 40));
        assert!(count(&verdicts, wanted) >= 97, "{}", count(&verdicts, wanted));
        assert_eq!(count(&verdicts, Verdict::Same), 0);
    }
}

#[test]
fn a_change_at_the_limit_is_rarely_called_either_way() {
    let verdicts = verdicts(60, |seed| Machine::quiet(seed).compare(1.03, 25));
    for decided in [Verdict::Slower, Verdict::Same, Verdict::Faster] {
        assert!(count(&verdicts, decided) <= 10, "{}", count(&verdicts, decided));
    }
}

#[test]
fn too_few_blocks_are_inconclusive() {
    let head = vec![0.5; HEAD_BLOCKS_MIN];
    let floor = vec![0.0; FLOOR_BLOCKS_MIN];
    let verdict = |head: &[f64], floor: &[f64]| {
        Evidence { head: head.to_vec(), floor: floor.to_vec() }.verdict(1)
    };
    assert_eq!(verdict(&head, &floor), Verdict::Slower);
    assert_eq!(verdict(&head[1..], &floor), Verdict::Inconclusive);
    assert_eq!(verdict(&head, &floor[1..]), Verdict::Inconclusive);
    assert_eq!(verdict(&[], &[]), Verdict::Inconclusive);
}

#[test]
fn a_wide_interval_is_inconclusive_wherever_its_center_is() {
    let scattered = |center: f64| -> Vec<f64> {
        (0..20).map(|block| center + 0.01 * (f64::from(block) - 9.5)).collect()
    };
    for center in [-0.5, 0.0, 0.5] {
        let evidence = Evidence { head: scattered(center), floor: vec![0.0; 10] };
        assert_eq!(evidence.verdict(1), Verdict::Inconclusive, "{center}");
    }
}

#[test]
fn nothing_is_decided_below_the_noise_floor() {
    let verdict = |change: f64, floor: f64| {
        Evidence { head: vec![change; 20], floor: vec![floor; 10] }.verdict(1)
    };
    assert_eq!(verdict(0.05, 0.0), Verdict::Slower);
    assert_eq!(verdict(0.05, 0.06), Verdict::Inconclusive);
    assert_eq!(verdict(0.05, -0.06), Verdict::Inconclusive);
    assert_eq!(verdict(-0.05, 0.06), Verdict::Inconclusive);
    assert_eq!(verdict(0.0, 0.06), Verdict::Inconclusive);
    assert_eq!(verdict(0.0, 0.01), Verdict::Same);
    assert_eq!(verdict(-0.07, 0.06), Verdict::Faster);
}

#[test]
fn blocks_of_the_base_against_itself_are_spread_between_the_others() {
    let mut evidence = Evidence::default();
    for _ in 0..30 {
        let pair = evidence.next();
        evidence.add(pair, 0.0);
        assert!(evidence.floor.len() * 2 <= evidence.head.len() + 1);
        assert!(evidence.head.len() <= evidence.floor.len() * 2 + 1);
    }
}

#[test]
fn each_verdict_has_its_word_and_only_faster_and_same_pass() {
    let verdicts = [Verdict::Faster, Verdict::Same, Verdict::Slower, Verdict::Inconclusive];
    assert_eq!(verdicts.map(Verdict::word), ["faster", "same", "slower", "inconclusive"]);
    assert_eq!(verdicts.map(Verdict::exit_code), [0, 0, 1, 4]);
}

/// Returns a comparison whose head costs `times` as much as its base.
fn compared(times: f64) -> Comparison {
    let places = Places { server_cpus: "0".into(), client_cpus: "1".into() };
    let leg = |cpu| Leg { cpu, requests_per_s: 1e6 / cpu, p99_us: 90.0, client_limited: true };
    let block = |times| Block([1.0, times, times, 1.0].map(leg));
    let mut comparison = Comparison::new(places);
    comparison.head = (0..HEAD_BLOCKS_MIN).map(|_| block(times)).collect();
    comparison.floor = (0..FLOOR_BLOCKS_MIN).map(|_| block(1.0)).collect();
    let ratios = |blocks: &[Block]| blocks.iter().map(|of| of.log_ratio(|leg| leg.cpu)).collect();
    let evidence = Evidence { head: ratios(&comparison.head), floor: ratios(&comparison.floor) };
    comparison.verdict = evidence.verdict(1);
    comparison
}

/// Returns the output of the instruction bench for these cases.
fn counts(cases: &[(&str, u64)]) -> String {
    let line = |(id, count): &(&str, u64)| {
        let data = json!({"total": {"metrics": {"Ir": {"values": {"new": count}}}}});
        let profiles = json!([{ "data": data }]);
        format!("{}\n", json!({"function_name": "answer", "id": id, "profiles": profiles}))
    };
    cases.iter().map(line).collect()
}

#[test]
fn counts_that_cannot_be_read_are_an_error_and_none_in_common_are_not_compared() {
    let directory = Directory::new("counts");
    let [base, head] = ["base", "head"].map(|name| directory.file(name));
    let compare = || bench::counts::compare(base.as_ref(), head.as_ref(), Some("a note"));
    let missing = compare().unwrap_err().to_string();
    assert!(missing.starts_with(&format!("cannot read {base}: No such file")), "{missing}");
    std::fs::write(&base, counts(&[("old", 7)])).unwrap();
    for text in ["no JSON", "{}", &counts(&[("old", 7)]).replace("Ir", "Dr")] {
        std::fs::write(&head, text).unwrap();
        let failure = compare().unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.to_string().ends_with("is not the output of the instruction bench"));
    }
    std::fs::write(&head, counts(&[("new", 7)])).unwrap();
    let compared = compare().unwrap();
    assert_eq!(compared.verdict, Counted::NotCompared);
    assert_eq!(compared.reason, "more than 1% more fails; a note");
}

#[test]
fn a_comparison_is_reported_in_every_form() {
    let no_server = || Err(Failure::Environment("no server".into()));
    for (outcome, counted, code, word, failures) in [
        (Ok(compared(1.0)), Some(10_100), 0, "not slower", 0),
        (Ok(compared(1.0)), Some(10_101), 1, "FAILED", 1),
        (Ok(compared(1.1)), Some(9_000), 1, "FAILED", 1),
        (Ok(compared(1.1)), None, 1, "FAILED", 1),
        (Ok(compared(1.03)), None, 4, "inconclusive", 1),
        (no_server(), Some(10_100), 3, "could not be measured", 1),
        (no_server(), Some(10_101), 1, "FAILED", 2),
    ] {
        let directory = Directory::new("paired");
        let file = |name: &str| directory.file(name);
        let [junit, bmf] = ["junit", "bmf"].map(|form| format!("{form}={}", file(form)));
        let mut words = vec!["paired".into(), "--base-name=abc".into(), "--head=/server".into()];
        words.extend([format!("--export={junit}"), format!("--export={bmf}")]);
        match counted {
            Some(head) => {
                std::fs::write(file("base.counts"), counts(&[("old", 7), ("one", 10_000)]))
                    .unwrap();
                std::fs::write(file("head.counts"), counts(&[("one", head), ("new", 7)])).unwrap();
                words.extend(["--counts".into(), file("base.counts"), file("head.counts")]);
            }
            None => words.push("--not-counted=no valgrind".into()),
        }
        let options = Options::parse_from(words);
        let instructions = options.instructions().unwrap();
        let report = Report { options: &options, instructions, outcome };
        export(&options.export, || Ok(((), report.findings()))).unwrap();
        let json: Value = serde_json::from_str(&report.record().json()).unwrap();
        assert_eq!(schema::check(&json), Ok(()));
        assert_eq!((&json["base"], &json["head"]), (&"abc".into(), &"/server".into()));
        assert_eq!((report.exit_code(), &json["exit_code"]), (code, &code.into()));
        let markdown = report.markdown();
        let mut told =
            vec![format!("## Performance: {word}\n"), "Head `/server`, base `abc`.".into()];
        match counted {
            Some(head) => {
                let counts = json["instructions"]["counts"].as_array().unwrap();
                let names: Vec<_> = counts.iter().map(|of| of["name"].as_str().unwrap()).collect();
                assert_eq!(names, ["answer/old", "answer/one", "answer/new"]);
                let percent = (head as f64 / 10_000.0 - 1.0) * 100.0;
                told.push(format!("| answer/one | 10000 | {head} | {percent:+.2}% |"));
                told.push("| answer/new | none | 7 | not compared |".into());
            }
            None => told.push("### Instructions: SKIPPED (no valgrind)".into()),
        }
        assert!(told.iter().all(|line| markdown.contains(line)), "{markdown}");
        let [junit, bmf] =
            ["junit", "bmf"].map(|form| std::fs::read_to_string(file(form)).unwrap());
        assert!(junit.contains(&format!("failures=\"{failures}\"")), "{junit}");
        let bmf: Value = serde_json::from_str(&bmf).unwrap();
        let Ok(comparison) = &report.outcome else {
            assert!(
                json["paired"].is_null() && markdown.contains("error: no server"),
                "{markdown}"
            );
            continue;
        };
        let paired = &json["paired"];
        assert_eq!(paired["verdict"], comparison.verdict.word());
        let cpu = &paired["figures"]["server_cpu_s_per_million_events"];
        assert_eq!(cpu["head"], bmf["ci/perf"]["server-cpu-us"]["value"]);
        let ratio = cpu["head_to_base"]["ratio"].as_f64().unwrap();
        assert!((ratio - cpu["head"].as_f64().unwrap()).abs() < 1e-9, "{paired}");
        assert_eq!(cpu["base_to_itself"]["ratio"], 1.0);
    }
}
