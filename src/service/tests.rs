//! The service of a shard, without a connection.

use super::*;
use crate::tally::Tally;

fn services(shards: usize, users_max: u64) -> (Arc<Tally>, Vec<Service>) {
    let (tally, writers) = Tally::new(shards, users_max);
    let policy = Policy::new("localhost");
    let services = std::iter::zip(writers, Reporter::for_shards(shards, "none"))
        .map(|(writer, metrics)| Service::new(writer, metrics, policy.clone(), 0))
        .collect();
    (tally, services)
}

#[test]
fn a_shard_without_events_gives_up_its_users_within_a_tick_of_a_reset() {
    const USERS_MAX: u64 = 1000;
    let (tally, mut services) = services(4, USERS_MAX);
    for filled in 0..8 {
        for user in 0..USERS_MAX {
            let user = format!("{filled}-{user}");
            services[filled % 4].endpoints.writer.count(user.as_bytes(), 1.0).unwrap();
        }
        tally.reset();
        services.iter_mut().for_each(|service| service.set_time(0));
        for service in &mut services {
            assert!(service.endpoints.writer.take_stale().is_none(), "the tick took them");
        }
    }
}

#[test]
fn totals_cost_a_part_for_each_shard() {
    for shards in [1, 3, 8] {
        let (tally, mut services) = services(shards, 10);
        let Service { endpoints, context, .. } = &mut services[0];
        let mut cost = |shows| {
            let (mut out, mut budget) = (Vec::new(), Budget::FULL);
            let reply = Reply::new(&mut out, context, ReplyTo::LAST);
            let status = endpoints.show(shows, Some(tally.totals()), reply, &mut budget);
            assert_eq!(status, Status::Ok);
            budget.used()
        };
        let number = u32::try_from(shards).unwrap();
        assert_eq!(cost(Shows::Stats), units::STATS + number * units::STATS_SHARD);
        let metrics = cost(Shows::Metrics(Format::Prometheus));
        assert_eq!(metrics, units::METRICS + number * units::METRICS_SHARD);
    }
}

#[test]
fn the_next_cut_is_the_one_of_the_counters() {
    let (tally, services) = services(1, 10);
    for _ in 0..3 {
        tally.totals();
        assert_eq!(services[0].next_epoch(), tally.next_epoch());
    }
    assert!(tally.next_epoch() > 1);
}

#[test]
fn the_description_has_a_path() {
    assert_eq!(endpoint_at(b"/openapi.json"), Endpoint::Description);
    assert_eq!(endpoint_at(b"/openapi"), Endpoint::Other);
}

#[test]
fn a_rejected_connection_is_told_to_try_again_later() {
    let (_, mut services) = services(1, 10);
    let mut responses = Responses::default();
    services[0].reject(&mut responses);
    let sent = String::from_utf8(responses.bytes().to_vec()).unwrap();
    for words in ["HTTP/1.1 503 ", "\r\nRetry-After: 1\r\n", "\r\nConnection: close\r\n"] {
        assert!(sent.contains(words), "{words}: {sent}");
    }
}

#[test]
fn a_tick_without_a_reset_takes_nothing() {
    let (tally, mut services) = services(2, 10);
    services[0].endpoints.writer.count(b"u", 1.0).unwrap();
    services.iter_mut().for_each(|service| service.set_time(0));
    services[1].endpoints.writer.count(b"u", 1.0).unwrap();
    services.iter_mut().for_each(Service::publish);
    let totals = tally.totals();
    assert_eq!((totals.total_requests, totals.unique_users), (2, 1));
}
