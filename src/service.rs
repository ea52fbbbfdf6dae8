//! Method and path to action: the only place that knows both `http` and `tally`.

use crate::event;
use crate::http::{Date, Handler, HeadCache, Method, Prepared, Reply, Request, Target};
use crate::metrics::{Endpoint, FAILURES, Reporter};
use crate::page::Page;
use crate::tally::{Totals, UsersFull, Writer};
use serde::Serialize;
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
    /// The token that a reset needs; without one, loopback peers may reset.
    pub admin_token: Option<Arc<[u8]>>,
    /// The host that the server was told to bind, which a `Host` may name besides loopback.
    pub host: String,
}

/// The totals as they are sent and printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    total_requests: u64,
    unique_users: u64,
    sum: f64,
    avg: f64,
}

/// The totals as one JSON object.
pub fn stats_json(totals: &Totals) -> String {
    let stats = Stats {
        total_requests: totals.total_requests,
        unique_users: totals.unique_users,
        sum: totals.sum,
        avg: totals.avg(),
    };
    // A struct of finite numbers has a JSON form.
    serde_json::to_string(&stats).unwrap_or_default()
}

/// The resource at a path.
fn endpoint_at(path: &[u8]) -> Endpoint {
    match path {
        b"/event" => Endpoint::Event,
        b"/stats" => Endpoint::Stats,
        b"/health" => Endpoint::Health,
        b"/reset" => Endpoint::Reset,
        b"/metrics" => Endpoint::Metrics,
        b"/" => Endpoint::Page,
        _ => Endpoint::Other,
    }
}

/// The value of `Allow` for a resource.
fn methods(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Event | Endpoint::Reset => "POST, OPTIONS",
        Endpoint::Stats | Endpoint::Health | Endpoint::Metrics | Endpoint::Page => {
            "GET, HEAD, OPTIONS"
        }
        Endpoint::Other => METHODS,
    }
}

/// The value of `Allow` for the server as a whole.
const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// Answers the requests of one shard.
#[derive(Debug)]
pub struct Service {
    writer: Writer,
    metrics: Reporter,
    /// Requests answered since the last turn was noted.
    answered: u64,
    policy: Policy,
    date: Date,
    head_cache: HeadCache,
    acknowledged: Prepared,
    page: Page,
}

