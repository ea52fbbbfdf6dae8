//! Maps method and path to an action: the only module that knows both `http` and `tally`.

mod batch;
mod responses;
mod units;

use crate::event::{self, Event, Refusal};
use crate::http::{
    Budget, Context, MediaType, Method, Prepared, Refused, Reply, ReplyTo, Request, Status, Target,
    UNSENT_BYTES_MAX, UnderWay,
};
use crate::metrics::{Endpoint, Failure, Format, Kind, Reporter};
use crate::page::Page;
use crate::store::{Durability, Held};
use crate::tally::{StaleUsers, Totals, User, UsersFull, Writer};
pub use batch::{BatchMemory, Work};
use responses::Shows;
pub use responses::{PARKED_BYTES, Responses};
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// The response that acknowledges an event. Published clients accept one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// 200 without a body, for the challenge's original clients
    #[value(name = "1mrc")]
    Original,
    /// 201 with {"status":"ok"}
    Fasterapi,
}

/// The configuration of a service.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The response that acknowledges an event.
    pub dialect: Dialect,
    /// The token that a reset requires; without one, loopback peers may reset.
    pub admin_token: Option<Arc<[u8]>>,
    /// The host that the server binds, which a `Host` may name in addition to loopback.
    pub host: String,
    /// The maximum length of a line of a batch in bytes, without its ending: the same as for the body of one event.
    pub line_bytes_max: usize,
    /// The memory that the batches of all shards share.
    pub batch_memory: Arc<BatchMemory>,
}

impl Policy {
    /// Returns the default policy for a server that binds `host`.
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

/// Returns the totals as one JSON object.
pub fn stats_json(totals: &Totals) -> String {
    serde_json::to_string(totals).expect("finite numbers have a JSON form")
}

/// The path of batches.
const BATCH_PATH: &[u8] = b"/events";

/// Returns the resource that a target names.
#[inline]
fn endpoint_of(target: &Target<'_>) -> Endpoint {
    match target {
        Target::Path(path) => endpoint_at(path),
        Target::Server | Target::Tunnel => Endpoint::Other,
    }
}

/// Returns the resource at a path.
#[inline]
fn endpoint_at(path: &[u8]) -> Endpoint {
    match path {
        b"/event" => Endpoint::Event,
        BATCH_PATH => Endpoint::Batch,
        b"/stats" => Endpoint::Stats,
        b"/health" => Endpoint::Health,
        b"/reset" => Endpoint::Reset,
        b"/metrics" => Endpoint::Metrics,
        b"/openapi.json" => Endpoint::Description,
        b"/" => Endpoint::Page,
        _ => Endpoint::Other,
    }
}

/// Returns the value of `Allow` for a resource.
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

/// The description of these endpoints, in OpenAPI 3.1.
const DESCRIPTION: &str = include_str!("openapi.json");

/// The formats of `/metrics`.
const PROMETHEUS: MediaType = MediaType { name: "text/plain", version: "0.0.4" };
const OPEN_METRICS: MediaType =
    MediaType { name: "application/openmetrics-text", version: "1.0.0" };

/// The advice if no more users can be held.
const USERS_FULL: &str =
    "reset the totals, or start the server with a larger --max-users: no more users can be held";

/// The values of `Allow` for a resource to read, and for a resource to write.
const READING: &str = "GET, HEAD, OPTIONS";
const WRITING: &str = "POST, OPTIONS";

/// The value of `Allow` for the server as a whole.
const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// Responds to the requests of one shard.
#[derive(Debug)]
pub struct Service {
    /// The state that HTTP needs in addition to the requests.
    context: Context,
    endpoints: Endpoints,
}

/// The part of the service that responds to requests, without the state of HTTP.
#[derive(Debug)]
struct Endpoints {
    writer: Writer,
    metrics: Reporter,
    scratch: batch::Scratch,
    /// The number of events, and the other requests, that got responses since the last iteration was noted.
    events: u64,
    others: Vec<Kind>,
    /// The kind of the last request.
    last: Kind,
    policy: Policy,
    acknowledgement: Prepared,
    page: Page,
    durable: Option<DurableState>,
}

/// The state that makes responses wait for the store.
#[derive(Debug)]
struct DurableState {
    durability: Durability,
    /// The epoch that settles everything already handled, except for unpublished events.
    settles_at: u64,
}

impl DurableState {
    /// Makes a response, and all later responses on its connection, wait until an epoch and everything already handled are
    /// settled. Its events were counted in `generation`.
    #[inline]
    fn hold(&mut self, held: &mut Held, reply: &Reply<'_>, epoch: u64, generation: u64) {
        self.settles_at = self.settles_at.max(epoch);
        held.hold(reply.position(), generation);
    }
}

/// The result of a request.
enum Answer {
    /// A response with this status.
    Sent(Status),
    /// Totals must be read before there is a response.
    Later(Shows),
}

/// The progress of responses that wait for totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The remaining responses wait for totals, or until the peer has read earlier responses.
    Waits,
    /// Some could be made, but the budget is spent.
    BudgetSpent,
    /// The last response announces that the connection closes.
    Ends,
}

