//! Method and path to action: the only place that knows both `http` and `tally`.

mod batch;
mod units;

use crate::event::{self, Event, Refusal};
use crate::http::{
    self, Budget, Context, Handled, Handler, MediaType, Method, Outcome, Prepared, Reply, Request,
    Status, Target,
};
use crate::metrics::{Endpoint, Failure, Format, Kind, Reporter};
use crate::page::Page;
use crate::store::{Durability, Held};
use crate::tally::{Forgotten, Totals, User, UsersFull, Writer};
pub use batch::{BatchMemory, Work};
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// How an event is acknowledged. Published clients accept one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// 200 without a body, for the challenge's original clients
    #[value(name = "1mrc")]
    Original,
    /// 201 with {"status":"ok"}
    Fasterapi,
}

/// What a service is configured with.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How an event is acknowledged.
    pub dialect: Dialect,
    /// The token that a reset requires; without one, loopback peers may reset.
    pub admin_token: Option<Arc<[u8]>>,
    /// The host that the server was told to bind, which a `Host` may name besides loopback.
    pub host: String,
    /// The longest line of a batch in bytes, without its ending: as long as the body of one event.
    pub line_bytes_max: usize,
    /// What the batches of all shards share.
    pub batch_memory: Arc<BatchMemory>,
}

impl Policy {
    /// The default, for a server that was told to bind `host`.
    pub fn new(host: &str) -> Policy {
        Policy {
            dialect: Dialect::Original,
            admin_token: None,
            host: host.to_owned(),
            line_bytes_max: 16 * 1024,
            batch_memory: BatchMemory::new(256 << 20),
        }
    }
}

/// A connection whose requests a [`Service`] responds to.
pub type Connection = http::Connection<Work>;

impl Connection {
    /// What the request is whose head has arrived, and which is not responded to yet.
    pub fn kind(&self) -> Option<Kind> {
        if self.is_batch_under_way() {
            return Some(Kind::BATCH);
        }
        let (method, target) = self.request_under_way()?;
        let endpoint = match target {
            Target::Path(path) => endpoint_at(&path),
            Target::Server | Target::Tunnel => Endpoint::Other,
        };
        Some(Kind { endpoint, method })
    }
}

/// The totals as one JSON object.
pub fn stats_json(totals: &Totals) -> String {
    serde_json::to_string(totals).expect("finite numbers have a JSON form")
}

/// The resource at a path.
fn endpoint_at(path: &[u8]) -> Endpoint {
    match path {
        b"/event" => Endpoint::Event,
        b"/events" => Endpoint::Batch,
        b"/stats" => Endpoint::Stats,
        b"/health" => Endpoint::Health,
        b"/reset" => Endpoint::Reset,
        b"/metrics" => Endpoint::Metrics,
        b"/openapi.json" => Endpoint::Description,
        b"/" => Endpoint::Page,
        _ => Endpoint::Other,
    }
}

/// The value of `Allow` for a resource.
fn methods(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Event | Endpoint::Batch | Endpoint::Reset => WRITING,
        Endpoint::Stats
        | Endpoint::Health
        | Endpoint::Metrics
        | Endpoint::Description
        | Endpoint::Page => READING,
        Endpoint::Other => METHODS,
    }
}

/// What these endpoints are, in OpenAPI 3.1.
const DESCRIPTION: &str = include_str!("openapi.json");

/// The formats of `/metrics`.
const PROMETHEUS: MediaType = MediaType { name: "text/plain", version: "0.0.4" };
const OPEN_METRICS: MediaType =
    MediaType { name: "application/openmetrics-text", version: "1.0.0" };

/// What to do where no more users can be held.
const USERS_FULL: &str =
    "reset the totals, or start the server with a larger --max-users: no more users can be held";

/// The values of `Allow` for a resource that is read, and for one that is written to.
const READING: &str = "GET, HEAD, OPTIONS";
const WRITING: &str = "POST, OPTIONS";

/// The value of `Allow` for the server as a whole.
const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// What the connections of one shard share: HTTP's own state, and the [`Endpoints`] that respond.
pub type Service = Context<Endpoints>;

