//! A connection whose peer reads every response immediately, without an engine.

use ringtally::connection::{Connection, Moment, Next};
use ringtally::service::Service;

/// Gives the connection turns until it waits for bytes or ends.
pub fn finish(
    connection: &mut Connection,
    moment: &Moment,
    service: &mut Service,
) -> (Vec<u8>, Next) {
    let mut sent = Vec::new();
    loop {
        connection.work(moment, service);
        let (more, next) = turn(connection, moment, service);
        if more.is_empty() && !connection.has_work() {
            return (sent, next);
        }
        sent.extend(more);
    }
}

/// Executes the connection's action. Returns the responses that are sent, and what the connection
/// wants next.
pub fn turn(
    connection: &mut Connection,
    moment: &Moment,
    service: &mut Service,
) -> (Vec<u8>, Next) {
    service.publish();
    let action = connection.action(moment, service);
    connection.renew();
    if action.send == 0 {
        return (Vec::new(), action.then);
    }
    let sent = connection.take_responses(action.send, moment.now_ms);
    connection.note_sent(sent.len());
    (sent, connection.next())
}

/// Returns whether a connection ends after its responses are taken.
pub fn ends(next: Next) -> bool {
    matches!(next, Next::ShutDownWrite | Next::Close)
}