/// The destination of a response, and the budget that pays for it.
struct To<'a> {
    reply: Reply<'a>,
    /// The earlier responses that wait for the store.
    held: &'a mut Held,
    budget: &'a mut Budget,
}

impl Service {
    /// Creates a service that counts with `writer` and reports to `metrics`, at a Unix time in seconds.
    pub fn new(writer: Writer, metrics: Reporter, policy: Policy, unix_seconds: u64) -> Self {
        let acknowledgement = match policy.dialect {
            Dialect::Original => Prepared::new(Status::Ok, None, ""),
            Dialect::Fasterapi => {
                Prepared::new(Status::Created, Some("application/json"), r#"{"status":"ok"}"#)
            }
        };
        let context = Context::new(&policy.host, BATCH_PATH, unix_seconds);
        let endpoints = Endpoints {
            writer,
            metrics,
            scratch: batch::Scratch::default(),
            events: 0,
            others: Vec::new(),
            last: Kind::EVENT,
            policy,
            acknowledgement,
            page: Page::new(),
            durable: None,
        };
        Service { context, endpoints }
    }

    /// Makes the service acknowledge events and resets only once they are durable.
    pub fn set_durability(&mut self, durability: Durability) {
        self.endpoints.durable = Some(DurableState { durability, settles_at: 0 });
    }

    /// Allocates the state that only this shard uses, on the calling thread, which must be the
    /// shard's: see [`Writer::move_here`].
    pub fn move_here(&mut self) {
        self.endpoints.writer.move_here();
    }

    /// Returns the state that the connections of the shard share.
    #[inline]
    pub fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    /// Returns the shard's side of the store, if there is one.
    #[inline]
    pub fn durability(&self) -> Option<&Durability> {
        self.endpoints.durable.as_ref().map(|durable| &durable.durability)
    }

    /// Responds to a complete request, now or once totals are read.
    #[inline]
    pub fn respond(
        &mut self,
        request: &Request<'_>,
        budget: &mut Budget,
        responses: &mut Responses,
    ) {
        let Responses { bytes, held, .. } = responses;
        let reply = Reply::new(bytes, &self.context, request.reply_to());
        let endpoint = endpoint_of(&request.target);
        let to = To { reply, held, budget };
        match self.endpoints.respond(request, endpoint, to) {
            Answer::Sent(status) => {
                self.endpoints.metrics.note_response(request.method(), endpoint, status);
            }
            Answer::Later(shows) => responses.park(shows, request),
        }
    }

    /// Responds to a request whose body is too large. If the target or the method is wrong for a body of any size, the response
    /// states that instead.
    #[cold]
    pub fn respond_to_large(
        &mut self,
        request: &Request<'_>,
        budget: &mut Budget,
        responses: &mut Responses,
    ) {
        match knows(request) {
            true => self.refuse(Refused::large_body(request.method()), responses),
            false => self.respond(request, budget, responses),
        }
    }

    /// Responds to input that is not a request.
    #[cold]
    pub fn refuse(&mut self, refused: Refused, responses: &mut Responses) {
        let status = refused.respond(&mut responses.bytes, &self.context);
        self.endpoints.metrics.note_response(Method::Unknown, Endpoint::Other, status);
    }

    /// Refuses a connection as a whole, because the server is full.
    pub fn reject(&mut self, responses: &mut Responses) {
        let reply = Reply::new(&mut responses.bytes, &self.context, ReplyTo::LAST);
        let sentence = "try again later: the server has as many connections as it allows";
        let status =
            reply.send_error(Status::ServiceUnavailable, &[("Retry-After", "1")], sentence);
        self.endpoints.metrics.note_response(Method::Unknown, Endpoint::Other, status);
    }

    /// Returns whether a client that waits for `100 Continue` should send the body of its request.
    pub fn wants_body(&self, request: &Request<'_>) -> bool {
        request.method() == Method::Post
            && endpoint_of(&request.target) == Endpoint::Event
            && !request.is_cross_site()
            && !request.is_encoded()
    }

    /// Admits a batch with a body of at most `bytes` bytes and returns its memory, or responds.
    pub fn admit_batch(
        &mut self,
        request: &Request<'_>,
        bytes: usize,
        responses: &mut Responses,
    ) -> Option<(Work, Vec<u8>)> {
        let reply = Reply::new(&mut responses.bytes, &self.context, request.reply_to());
        self.endpoints.admit_batch(request, bytes, reply)
    }

    /// Works on a batch until it is done or the budget is spent. Returns whether the batch is done and has its response.
    pub fn work(
        &mut self,
        work: &mut Work,
        reply_to: ReplyTo,
        budget: &mut Budget,
        responses: &mut Responses,
    ) -> bool {
        let Responses { bytes, held, .. } = responses;
        let reply = Reply::new(bytes, &self.context, reply_to);
        let to = To { reply, held, budget };
        let Some(status) = self.endpoints.work_on_batch(work, to) else { return false };
        self.endpoints.metrics.note_response(Method::Post, Endpoint::Batch, status);
        self.endpoints.note_other(Kind::BATCH);
        true
    }

    /// Makes the responses whose totals were read or are late, until the budget is spent or too many bytes are unsent. If they
    /// `are_last`, the last of them announces that the connection closes, unless other responses follow it.
    pub fn make_parked(
        &mut self,
        budget: &mut Budget,
        responses: &mut Responses,
        are_last: bool,
    ) -> Progress {
        let Some(durability) = self.durability() else { return Progress::Waits };
        responses.note_read(durability.read());
        while let Some((parked, is_late)) = responses.first_ready() {
            if responses.bytes().len() >= UNSENT_BYTES_MAX {
                return Progress::Waits;
            }
            if budget.is_spent() {
                return Progress::BudgetSpent;
            }
            let totals = self.durability().filter(|_| !is_late).map(Durability::totals);
            let mut bytes = Vec::new();
            let is_last = are_last && responses.ends_with(&parked);
            let reply_to = if is_last { parked.to.as_last() } else { parked.to };
            let reply = Reply::new(&mut bytes, &self.context, reply_to);
            let endpoint = parked.shows.endpoint();
            let status = self.endpoints.show(parked.shows, totals, reply, budget);
            responses.fill_first(&bytes);
            self.endpoints.metrics.note_response(parked.method, endpoint, status);
            self.endpoints.note_other(Kind { endpoint, method: parked.method });
            if is_last {
                return Progress::Ends;
            }
        }
        Progress::Waits
    }

    /// Returns the kind of a request that is under way.
    pub fn kind_of(under_way: UnderWay<'_>) -> Option<Kind> {
        match under_way {
            UnderWay::Nothing => None,
            UnderWay::Batch => Some(Kind::BATCH),
            UnderWay::Request(method, target) => {
                Some(Kind { endpoint: endpoint_of(&target), method })
            }
        }
    }

    /// Returns the epoch of a cut such that totals read after it include everything already acknowledged, and everything
    /// handled before the last [`Service::publish`].
    pub fn next_epoch(&self) -> u64 {
        self.endpoints.writer.tally().next_epoch()
    }

    /// Returns the epoch that settles everything handled before the last [`Service::publish`].
    pub fn settles_at(&self) -> u64 {
        let published = self.endpoints.writer.settles_at();
        let durable = self.endpoints.durable.as_ref();
        durable.map_or(published, |durable| durable.settles_at.max(published))
    }

    /// Sets the date of responses to a Unix time in seconds, and does periodic work. The shard's thread must call this at
    /// least once per second.
    pub fn set_time(&mut self, unix_seconds: u64) {
        self.context.set_date(unix_seconds);
        self.endpoints.metrics.note_cpu_time();
        if let Some(durability) = self.durability() {
            durability.check_store();
        }
        if let Some(stale) = self.endpoints.writer.take_stale() {
            drop_elsewhere(stale);
        }
    }

    /// Makes everything already counted visible. Call this before its responses are sent.
    #[inline]
    pub fn publish(&mut self) {
        self.endpoints.writer.publish();
    }

    /// Returns the kind of the last request.
    #[inline]
    pub fn last(&self) -> Kind {
        self.endpoints.last
    }

    /// Returns the metrics of this shard.
    #[inline]
    pub fn metrics(&self) -> &Reporter {
        &self.endpoints.metrics
    }

    /// Notes the time from receiving the requests of an iteration to responding to them.
    #[inline]
    pub fn note_iteration(&mut self, took: Duration) {
        let Endpoints { events, others, metrics, .. } = &mut self.endpoints;
        if *events > 0 || !others.is_empty() {
            metrics.note_iteration(*events, others, took);
            *events = 0;
            others.clear();
        }
    }
}

/// Drops users on a separate thread, because ten million take about a second, and a shard's connections must not wait for that.
fn drop_elsewhere(stale: StaleUsers) {
    // If no thread can be started, they are dropped here.
    let _ = std::thread::Builder::new().name("drop-stale-users".into()).spawn(|| drop(stale));
}

impl Endpoints {
    #[inline]
    fn event(&mut self, body: &[u8], to: To<'_>) -> Status {
        to.budget.charge(units::EVENT);
        let event = match event::decode_usual(body) {
            Some(event) => event,
            None => match decode_unusual(body, to.budget) {
                Ok(event) => event,
                Err(refusal) => return self.refuse_event(refusal, to),
            },
        };
        self.count(&event, to)
    }

