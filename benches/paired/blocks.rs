//! One block: two servers, started for it and loaded alike in the order A B B A.

use super::options::Options;
use super::server::{Places, Server};
use super::verdict::log_ratio;
use ringtally::failure::Failure;
use serde_json::Value;
use std::path::Path;

/// The measurements of one load.
#[derive(Clone, Copy)]
pub(crate) struct Leg {
    /// The server's CPU seconds per million events, which is microseconds per event.
    pub(crate) cpu: f64,
    pub(crate) requests_per_s: f64,
    pub(crate) p99_us: f64,
    pub(crate) client_limited: bool,
}

/// Legs in the order A B B A.
pub(crate) struct Block(pub(crate) [Leg; 4]);

impl Block {
    /// Starts new servers for every block. The place of a process's memory is fixed for its life, and
    /// would be a difference between the sides that no number of blocks averages out. It costs a
    /// tenth of a second.
    pub(crate) fn run(
        a: &Path,
        b: &Path,
        options: &Options,
        places: &Places,
    ) -> Result<Block, Failure> {
        let a = Server::start(a, &places.server_cpus, &[])?;
        let b = Server::start(b, &places.server_cpus, &[])?;
        let leg = |server: &Server| leg(server, options, places);
        let block = Block([leg(&a)?, leg(&b)?, leg(&b)?, leg(&a)?]);
        a.stop()?;
        b.stop()?;
        Ok(block)
    }

    /// The logarithm of B's figure over A's.
    pub(crate) fn log_ratio(&self, figure: fn(&Leg) -> f64) -> f64 {
        log_ratio(self.0.each_ref().map(figure))
    }
}

/// Runs one load.
fn leg(server: &Server, options: &Options, places: &Places) -> Result<Leg, Failure> {
    let before = server.cpu_ns()?;
    let shape = [
        options.requests.to_string(),
        options.connections.to_string(),
        format!("--pipeline={}", options.pipeline),
        format!("--users={}", options.users()),
    ];
    let report = server.load(options.client(), &places.client_cpus, &shape)?;
    let after = server.cpu_ns()?;
    let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
    let leg = (|| {
        Some(Leg {
            cpu: (after - before) as f64 / 1e3 / number(&report["acknowledged"])?,
            requests_per_s: number(&report["requests_per_s"])?,
            p99_us: number(&report["latency_us"]["p99"])?,
            client_limited: report["client_limited"] == true,
        })
    })();
    leg.filter(|leg| leg.cpu > 0.0)
        .ok_or_else(|| Failure::Environment(format!("a load on {} measured nothing", server.name)))
}
