//! Receives, sends, and time in any order: bounded unsent responses, silence after the end, and
//! deadlines that trickling bytes do not extend.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtally::http::{Connection, Limits, Outcome, Timeouts, UNSENT_BYTES_MAX};
use ringtally::metrics::Reporter;
use ringtally::service::{Policy, Service};
use ringtally::tally::Tally;

fuzz_target!(|data: &[u8]| {
    let (tally, mut writers) = Tally::new(1, 3);
    let policy = Policy::new("h");
    let mut service = Service::new(writers.remove(0), Reporter::for_shards(1, "none").remove(0), policy, 0);
    let timeouts = Timeouts { header_ms: 50, body_ms: 70, idle_ms: 90 };
    let limits = Limits { body_bytes_max: 100, batch_bytes_max: 8 << 20, timeouts };
    let mut connection = Connection::new(limits, true, 0);
    let (mut out, mut now_ms) = (Vec::new(), 0);
    let mut outcome = Outcome::Receive;
    // How often the deadline has moved since the last response: once for a head, once for a body.
    let (mut deadline_ms, mut moves) = (connection.deadline_ms(), 0);
    let mut rest = data;
    while let Some((step, after)) = rest.split_first() {
        rest = after;
        let before = (out.len(), outcome);
        match step % 8 {
            0..=3 if outcome == Outcome::Receive => {
                let (piece, after) =
                    rest.split_at(usize::from(step / 8 * 4 + step % 8).min(rest.len()));
                rest = after;
                outcome = connection.receive(piece, now_ms, &mut service, &mut out);
            }
            4 => {
                out.clear();
                connection.renew();
                if matches!(outcome, Outcome::Resume | Outcome::Work) {
                    outcome = connection.resume(now_ms, &mut service, &mut out);
                }
            }
            5 => now_ms += u64::from(step / 8),
            6 if outcome == Outcome::Receive && now_ms >= connection.deadline_ms() => {
                let was_idle = connection.is_idle();
                connection.expire(&mut service, &mut out);
                assert!(!was_idle || out.len() == before.0, "408 where no request had begun");
                outcome = Outcome::Close;
            }
            7 if step / 8 == 0 => connection.drain(),
            _ => {}
        }
        service.commit();
        assert!(out.len() < UNSENT_BYTES_MAX + 1000, "at most one response over the mark");
        if outcome == Outcome::Close {
            // What follows is ignored.
            let unsent_bytes = out.len();
            let end = connection.receive(
                b"GET /stats HTTP/1.1\r\nHost: h\r\n\r\n",
                now_ms,
                &mut service,
                &mut out,
            );
            assert_eq!((end, out.len()), (Outcome::Close, unsent_bytes));
            break;
        }
        if out.len() != before.0 {
            moves = 0;
        } else if connection.deadline_ms() != deadline_ms {
            moves += 1;
            assert!(moves <= 2, "trickling bytes extend the deadline");
        }
        deadline_ms = connection.deadline_ms();
    }
    assert!(tally.totals().unique_users <= 3);
});