impl Service {
    /// A service that counts with `writer` and reports to `metrics`, at a Unix time in seconds.
    pub fn new(writer: Writer, metrics: Reporter, policy: Policy, unix_seconds: u64) -> Self {
        let date = Date::from_unix(unix_seconds);
        let acknowledged = match policy.dialect {
            Dialect::Original => Prepared::new(200, None, "", &date),
            Dialect::Fasterapi => {
                Prepared::new(201, Some("application/json"), r#"{"status":"ok"}"#, &date)
            }
        };
        Service {
            writer,
            metrics,
            answered: 0,
            policy,
            date,
            head_cache: HeadCache::default(),
            acknowledged,
            page: Page::new(),
        }
    }

    /// Sets the date of answers from a Unix time in seconds.
    pub fn set_time(&mut self, unix_seconds: u64) {
        let date = Date::from_unix(unix_seconds);
        if date != self.date {
            self.acknowledged.set_date(&date);
            self.date = date;
        }
    }

    /// Makes everything counted so far visible. To be called before the answers of a batch of
    /// requests leave.
    #[inline]
    pub fn commit(&mut self) {
        self.writer.publish();
    }

    /// The numbers of this shard.
    #[inline]
    pub fn metrics(&self) -> &Reporter {
        &self.metrics
    }

    /// Notes that what was received together is answered, so long after it was received.
    #[inline]
    pub fn note_turn(&mut self, took: Duration) {
        if self.answered > 0 {
            self.metrics.note_turn(self.answered, took);
            self.answered = 0;
        }
    }

    fn event(&mut self, body: &[u8], reply: Reply<'_>) -> u16 {
        let event = match event::decode(body) {
            Ok(event) => event,
            Err(refusal) => {
                self.metrics.note_failure(refusal as usize);
                return reply.send_error(400, &[], refusal.sentence());
            }
        };
        match self.writer.count(event.user.as_bytes(), event.value) {
            Ok(()) => reply.send_prepared(&self.acknowledged),
            Err(UsersFull) => {
                self.metrics.note_failure(FAILURES.len() - 1);
                let sentence = "raise --max-users, or reset: no further user can be held";
                reply.send_error(507, &[], sentence)
            }
        }
    }

    fn stats(&mut self, reply: Reply<'_>) -> u16 {
        // Events before this request on the same connection may not be published yet.
        self.writer.publish();
        let totals = self.writer.tally().totals();
        reply.send_json(200, stats_json(&totals).as_bytes())
    }

    fn report(&mut self, reply: Reply<'_>) -> u16 {
        self.writer.publish();
        let text = self.metrics.text(&self.writer.tally().totals());
        reply.send(200, Some("text/plain; version=0.0.4"), &[], text.as_bytes())
    }

    fn reset(&mut self, request: &Request<'_>, reply: Reply<'_>) -> u16 {
        if let Some(token) = &self.policy.admin_token {
            if !bears(request.authorization(), token) {
                let fields = [("WWW-Authenticate", "Bearer")];
                return reply.send_error(
                    401,
                    &fields,
                    "send the admin token as Authorization: Bearer",
                );
            }
        } else if !request.peer_is_loopback {
            let sentence =
                "reset from the server's own machine, or start it with --admin-token-file";
            return reply.send_error(403, &[], sentence);
        } else if !self.is_first_party(request) {
            return reply.send_error(403, &[], "send the reset from a client, not from a web page");
        }
        self.writer.tally().reset();
        reply.send_json(200, br#"{"status":"reset"}"#)
    }

    /// Whether no web page of another site can have made a browser send this: not with a
    /// foreign `Origin` or `Sec-Fetch-Site`, and not through a name that was made to point here.
    fn is_first_party(&self, request: &Request<'_>) -> bool {
        let host = request.host;
        let origin_is_ours = request.origin().is_none_or(|origin| {
            origin.strip_prefix(b"http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host))
        });
        let site_is_ours =
            request.fetch_site().is_none_or(|site| site == b"same-origin" || site == b"none");
        origin_is_ours && site_is_ours && self.names_this_server(host)
    }

    fn names_this_server(&self, host: &[u8]) -> bool {
        let Ok(host) = std::str::from_utf8(host) else {
            return false;
        };
        let without_port = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or(""),
            None => host.split(':').next().unwrap_or(""),
        };
        let is_loopback_address =
            without_port.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        without_port.is_empty()
            || is_loopback_address
            || without_port.eq_ignore_ascii_case("localhost")
            || without_port.eq_ignore_ascii_case(&self.policy.host)
    }
}

/// Whether `authorization` is `Bearer` and the token, in time that does not tell how much of it
/// is right.
fn bears(authorization: Option<&[u8]>, token: &[u8]) -> bool {
    const SCHEME: &[u8] = b"bearer ";
    authorization.is_some_and(|value| {
        value.len() > SCHEME.len()
            && value[..SCHEME.len()].eq_ignore_ascii_case(SCHEME)
            && bool::from(value[SCHEME.len()..].trim_ascii().ct_eq(token))
    })
}

impl Handler for Service {
    fn date(&self) -> &Date {
        &self.date
    }

    fn head_cache(&mut self) -> &mut HeadCache {
        &mut self.head_cache
    }

    fn wants_body(&self, method: Method, target: &Target<'_>) -> bool {
        let Target::Path(path) = target else {
            return false;
        };
        method == Method::Post && endpoint_at(path) == Endpoint::Event
    }

    #[inline]
    fn handle(&mut self, request: &Request<'_>, reply: Reply<'_>) {
        let endpoint = match &request.target {
            Target::Path(path) => endpoint_at(path),
            Target::Server | Target::Tunnel => Endpoint::Other,
        };
        let status = self.respond(request, endpoint, reply);
        self.metrics.note_response(request.method(), endpoint, status);
        self.answered += 1;
    }

    fn refused(&mut self, status: u16) {
        self.metrics.note_response(Method::Unknown, Endpoint::Other, status);
    }
}

impl Service {
    /// Answers a request. Returns the status.
    #[inline]
    fn respond(&mut self, request: &Request<'_>, endpoint: Endpoint, reply: Reply<'_>) -> u16 {
        if request.method() == Method::Unknown {
            return reply.send_error(501, &[("Allow", METHODS)], "use GET, HEAD, POST or OPTIONS");
        }
        match (request.method(), endpoint) {
            (method, Endpoint::Other) => match request.target {
                Target::Server if method == Method::Options => {
                    reply.send(204, None, &[("Allow", METHODS)], b"")
                }
                Target::Server | Target::Tunnel => {
                    reply.send_error(405, &[("Allow", METHODS)], "this server is no proxy")
                }
                Target::Path(_) => {
                    let sentence = "use /event, /stats, /health, /reset, /metrics or /";
                    reply.send_error(404, &[], sentence)
                }
            },
            (Method::Post, Endpoint::Event) => self.event(request.body, reply),
            (Method::Get | Method::Head, Endpoint::Stats) => self.stats(reply),
            (Method::Get | Method::Head, Endpoint::Health) => {
                reply.send_json(200, br#"{"status":"healthy"}"#)
            }
            (Method::Get | Method::Head, Endpoint::Metrics) => self.report(reply),
            (Method::Get | Method::Head, Endpoint::Page) => self.page.send(reply),
            (Method::Post, Endpoint::Reset) => self.reset(request, reply),
            (Method::Options, endpoint) => {
                reply.send(204, None, &[("Allow", methods(endpoint))], b"")
            }
            (_, endpoint) => {
                let fields = [("Allow", methods(endpoint))];
                reply.send_error(405, &fields, "use a method that Allow names")
            }
        }
    }
}
