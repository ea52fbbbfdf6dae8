//! `ringtally challenge`.

use super::load::LoadTuning;
use super::serve::ServerTuning;
use super::values::{CpuList, cpu_list};
use crate::failure::Failure;
use crate::{challenge, topology};
use clap::Args;

pub(super) const HELP: &str = "Examples:
  ringtally challenge
  ringtally challenge 5000000 64 --pipeline 16
  ringtally challenge --cpus 0-3 --client-cpus 4-7 --json -";

/// The flags of `challenge`.
#[derive(Args, Debug)]
pub struct ChallengeArgs {
    /// The client's
    #[command(flatten)]
    load: LoadTuning,
    /// CPUs of the client, in taskset syntax [default: the half that the server has not]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    client_cpus: Option<CpuList>,
    /// The server's
    #[command(flatten)]
    server: ServerTuning,
}

impl ChallengeArgs {
    /// Checks the flags against the machine. What the client is to do is known once the server
    /// says where it listens.
    pub fn into_config(self) -> Result<challenge::Config, Failure> {
        let allowed = topology::allowed_cpus();
        let given = |list: &Option<CpuList>| {
            let wanted = list.as_ref().map(|list| list.0.as_slice());
            wanted
                .map(|wanted| topology::choose(Some(wanted), &allowed))
                .transpose()
                .map_err(Failure::Usage)
        };
        let without = |taken: &[usize]| {
            let rest: Vec<usize> =
                allowed.iter().copied().filter(|cpu| !taken.contains(cpu)).collect();
            if rest.is_empty() { allowed.clone() } else { rest }
        };
        let (server_cpus, client_cpus) =
            match (given(&self.server.cpus)?, given(&self.client_cpus)?) {
                (Some(server), Some(client)) => (server, client),
                (Some(server), None) => (server.clone(), without(&server)),
                (None, Some(client)) => (without(&client), client),
                (None, None) => topology::divide(&allowed, topology::siblings),
            };
        let output = self.load.output()?;
        let server_flags = self.server.to_flags();
        let of_server = server_cpus.clone();
        let load = self.load;
        Ok(challenge::Config {
            server_flags,
            server_cpus,
            load: Box::new(move |server| {
                (load.into_config(server, Some(client_cpus), Some(of_server), true), output)
            }),
        })
    }
}
