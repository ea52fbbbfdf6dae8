//! Receives, sends, and time in any order: bounded unsent responses, silence after the end, and
//! deadlines that trickling bytes do not extend.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtally::connection::{Connection, Due, Moment, Next, Urgency};
use ringtally::http::{Limits, Timeouts, UNSENT_BYTES_MAX};
use ringtally::metrics::Reporter;
use ringtally::service::{Policy, Service};
use ringtally::tally::Tally;

fuzz_target!(|data: &[u8]| {
    let (tally, mut writers) = Tally::new(1, 3);
    let policy = Policy::new("h");
    let reporter = Reporter::for_shards(1, "none").remove(0);
    let mut service = Service::new(writers.remove(0), reporter, policy, 0);
    let timeouts = Timeouts { header_ms: 50, body_ms: 70, idle_ms: 90 };
    let limits = Limits { body_bytes_max: 100, batch_bytes_max: 8 << 20, timeouts };
    let mut connection = Connection::new(limits, true, 0);
    let mut moment = Moment::START;
    let mut next = Next::Receive;
    // The number of times that the deadline has moved since the last response: once for a head,
    // once for a body.
    let (mut deadline_ms, mut moves) = (connection.deadline_ms(), 0);
    let mut rest = data;
    while let Some((step, after)) = rest.split_first() {
        rest = after;
        let before = connection.responses().len();
        let was_idle = connection.is_idle();
        match step % 8 {
            0..=3 if next == Next::Receive => {
                let (piece, after) =
                    rest.split_at(usize::from(step / 8 * 4 + step % 8).min(rest.len()));
                rest = after;
                connection.receive(piece, &moment, &mut service);
                // During a drain, received bytes are handled after all of them have arrived.
                if moment.urgency == Urgency::Drain {
                    connection.work(&moment, &mut service);
                }
            }
            // The peer takes what may leave.
            4 => {
                connection.work(&moment, &mut service);
                service.publish();
                let action = connection.action(&moment, &mut service);
                connection.renew();
                connection.take_responses(action.send, moment.now_ms);
                connection.note_sent(action.send);
            }
            5 => moment.now_ms += u64::from(step / 8),
            6 => {
                let due = connection.tick(&moment, &mut service);
                assert!(!was_idle || due != Due::Act, "408 where no request had begun");
                if matches!(due, Due::CloseIdle | Due::Cut) {
                    break;
                }
            }
            7 if step / 8 == 0 => moment.urgency = Urgency::Drain,
            _ => {}
        }
        service.publish();
        let unsent = connection.responses().len();
        assert!(unsent < UNSENT_BYTES_MAX + 1000, "at most one response over the mark");
        next = connection.next();
        if connection.is_finishing() {
            // Anything that follows is ignored.
            let more = b"GET /stats HTTP/1.1\r\nHost: h\r\n\r\n";
            connection.receive(more, &moment, &mut service);
            assert_eq!(connection.responses().len(), unsent);
            break;
        }
        if unsent != before {
            moves = 0;
        } else if connection.deadline_ms() != deadline_ms && connection.responses().is_empty() {
            moves += 1;
            assert!(moves <= 2, "trickling bytes extend the deadline");
        }
        deadline_ms = connection.deadline_ms();
    }
    assert!(tally.totals().unique_users <= 3);
});