    #[cold]
    fn refuse_event(&mut self, refusal: Refusal, to: To<'_>) -> Status {
        to.budget.charge(units::ERROR);
        self.metrics.note_failure(Failure::from(refusal));
        to.reply.send_error(Status::BadRequest, &[], refusal.sentence())
    }

    #[inline]
    fn count(&mut self, event: &Event<'_>, to: To<'_>) -> Status {
        if self.is_store_late() {
            return refuse_for_store(to);
        }
        match self.writer.count(&event.user, event.value) {
            Ok(user) => {
                if user == User::Unseen {
                    to.budget.charge(units::UNSEEN);
                }
                if let Some(durable) = &mut self.durable {
                    // It will be settled with the next publication.
                    durable.hold(to.held, &to.reply, 0, self.writer.generation());
                }
                to.reply.send_prepared(&self.acknowledgement)
            }
            Err(UsersFull) => {
                to.budget.charge(units::ERROR);
                self.metrics.note_failure(Failure::UsersFull);
                to.reply.send_error(Status::InsufficientStorage, &[], USERS_FULL)
            }
        }
    }

    /// Returns whether the store did not settle an event in time.
    #[inline]
    fn is_store_late(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.durability.is_late())
    }

    /// Responds with totals, or reports that they must be read first.
    fn respond_with_totals(&mut self, shows: Shows, to: To<'_>) -> Answer {
        let totals = match &mut self.durable {
            Some(durable) if durable.durability.is_shared() => {
                if !durable.durability.is_late() {
                    return Answer::Later(shows);
                }
                None
            }
            // Acknowledged events are durable, and events that are not durable must not be shown.
            Some(durable) if to.held.is_empty() => Some(durable.durability.totals()),
            // Events before this request on the same connection are part of the response, which has to wait
            // for them in any case.
            durable => {
                self.writer.publish();
                let (epoch, totals) = self.writer.tally().totals_with_epoch();
                if let Some(durable) = durable {
                    durable.hold(to.held, &to.reply, epoch, self.writer.generation());
                }
                Some(totals)
            }
        };
        Answer::Sent(self.show(shows, totals, to.reply, to.budget))
    }