/// Responds to the requests of one shard.
#[derive(Debug)]
pub struct Endpoints {
    writer: Writer,
    metrics: Reporter,
    /// What the present request costs, in units of a [`Budget`].
    units: u32,
    /// Lines of users who have to be claimed, during a slice of the work on a batch.
    unseen: Vec<batch::Line>,
    /// Events responded to since the last turn was noted, and the other requests.
    events: u64,
    others: Vec<Kind>,
    /// What was responded to last.
    last: Kind,
    policy: Policy,
    acknowledgement: Prepared,
    page: Page,
    durable: Option<Durable>,
}

/// What makes responses wait for the store.
#[derive(Debug)]
struct Durable {
    durability: Durability,
    /// Responses of the connection that is being served wait already.
    is_holding: bool,
    /// Where in the unsent bytes of the connection that is being served the first new response begins that has
    /// to wait, and with it all that follow; and the generation in which it was counted.
    held_from: Option<(usize, u64)>,
    /// The epoch at which everything is settled that was handled so far, but for what is not published.
    settles_at: u64,
    /// What was read for the connection that is being served, where others share the store.
    reading: Reading,
}

/// What has come of reading the totals that a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Nothing.
    None,
    /// They were read after the request that waits had come.
    ForFirst,
    /// They were read after all requests had come that the connection holds.
    ForAll,
    /// They could not be read in time.
    Late,
}

/// The totals that a response shows.
enum Shown {
    Totals(Totals),
    /// They have to be read first.
    NotYet,
    /// They cannot be read for the time being.
    Late,
}

impl Durable {
    /// Makes a response for what was counted in a generation wait until an epoch and what was handled so far
    /// are settled, and with it all that follow on its connection.
    #[inline]
    fn hold(&mut self, reply: &Reply<'_>, epoch: u64, generation: u64) {
        self.settles_at = self.settles_at.max(epoch);
        self.held_from.get_or_insert((reply.position(), generation));
    }

    /// The totals over all servers that share the store, if they were read for this request. They have the
    /// events before it on its connection only if none came since they were asked for.
    fn read_totals(&mut self) -> Shown {
        let reading = self.reading;
        match reading {
            Reading::ForFirst | Reading::ForAll if self.held_from.is_none() => {
                if reading == Reading::ForFirst {
                    self.reading = Reading::None;
                }
                Shown::Totals(self.durability.totals())
            }
            Reading::Late => Shown::Late,
            _ if self.durability.is_late() => Shown::Late,
            _ => Shown::NotYet,
        }
    }
}

