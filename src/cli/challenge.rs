//! `ringtally challenge`.

use super::load::LoadTuning;
use super::serve::ServerTuning;
use super::values::{CpuList, cpu_list};
use crate::failure::Failure;
use crate::{challenge, load, topology};
use clap::Args;

pub(super) const LONG_ABOUT: &str = "\
Run a server and a client on CPUs of their own and print one report

Starts a server on a free port of 127.0.0.1, runs the client against it, checks
the totals, and stops the server. The report adds the server's CPU time per
request and its peak memory. By default, the server gets half of the allowed
cores, and the odd one; the client gets the others.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally challenge
  ringtally challenge 1M 8                        latency while not saturated
  ringtally challenge 5M 64 --pipeline 16
  ringtally challenge --duration 1m -c 100:5000   connections ramp up
  ringtally challenge 100M 4 --batch 1000
  ringtally challenge --store tally.redb          every event durable
  ringtally challenge --cpus 0-3 --client-cpus 4-7 --json -";

/// The flags of `challenge`.
#[derive(Args, Debug)]
pub struct ChallengeArgs {
    /// CPUs of the server, such as 0-3; one shard each [default: half of the cores]
    ///
    /// The list is in taskset syntax, and within the affinity mask of this process. If only the
    /// client's CPUs are named, the server gets the others.
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// CPUs of the client, in taskset syntax [default: those that the server does not use]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    client_cpus: Option<CpuList>,
    /// The client's
    #[command(flatten, next_help_heading = "Client options")]
    load: LoadTuning,
    /// The server's
    #[command(flatten, next_help_heading = "Server options")]
    server: ServerTuning,
}

impl ChallengeArgs {
    /// Checks the flags against the machine. The client's configuration is complete once the
    /// server has reported its address.
    pub fn into_config(self) -> Result<challenge::Config, Failure> {
        let output = self.load.output()?;
        let shape = self.load.shape()?;
        self.load.check_batches(&shape)?;
        let batch_bytes_max = self.load.batch_bytes_max(&shape);
        if batch_bytes_max > self.server.max_batch() as u64 {
            return Err(Failure::Usage(format!(
                "a batch has up to {batch_bytes_max} bytes, and --max-batch is {}: use a smaller --batch, or raise \
                 --max-batch",
                self.server.max_batch()
            )));
        }
        let (server_cpus, client_cpus) = divide_cpus(self.cpus, self.client_cpus)?;
        self.server.check_store_is_empty()?;
        let server_flags = self.server.to_flags();
        let command = command(&self.load, &self.server, [&server_cpus, &client_cpus]);
        let settings = self.server.settings().into_iter();
        let settings = settings.map(|(flag, value)| (flag.replace('-', "_"), value)).collect();
        let of_server = server_cpus.clone();
        let load = self.load;
        Ok(challenge::Config {
            server_flags,
            server_cpus,
            drain_timeout: self.server.drain_timeout(),
            load: Box::new(move |server| load::Config {
                command,
                server_settings: Some(settings),
                ..load.into_config(shape, server, Some(client_cpus), Some(of_server))
            }),
            output,
        })
    }
}

/// The command that makes a run again, on the same CPUs. A password of a store is not in it: it is in the
/// environment.
fn command(load: &LoadTuning, server: &ServerTuning, cpus: [&[usize]; 2]) -> Vec<String> {
    let mut command = vec!["ringtally".to_owned(), "challenge".to_owned()];
    command.extend(load.to_flags());
    for (flag, cpus) in ["--cpus", "--client-cpus"].into_iter().zip(cpus) {
        command.extend([flag.to_owned(), topology::format_cpu_list(cpus)]);
    }
    let of_server = server.to_flags();
    command.extend(of_server.iter().map(|flag| flag.to_string_lossy().into_owned()));
    command
}

/// The server's CPUs and the client's: those that were named, and for the side that named none, those
/// that the other does not use.
fn divide_cpus(
    server: Option<CpuList>,
    client: Option<CpuList>,
) -> Result<(Vec<usize>, Vec<usize>), topology::Error> {
    let allowed = topology::choose(None, &topology::allowed_cpus())?;
    let choose = |list: Option<CpuList>| {
        list.map(|list| topology::choose(Some(&list.0), &allowed)).transpose()
    };
    let without = |taken: &[usize]| {
        let rest: Vec<usize> = allowed.iter().copied().filter(|cpu| !taken.contains(cpu)).collect();
        let rest = if rest.is_empty() { allowed.clone() } else { rest };
        topology::alike(&rest, taken, &topology::core_kind)
    };
    Ok(match (choose(server)?, choose(client)?) {
        (Some(server), Some(client)) => (server, client),
        (Some(server), None) => (server.clone(), without(&server)),
        (None, Some(client)) => (without(&client), client),
        (None, None) => topology::divide(&allowed, topology::siblings, topology::core_kind),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Challenge {
        #[command(flatten)]
        args: ChallengeArgs,
    }

    #[test]
    fn the_command_of_a_run_is_complete_and_without_passwords() {
        let text = "challenge 2k 8 --spin-us 0 --coalesce-us 200 --dialect fasterapi --timeout 3s --watch --shards 3 \
                    --store postgres://u:s3cret@h/d";
        let first = Challenge::try_parse_from(text.split_whitespace()).unwrap();
        let of = |args: &ChallengeArgs| command(&args.load, &args.server, [&[0, 1], &[3]]);
        let told = of(&first.args);
        for flags in [
            "ringtally challenge --requests 2000 --connections 8",
            "--cpus 0,1 --client-cpus 3",
            "--spin-us 0",
            "--coalesce-us 200",
            "--dialect fasterapi",
            "--timeout 3s",
            "--watch",
            "--shards 3",
            "--max-users 10000000",
        ] {
            assert!(told.join(" ").contains(flags), "{flags}: {told:?}");
        }
        assert!(!told.join(" ").contains("s3cret"), "{told:?}");
        assert!(!format!("{:?}", first.args.server.settings()).contains("s3cret"));
        let again = Challenge::try_parse_from(&told[1..]).unwrap();
        assert_eq!(of(&again.args), told);
    }
}