    /// Shows totals, or reports that they could not be read in time.
    fn show(
        &mut self,
        shows: Shows,
        totals: Option<Totals>,
        reply: Reply<'_>,
        budget: &mut Budget,
    ) -> Status {
        match (shows, totals) {
            (Shows::Stats, Some(totals)) => {
                budget.charge(units::STATS + units::STATS_SHARD * self.metrics.shards());
                reply.send_json(Status::Ok, stats_json(&totals).as_bytes())
            }
            (Shows::Stats, None) => {
                budget.charge(units::ERROR);
                send_store_is_late(reply)
            }
            // Without totals, the other metrics still show what is wrong.
            (Shows::Metrics(format), totals) => {
                budget.charge(units::METRICS + units::METRICS_SHARD * self.metrics.shards());
                self.metrics.note_cpu_time();
                let batch_memory = self.policy.batch_memory.used() as u64;
                let text = self.metrics.text(totals.as_ref(), batch_memory, format);
                reply.send(Status::Ok, Some(content_type(format)), &VARY, text.as_bytes())
            }
        }
    }

    fn health(&mut self, to: To<'_>) -> Status {
        match self.is_store_late() {
            true => refuse_for_store(to),
            false => to.reply.send_json(Status::Ok, br#"{"status":"healthy"}"#),
        }
    }

    fn report(&mut self, request: &Request<'_>, to: To<'_>) -> Answer {
        // The cost of finding out which format it requests.
        to.budget.charge(units::of_bytes(request.head_bytes(), units::ACCEPT_BYTE));
        let format = format_for(request);
        match request.method() {
            Method::Head => {
                Answer::Sent(to.reply.send_head(Status::Ok, content_type(format), &VARY))
            }
            _ => self.respond_with_totals(Shows::Metrics(format), to),
        }
    }

    fn reset(&mut self, request: &Request<'_>, to: To<'_>) -> Status {
        let refusal = match &self.policy.admin_token {
            Some(token) if bears(request.authorization(), token) => None,
            Some(_) => {
                let fields = [("WWW-Authenticate", "Bearer")];
                let sentence = "send the admin token as Authorization: Bearer";
                return to.reply.send_error(Status::Unauthorized, &fields, sentence);
            }
            None if !request.peer_is_loopback => Some(
                "send the reset from the server's own machine, or start the server with --admin-token-file",
            ),
            // To the server, every client behind a proxy on this machine is a loopback peer.
            None if request.may_be_forwarded() => Some(
                "send the reset over HTTP/1.1 and not through a proxy, or start the server with --admin-token-file",
            ),
            None if !request.names_server(&self.policy.host) => {
                Some("send the reset with a Host that names this server, such as localhost")
            }
            None => None,
        };
        if let Some(sentence) = refusal {
            return to.reply.send_error(Status::Forbidden, &[], sentence);
        }
        if self.is_store_late() {
            return refuse_for_store(to);
        }
        let settles_at = self.writer.tally().reset();
        if let Some(durable) = &mut self.durable {
            // This is at least the generation of the reset.
            durable.hold(to.held, &to.reply, settles_at, self.writer.tally().generation());
        }
        to.reply.send_json(Status::Ok, br#"{"status":"reset"}"#)
    }
}

/// The field of a `/metrics` response that names what its format depends on.
const VARY: [(&str, &str); 1] = [("Vary", "Accept")];

/// Returns the format of `/metrics` that a request prefers.
fn format_for(request: &Request<'_>) -> Format {
    match request.prefers(OPEN_METRICS, PROMETHEUS) {
        true => Format::OpenMetrics,
        false => Format::Prometheus,
    }
}

/// Returns the content type of a format of `/metrics`.
fn content_type(format: Format) -> &'static str {
    match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Format::Prometheus => "text/plain; version=0.0.4",
    }
}