impl Service {
    /// A service that counts with `writer` and reports to `metrics`, at a Unix time in seconds.
    pub fn new(writer: Writer, metrics: Reporter, policy: Policy, unix_seconds: u64) -> Self {
        let acknowledgement = match policy.dialect {
            Dialect::Original => Prepared::new(Status::Ok, None, ""),
            Dialect::Fasterapi => {
                Prepared::new(Status::Created, Some("application/json"), r#"{"status":"ok"}"#)
            }
        };
        let bound_host = policy.host.clone();
        let page = Page::new();
        let endpoints = Endpoints {
            writer,
            metrics,
            units: 0,
            unseen: Vec::new(),
            events: 0,
            others: Vec::new(),
            last: Kind::EVENT,
            policy,
            acknowledgement,
            page,
            durable: None,
        };
        Context::of(endpoints, &bound_host, unix_seconds)
    }

    /// Acknowledges events and resets only once they are durable.
    pub fn set_durability(&mut self, durability: Durability) {
        self.handler.durable = Some(Durable {
            durability,
            is_holding: false,
            held_from: None,
            settles_at: 0,
            reading: Reading::None,
        });
    }

    /// Has the calling thread, which is to be the shard's, allocate what only this shard uses: see
    /// [`Writer::move_here`].
    pub fn move_here(&mut self) {
        self.handler.writer.move_here();
    }

    /// The shard's side of the store, if there is one.
    #[inline]
    pub fn durability(&self) -> Option<&Durability> {
        self.handler.durable.as_ref().map(|durable| &durable.durability)
    }

    /// Has a connection take received bytes, and notes in `held` which of the responses in `out` have to wait
    /// for the store.
    #[inline]
    pub fn receive(
        &mut self,
        connection: &mut Connection,
        input: &[u8],
        now_ms: u64,
        held: &mut Held,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.begin(held, Reading::None);
        let outcome = connection.receive(input, now_ms, self, out);
        self.note_held(held);
        outcome
    }

    /// Has a connection go on with requests that were held back, for which totals were read if they waited for
    /// that.
    pub fn resume(
        &mut self,
        connection: &mut Connection,
        reading: Reading,
        now_ms: u64,
        held: &mut Held,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.begin(held, reading);
        let outcome = connection.resume(now_ms, self, out);
        self.note_held(held);
        outcome
    }

    #[inline]
    fn begin(&mut self, held: &Held, reading: Reading) {
        if let Some(durable) = &mut self.handler.durable {
            (durable.is_holding, durable.held_from) = (!held.is_empty(), None);
            durable.reading = reading;
        }
    }

    #[inline]
    fn note_held(&mut self, held: &mut Held) {
        if let Some(Durable { held_from: Some((from, generation)), .. }) = self.handler.durable {
            held.hold(from, generation);
        }
    }

    /// The epoch of a cut after which totals have to be read to have everything that was acknowledged so far,
    /// and everything that was handled before the last [`Service::commit`].
    pub fn next_epoch(&self) -> u64 {
        self.handler.writer.tally().next_epoch()
    }

    /// The epoch at which everything is settled that was handled before the last [`Service::commit`].
    pub fn settles_at(&self) -> u64 {
        let published = self.handler.writer.settles_at();
        self.handler.durable.as_ref().map_or(published, |durable| durable.settles_at.max(published))
    }

    /// Sets the date of responses to a Unix time in seconds, and does what is due from time to time.
    /// To be called at least once per second, by the shard's thread.
    pub fn set_time(&mut self, unix_seconds: u64) {
        self.set_date(unix_seconds);
        self.handler.metrics.note_cpu_time();
        if let Some(durable) = &self.handler.durable {
            durable.durability.check_store();
        }
        if let Some(forgotten) = self.handler.writer.take_forgotten() {
            drop_elsewhere(forgotten);
        }
    }

    /// Makes everything counted so far visible. To be called before the responses to a batch of
    /// requests leave.
    #[inline]
    pub fn commit(&mut self) {
        self.handler.writer.publish();
    }

    /// What was responded to last.
    #[inline]
    pub fn last(&self) -> Kind {
        self.handler.last
    }

    /// The metrics of this shard.
    #[inline]
    pub fn metrics(&self) -> &Reporter {
        &self.handler.metrics
    }

    /// Notes how long after it was received a batch of requests was responded to.
    #[inline]
    pub fn note_turn(&mut self, took: Duration) {
        let Endpoints { events, others, metrics, .. } = &mut self.handler;
        if *events > 0 || !others.is_empty() {
            metrics.note_turn(*events, others, took);
            *events = 0;
            others.clear();
        }
    }
}

/// Drops users on a thread of its own: ten million take about a second, for which the connections
/// of a shard must not wait.
fn drop_elsewhere(forgotten: Forgotten) {
    // If no thread can be started, they are dropped here.
    let _ = std::thread::Builder::new().name("forget-users".into()).spawn(|| drop(forgotten));
}

impl Endpoints {
    #[inline]
    fn event(&mut self, body: &[u8], reply: Reply<'_>) -> Status {
        self.units = units::EVENT;
        let event = match event::decode_usual(body) {
            Some(event) => event,
            None => match self.decode_unusual(body) {
                Ok(event) => event,
                Err(refusal) => return self.refuse_event(refusal, reply),
            },
        };
        self.count(&event, reply)
    }

