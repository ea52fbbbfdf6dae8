use super::*;
use fastrand::Rng;

/// Returns an amount in thousandths, often at an edge.
fn random_amount(random: &mut Rng, most: u64) -> Amount {
    Amount(match random.u8(0..6) {
        0 => 0,
        1 => most,
        2 => PER_ONE * random.u64(0..=most / PER_ONE),
        _ => random.u64(0..=most),
    })
}

/// Returns stages of at most `ns_most` nanoseconds each, with amounts up to `most`.
fn random_stages(random: &mut Rng, ns_most: u64, most: u64) -> Vec<(u64, Amount, Amount)> {
    (0..random.usize(1..6))
        .map(|_| {
            let from = random_amount(random, most);
            let to = if random.bool() { from } else { random_amount(random, most) };
            (random.u64(1..=ns_most), from, to)
        })
        .collect()
}

/// Returns the events up to each nanosecond, and the number of units in one event. The events are added up nanosecond
/// by nanosecond, each with the amount in its middle. To avoid fractions, the units are multiplied by the lengths of
/// all stages.
fn naive(stages: &[(u64, Amount, Amount)]) -> (Vec<u128>, u128) {
    let scale: u128 = stages.iter().map(|(lasts_ns, ..)| u128::from(*lasts_ns)).product();
    let (mut reached, mut sum) = (vec![0], 0);
    for &(lasts_ns, Amount(from), Amount(to)) in stages {
        let lasts = i128::from(lasts_ns);
        for ns in 0..lasts {
            // This is twice the amount at `ns + 1/2`, multiplied by the length of the stage.
            let twice =
                2 * i128::from(from) * lasts + (i128::from(to) - i128::from(from)) * (2 * ns + 1);
            sum += u128::try_from(twice).unwrap() * (scale / u128::from(lasts_ns));
            reached.push(sum);
        }
    }
    (reached, EVENT * scale)
}

/// Compares with a list of all due times: the nanosecond of each event, and the number of events due before each
/// nanosecond.
#[test]
fn due_times_are_those_of_a_list_of_all() {
    let mut random = Rng::with_seed(17);
    let mut listed = 0;
    for _ in 0..5000 {
        // The rate is up to one event per nanosecond.
        let scale = random.u32(0..6);
        let stages = random_stages(&mut random, 60, (RATE_MAX * PER_ONE) >> scale);
        let curve = Curve::new(stages.iter().copied());
        let (reached, event) = naive(&stages);
        let mut due: Vec<u64> = Vec::new();
        for (ns, reached) in (0..).zip(&reached) {
            // Event i is due in the last nanosecond before which at most i events are due.
            let before = reached.div_ceil(event);
            while (due.len() as u128) < before {
                due.push(ns - 1);
            }
            assert_eq!(u128::from(curve.due_before(ns)), before, "{stages:?} at {ns}");
        }
        for (index, ns) in (0..).zip(&due) {
            assert_eq!(curve.due_ns(index), *ns, "{stages:?}, event {index}");
        }
        let all = due.len() as u64;
        assert_eq!(curve.due_before(u64::MAX), all, "nothing is due after the end: {stages:?}");
        assert!(
            reached.last().unwrap() > &(u128::from(all) * event) || curve.due_ns(all) == u64::MAX
        );
        listed += all;
    }
    assert!(listed > 50_000, "{listed} events were looked at");
}

/// With stages that last hours and rates of a billion, a list of all due times would be too long. Instead, both
/// directions must agree about the nanosecond of any event.
#[test]
fn both_directions_agree_at_any_scale() {
    let mut random = Rng::with_seed(18);
    for _ in 0..20_000 {
        let (ns_most, scale) = (1 << random.u32(1..47), random.u32(0..40));
        let stages = random_stages(&mut random, ns_most, (RATE_MAX * PER_ONE) >> scale);
        let curve = Curve::new(stages.iter().copied());
        let all = curve.due_before(u64::MAX);
        if all == 0 {
            continue;
        }
        let event = [0, all - 1, random.u64(0..all)][random.usize(0..3)];
        let ns = curve.due_ns(event);
        assert!(curve.due_before(ns) <= event, "{stages:?}, event {event} at {ns}");
        assert!(curve.due_before(ns + 1) > event, "{stages:?}, event {event} at {ns}");
        assert!(event == 0 || curve.due_ns(event - 1) <= ns, "{stages:?}, event {event}");
        assert!(ns < stages.iter().map(|(lasts_ns, ..)| lasts_ns).sum(), "{stages:?}");
    }
}

#[test]
fn due_times_are_the_published_ones() {
    let due = |profile: &str, events: [u64; 3]| {
        let profile: Profile = profile.parse().unwrap();
        let curve = profile.over(Duration::from_secs(10));
        events.map(|event| curve.due_ns(event) as f64 / 1e9)
    };
    assert_eq!(due("0.5", [0, 1, 7]), [0.0, 2.0, 14.0]);
    assert_eq!(due("1000", [0, 1, 1_000_000]), [0.0, 0.001, 1000.0]);
    // From 0 to 20 in 10 s: t² events by t.
    assert_eq!(due("0:20", [0, 25, 81]), [0.0, 5.0, 9.0]);
    // From 20 to 0 in 10 s: 100 - (10 - t)² events by t.
    assert_eq!(due("20:0", [0, 75, 99]), [0.0, 5.0, 9.0]);
    // Nothing is due in a pause: the next event is due at its end.
    assert_eq!(due("2s@1,3s@0,1s@10", [1, 2, 3]), [1.0, 5.0, 5.1]);
    assert_eq!(due("3s@0,1s@10", [0, 1, 2]), [3.0, 3.1, 3.2]);
}