/// Returns whether `authorization` is `Bearer` with the token. The time that this takes does not reveal how much
/// of the token is right.
fn bears(authorization: Option<&[u8]>, token: &[u8]) -> bool {
    const SCHEME: &[u8] = b"bearer ";
    let parts = authorization.and_then(|value| value.split_at_checked(SCHEME.len()));
    parts.is_some_and(|(scheme, found)| {
        scheme.eq_ignore_ascii_case(SCHEME) && bool::from(found.trim_ascii().ct_eq(token))
    })
}

/// Decodes an event that is not in the usual shape.
#[cold]
fn decode_unusual<'a>(body: &'a [u8], budget: &mut Budget) -> Result<Event<'a>, Refusal> {
    budget.charge(units::UNUSUAL + units::of_bytes(body.len(), units::UNUSUAL_BYTE));
    event::decode_unusual(body)
}

/// Refuses a request that the store would have to settle, or read totals for.
#[cold]
fn refuse_for_store(to: To<'_>) -> Status {
    to.budget.charge(units::ERROR);
    send_store_is_late(to.reply)
}

fn send_store_is_late(reply: Reply<'_>) -> Status {
    let sentence = "try again later: the store does not respond, so nothing can be acknowledged";
    reply.send_error(Status::ServiceUnavailable, &[("Retry-After", "1")], sentence)
}