    #[cold]
    fn decode_unusual<'a>(&mut self, body: &'a [u8]) -> Result<Event<'a>, Refusal> {
        self.units += units::UNUSUAL + units::of_bytes(body.len(), units::UNUSUAL_BYTE);
        event::decode_unusual(body)
    }

    #[cold]
    fn refuse_event(&mut self, refusal: Refusal, reply: Reply<'_>) -> Status {
        self.units += units::ERROR;
        self.metrics.note_failure(Failure::from(refusal));
        reply.send_error(Status::BadRequest, &[], refusal.sentence())
    }

    #[inline]
    fn count(&mut self, event: &Event<'_>, reply: Reply<'_>) -> Status {
        if self.is_store_late() {
            return self.refuse_for_store(reply);
        }
        match self.writer.count(&event.user, event.value) {
            Ok(user) => {
                if user == User::Unseen {
                    self.units += units::UNSEEN;
                }
                if let Some(durable) = &mut self.durable {
                    // It is settled with what is published next.
                    durable.hold(&reply, 0, self.writer.generation());
                }
                reply.send_prepared(&self.acknowledgement)
            }
            Err(UsersFull) => {
                self.units += units::ERROR;
                self.metrics.note_failure(Failure::UsersFull);
                reply.send_error(Status::InsufficientStorage, &[], USERS_FULL)
            }
        }
    }

    /// Whether the store has not settled an event within its time.
    #[inline]
    fn is_store_late(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.durability.is_late())
    }

    /// Refuses what the store would have to settle, or read.
    #[cold]
    fn refuse_for_store(&mut self, reply: Reply<'_>) -> Status {
        self.units += units::ERROR;
        let sentence =
            "try again later: the store does not respond, so nothing can be acknowledged";
        reply.send_error(Status::ServiceUnavailable, &[("Retry-After", "1")], sentence)
    }

    /// The totals that a response may show.
    fn totals(&mut self, reply: &Reply<'_>) -> Shown {
        Shown::Totals(match &mut self.durable {
            Some(durable) if durable.durability.is_shared() => return durable.read_totals(),
            // What was acknowledged is durable. Nothing that is not may be shown.
            Some(durable) if !durable.is_holding && durable.held_from.is_none() => {
                durable.durability.totals()
            }
            // Events before this request on the same connection are part of the response, which waits for
            // them in any case.
            durable => {
                self.writer.publish();
                let (epoch, totals) = self.writer.tally().totals_with_epoch();
                if let Some(durable) = durable {
                    durable.hold(reply, epoch, self.writer.generation());
                }
                totals
            }
        })
    }

    fn stats(&mut self, reply: Reply<'_>) -> Option<Status> {
        self.units += units::STATS + units::STATS_SHARD * self.metrics.shards();
        match self.totals(&reply) {
            Shown::Totals(totals) => {
                Some(reply.send_json(Status::Ok, stats_json(&totals).as_bytes()))
            }
            Shown::NotYet => None,
            Shown::Late => Some(self.refuse_for_store(reply)),
        }
    }

    fn health(&mut self, reply: Reply<'_>) -> Status {
        match self.is_store_late() {
            true => self.refuse_for_store(reply),
            false => reply.send_json(Status::Ok, br#"{"status":"healthy"}"#),
        }
    }

    fn report(&mut self, request: &Request<'_>, reply: Reply<'_>) -> Option<Status> {
        // To find out which format it asks for.
        self.units += units::of_bytes(request.head_bytes(), units::ACCEPT_BYTE);
        if request.method() == Method::Head {
            let (_, content_type) = format_for(request);
            return Some(reply.send_head(Status::Ok, content_type, &VARY));
        }
        self.units += units::METRICS + units::METRICS_SHARD * self.metrics.shards();
        let totals = match self.totals(&reply) {
            Shown::Totals(totals) => Some(totals),
            Shown::NotYet => return None,
            // The other metrics say what is wrong.
            Shown::Late => None,
        };
        self.metrics.note_cpu_time();
        let (format, content_type) = format_for(request);
        let batch_memory = self.policy.batch_memory.used() as u64;
        let text = self.metrics.text(totals.as_ref(), batch_memory, format);
        Some(reply.send(Status::Ok, Some(content_type), &VARY, text.as_bytes()))
    }

    fn reset(&mut self, request: &Request<'_>, reply: Reply<'_>) -> Status {
        let refusal = match &self.policy.admin_token {
            Some(token) if bears(request.authorization(), token) => None,
            Some(_) => {
                let fields = [("WWW-Authenticate", "Bearer")];
                let sentence = "send the admin token as Authorization: Bearer";
                return reply.send_error(Status::Unauthorized, &fields, sentence);
            }
            None if !request.peer_is_loopback => Some(
                "send the reset from the server's own machine, or start the server with --admin-token-file",
            ),
            // To the server, everybody behind a proxy on this machine is a loopback peer.
            None if request.may_be_forwarded() => Some(
                "send the reset over HTTP/1.1 and not through a proxy, or start the server with --admin-token-file",
            ),
            None if !request.names_server(&self.policy.host) => {
                Some("send the reset with a Host that names this server, such as localhost")
            }
            None => None,
        };
        if let Some(sentence) = refusal {
            return reply.send_error(Status::Forbidden, &[], sentence);
        }
        if self.is_store_late() {
            return self.refuse_for_store(reply);
        }
        let settles_at = self.writer.tally().reset();
        if let Some(durable) = &mut self.durable {
            // At least that of the reset.
            durable.hold(&reply, settles_at, self.writer.tally().generation());
        }
        reply.send_json(Status::Ok, br#"{"status":"reset"}"#)
    }
}

/// The field of `/metrics` that says on what its format depends.
const VARY: [(&str, &str); 1] = [("Vary", "Accept")];

/// The format of `/metrics` that a request asks for, and its content type.
fn format_for(request: &Request<'_>) -> (Format, &'static str) {
    match request.prefers(OPEN_METRICS, PROMETHEUS) {
        true => (Format::OpenMetrics, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        false => (Format::Prometheus, "text/plain; version=0.0.4"),
    }
}

/// Whether `authorization` is `Bearer` with the token, in time that does not reveal how much of it is
/// right.
fn bears(authorization: Option<&[u8]>, token: &[u8]) -> bool {
    const SCHEME: &[u8] = b"bearer ";
    authorization.is_some_and(|value| {
        value.len() > SCHEME.len()
            && value[..SCHEME.len()].eq_ignore_ascii_case(SCHEME)
            && bool::from(value[SCHEME.len()..].trim_ascii().ct_eq(token))
    })
}

impl Handler for Endpoints {
    type Work = Work;

    fn knows(&self, request: &Request<'_>) -> bool {
        match (&request.target, request.method()) {
            (Target::Path(path), Method::Options) => endpoint_at(path) != Endpoint::Other,
            (Target::Path(path), Method::Get | Method::Head) => {
                methods(endpoint_at(path)) == READING
            }
            (Target::Path(path), Method::Post) => methods(endpoint_at(path)) == WRITING,
            (Target::Server, method) => method == Method::Options,
            _ => false,
        }
    }

    fn wants_body(&self, request: &Request<'_>) -> bool {
        let Target::Path(path) = &request.target else {
            return false;
        };
        request.method() == Method::Post
            && endpoint_at(path) == Endpoint::Event
            && !request.is_cross_site()
            && !request.is_encoded()
    }

    #[inline]
    fn handle(&mut self, request: &Request<'_>, reply: Reply<'_>) -> Handled {
        let endpoint = match &request.target {
            Target::Path(path) => endpoint_at(path),
            Target::Server | Target::Tunnel => Endpoint::Other,
        };
        let Some(status) = self.respond(request, endpoint, reply) else {
            return Handled::NotYet;
        };
        self.metrics.note_response(request.method(), endpoint, status);
        Handled::Responded(self.units)
    }

    fn is_batch(&self, request: &Request<'_>) -> bool {
        let is_of_batches =
            matches!(&request.target, Target::Path(path) if endpoint_at(path) == Endpoint::Batch);
        request.method() == Method::Post && is_of_batches
    }

    fn begin_batch(
        &mut self,
        request: &Request<'_>,
        bytes: usize,
        reply: Reply<'_>,
    ) -> Option<(Work, Vec<u8>)> {
        let admitted = self.admit_batch(request, bytes, reply);
        if admitted.is_none() {
            self.note_other(Kind { endpoint: Endpoint::Batch, method: request.method() });
        }
        admitted
    }

    fn work(
        &mut self,
        work: &mut Work,
        body: &mut [u8],
        budget: &mut Budget,
        reply: Reply<'_>,
    ) -> bool {
        let Some(status) = self.work_on_batch(work, body, budget, reply) else { return false };
        self.metrics.note_response(Method::Post, Endpoint::Batch, status);
        self.note_other(Kind::BATCH);
        true
    }

    fn refused(&mut self, status: Status) {
        self.metrics.note_response(Method::Unknown, Endpoint::Other, status);
    }
}

/// Refuses what a page of another site could have made a browser send.
fn refuse_cross_site(reply: Reply<'_>) -> Status {
    let sentence = "send this from a page of this server, or from a client that is not a browser";
    reply.send_error(Status::Forbidden, &[], sentence)
}

/// Refuses a body with a content coding.
fn refuse_encoded(reply: Reply<'_>) -> Status {
    let fields = [("Accept-Encoding", "identity")];
    let sentence = "send the body without a content coding";
    reply.send_error(Status::UnsupportedMediaType, &fields, sentence)
}

impl Endpoints {
    /// Responds to a request. Returns the status, or `None` where totals have to be read first.
    #[inline]
    fn respond(
        &mut self,
        request: &Request<'_>,
        endpoint: Endpoint,
        reply: Reply<'_>,
    ) -> Option<Status> {
        match (request.method(), endpoint) {
            (Method::Post, Endpoint::Event)
                if !request.is_cross_site() && !request.is_encoded() =>
            {
                self.events += 1;
                self.last = Kind::EVENT;
                Some(self.event(request.body, reply))
            }
            _ => {
                let status = self.respond_otherwise(request, endpoint, reply)?;
                self.note_other(Kind { endpoint, method: request.method() });
                Some(status)
            }
        }
    }

    /// Notes a response to what is not an event.
    fn note_other(&mut self, kind: Kind) {
        self.last = kind;
        self.others.push(kind);
    }

    /// Responds to what is not an event.
    #[inline(never)]
    fn respond_otherwise(
        &mut self,
        request: &Request<'_>,
        endpoint: Endpoint,
        reply: Reply<'_>,
    ) -> Option<Status> {
        // Most of what follows responds with an error, or costs about as much.
        self.units = units::ERROR;
        Some(match (request.method(), endpoint) {
            (Method::Post, _) if request.is_cross_site() => refuse_cross_site(reply),
            (Method::Post, Endpoint::Event) => refuse_encoded(reply),
            (Method::Unknown, _) => {
                let sentence = "use GET, HEAD, POST, or OPTIONS";
                reply.send_error(Status::NotImplemented, &[("Allow", METHODS)], sentence)
            }
            (Method::Get | Method::Head, Endpoint::Stats) => return self.stats(reply),
            (Method::Get | Method::Head, Endpoint::Health) => self.health(reply),
            (Method::Get | Method::Head, Endpoint::Metrics) => return self.report(request, reply),
            (Method::Get | Method::Head, Endpoint::Description) => {
                self.units += units::of_bytes(DESCRIPTION.len() / units::PAGE_BYTES, 1);
                reply.send_json(Status::Ok, DESCRIPTION.as_bytes())
            }
            (Method::Get | Method::Head, Endpoint::Page) => {
                self.units += units::of_bytes(Page::BYTES / units::PAGE_BYTES, 1);
                self.page.send(reply)
            }
            (Method::Post, Endpoint::Reset) => self.reset(request, reply),
            (method, Endpoint::Other) => match request.target {
                Target::Server if method == Method::Options => {
                    reply.send(Status::NoContent, None, &[("Allow", METHODS)], b"")
                }
                Target::Server | Target::Tunnel => {
                    let sentence =
                        "send the request to the server itself, because it is not a proxy";
                    reply.send_error(Status::MethodNotAllowed, &[("Allow", METHODS)], sentence)
                }
                Target::Path(_) => {
                    let sentence = "use /event, /events, /stats, /health, /reset, /metrics, /openapi.json, or /";
                    reply.send_error(Status::NotFound, &[], sentence)
                }
            },
            (Method::Options, endpoint) => {
                reply.send(Status::NoContent, None, &[("Allow", methods(endpoint))], b"")
            }
            (_, endpoint) => {
                let fields = [("Allow", methods(endpoint))];
                let sentence = "use one of the methods in the Allow field";
                reply.send_error(Status::MethodNotAllowed, &fields, sentence)
            }
        })
    }
}

#[cfg(test)]
mod tests {
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
                services[filled % 4].handler.writer.count(user.as_bytes(), 1.0).unwrap();
            }
            tally.reset();
            services.iter_mut().for_each(|service| service.set_time(0));
            for service in &mut services {
                assert!(service.handler.writer.take_forgotten().is_none(), "the tick took them");
            }
        }
    }

    #[test]
    fn a_tick_without_a_reset_takes_nothing() {
        let (tally, mut services) = services(2, 10);
        services[0].handler.writer.count(b"u", 1.0).unwrap();
        services.iter_mut().for_each(|service| service.set_time(0));
        services[1].handler.writer.count(b"u", 1.0).unwrap();
        services.iter_mut().for_each(Service::commit);
        let totals = tally.totals();
        assert_eq!((totals.total_requests, totals.unique_users), (2, 1));
    }
}