#[test]
fn a_time_has_the_events_that_are_due_in_it() {
    for (profile, seconds, events) in [
        ("0.5", 1, 1),
        ("0.5", 10, 5),
        ("3", 1, 3),
        ("1000:20000", 10, 105_000),
        ("0:1", 1, 1),
        ("10s@1000,30s@5000:20000,5s@0", 45, 10_000 + 375_000),
        ("1s@0", 1, 0),
    ] {
        let profile: Profile = profile.parse().unwrap();
        assert_eq!(profile.events_in(Duration::from_secs(seconds)), events, "{profile}");
    }
    let stages: Profile = "10s@1000,30s@5000:20000,5s@0".parse().unwrap();
    assert_eq!(stages.lasts(), Some(Duration::from_secs(45)));
}

#[test]
fn a_ramp_without_a_time_takes_as_long_as_its_events_need() {
    let mut random = Rng::with_seed(19);
    for _ in 0..1000 {
        let rate = |random: &mut Rng| random_amount(random, RATE_MAX * PER_ONE);
        let ramp = Profile::Ramp(rate(&mut random), Amount(1 + random.u64(0..RATE_MAX)));
        let most = 1 << random.u32(1..43);
        let events = random.u64(1..most);
        let Some(lasts) = ramp.ramp_for(events) else { continue };
        let found = ramp.events_in(lasts);
        // The last event may be due in the last nanosecond.
        assert!(found >= events, "{ramp}, {events}: {found}");
        assert!(ramp.over(lasts).due_ns(events - 1) < nanos(lasts), "{ramp}, {events}");
    }
    assert_eq!("1:2".parse::<Profile>().unwrap().ramp_for(u64::MAX), None);
    assert_eq!("5".parse::<Profile>().unwrap().ramp_for(5), None);
}

#[test]
fn the_most_connections_between_two_times_include_every_peak() {
    let mut random = Rng::with_seed(20);
    for _ in 0..2000 {
        let stages = random_stages(&mut random, 30, 50 * PER_ONE);
        let curve = Curve::new(stages.iter().copied());
        let lasts: u64 = stages.iter().map(|(lasts_ns, ..)| lasts_ns).sum();
        let from = random.u64(0..lasts + 5);
        let to = from + random.u64(0..20);
        // Check each nanosecond, and both sides of each jump.
        let mut most = 0;
        let mut starts = 0;
        for (index, &(lasts_ns, Amount(first), Amount(last))) in stages.iter().enumerate() {
            let is_last = index + 1 == stages.len();
            for ns in 0..=if is_last { lasts_ns + 100 } else { lasts_ns } {
                if (from..=to).contains(&(starts + ns)) {
                    let ns = ns.min(lasts_ns);
                    let amount = (first * (lasts_ns - ns) + last * ns) / lasts_ns;
                    most = most.max(amount / PER_ONE);
                }
            }
            starts += lasts_ns;
        }
        assert_eq!(curve.most_between(from, to), most, "{stages:?} from {from} to {to}");
        let ends = stages.iter().flat_map(|(_, first, last)| [first.0, last.0]);
        assert_eq!(curve.least(), ends.min().unwrap() / PER_ONE);
    }
}

#[test]
fn profiles_are_written_as_they_are_read() {
    for (text, again) in [
        ("1000", "1000"),
        ("1.5k", "1500"),
        ("0.5", "0.5"),
        ("0.125", "0.125"),
        ("1e9", "1000000000"),
        ("0:20k", "0:20000"),
        ("10s@1000,30s@5000:20000,5s@0", "10s@1000,30s@5000:20000,5s@0"),
        ("1m 30s@5, 1500ms@2:3", "1m30s@5,1s500ms@2:3"),
        ("24h@0.001", "1day@0.001"),
    ] {
        let profile: Profile = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!(profile.to_string(), again);
        assert_eq!(again.parse(), Ok(profile.clone()));
        let json = serde_json::to_string(&profile).unwrap();
        assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), profile, "{json}");
        assert_eq!(json.starts_with('"'), !matches!(profile, Profile::Fixed(_)), "{json}");
    }
    assert_eq!(serde_json::to_string(&"500".parse::<Profile>().unwrap()).unwrap(), "500");
    for (text, says) in [
        ("", "is not a number"),
        ("-1", "is not a number"),
        ("0.0001", "at most 3 decimals"),
        ("2e9", "from 0 to 1e9"),
        ("1:", "is not a number"),
        ("1:2:3", "is not a number"),
        ("10s@", "is not a number"),
        ("10s@1,20", "'20' is not a stage"),
        ("0s@1", "a jump does not need a stage"),
        ("25h@1", "from 1ms to 24h"),
        ("20h@1,5h@0:1", "the stages last 1day 1h together, and a run lasts at most 24h"),
        ("10@1", "with its unit"),
        ("10s@1,", "is not a stage"),
    ] {
        let said = text.parse::<Profile>().unwrap_err();
        assert!(said.contains(says), "{text}: {said}");
    }
    let many = vec!["1s@1"; STAGES_MAX + 1].join(",");
    assert!(many.parse::<Profile>().unwrap_err().contains("1001 stages"));
}