/// Returns whether the target of a request exists and allows its method. If not, the size of its body does not matter.
fn knows(request: &Request<'_>) -> bool {
    match (&request.target, request.method()) {
        (Target::Path(path), Method::Options) => endpoint_at(path) != Endpoint::Other,
        (Target::Path(path), Method::Get | Method::Head) => methods(endpoint_at(path)) == READING,
        (Target::Path(path), Method::Post) => methods(endpoint_at(path)) == WRITING,
        // Only OPTIONS has this target.
        (Target::Server, _) => true,
        _ => false,
    }
}

/// Refuses a request that a page of another site could have made a browser send.
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
    /// Responds to a request, or reports that totals must be read first.
    #[inline]
    fn respond(&mut self, request: &Request<'_>, endpoint: Endpoint, to: To<'_>) -> Answer {
        match (request.method(), endpoint) {
            (Method::Post, Endpoint::Event)
                if !request.is_cross_site() && !request.is_encoded() =>
            {
                self.events += 1;
                self.last = Kind::EVENT;
                Answer::Sent(self.event(request.body(), to))
            }
            _ => {
                let answer = self.respond_otherwise(request, endpoint, to);
                if let Answer::Sent(_) = answer {
                    self.note_other(Kind { endpoint, method: request.method() });
                }
                answer
            }
        }
    }

    /// Notes a response to a request that is not an event.
    fn note_other(&mut self, kind: Kind) {
        self.last = kind;
        self.others.push(kind);
    }

    /// Responds to a request that is not an event.
    #[inline(never)]
    fn respond_otherwise(
        &mut self,
        request: &Request<'_>,
        endpoint: Endpoint,
        to: To<'_>,
    ) -> Answer {
        // Most responses below are errors, or cost about as much.
        to.budget.charge(units::ERROR);
        let reply = to.reply;
        Answer::Sent(match (request.method(), endpoint) {
            (Method::Post, _) if request.is_cross_site() => refuse_cross_site(reply),
            (Method::Post, Endpoint::Event) => refuse_encoded(reply),
            (Method::Unknown, _) => {
                let sentence = "use GET, HEAD, POST, or OPTIONS";
                reply.send_error(Status::NotImplemented, &[("Allow", METHODS)], sentence)
            }
            (Method::Get | Method::Head, Endpoint::Stats) => {
                return self.respond_with_totals(Shows::Stats, To { reply, ..to });
            }
            (Method::Get | Method::Head, Endpoint::Health) => self.health(To { reply, ..to }),
            (Method::Get | Method::Head, Endpoint::Metrics) => {
                return self.report(request, To { reply, ..to });
            }
            (Method::Get | Method::Head, Endpoint::Description) => {
                to.budget.charge_bytes(DESCRIPTION.len(), units::PAGE_BYTES);
                reply.send_json(Status::Ok, DESCRIPTION.as_bytes())
            }
            (Method::Get | Method::Head, Endpoint::Page) => {
                to.budget.charge_bytes(Page::BYTES, units::PAGE_BYTES);
                self.page.send(reply)
            }
            (Method::Post, Endpoint::Reset) => self.reset(request, To { reply, ..to }),
            (_, Endpoint::Other) => match request.target {
                // Only OPTIONS has this target.
                Target::Server => reply.send(Status::NoContent, None, &[("Allow", METHODS)], b""),
                Target::Tunnel => {
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
mod tests;
