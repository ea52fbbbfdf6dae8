//! `ringtally challenge`.

use super::load::{HEADINGS as CLIENT_HEADINGS, LoadTuning};
use super::serve::{HEADINGS as SERVER_HEADINGS, ServerTuning};
use super::values::{CpuList, count, cpu_list, duration};
use crate::challenge::{
    self, Config, DEFAULT_ROWS, JudgeConfig, MTU_MAX, MTU_MIN, OwnConfig, ROUNDS_MAX, Row,
    SERVERS_MAX, ServerCommand, Several,
};
use crate::failure::Failure;
use crate::{load, topology};
use clap::{Arg, Args};
use std::collections::BTreeSet;
use std::time::Duration;

pub(super) const LONG_ABOUT: &str = "\
Run a server and a client on separate CPUs and print one report

Starts a server on a free port of 127.0.0.1, runs the client against it, checks
the totals, and stops the server. The report adds the server's CPU time per
request and its peak memory. By default, the server gets half of the allowed
cores, and the odd one; the client gets the others.

With --server, the server is any command that listens on a port of 127.0.0.1: a
server written for the challenge, in any language. It gets its own CPUs, process
group, and, if possible, cgroup. It is ready once /health or /stats responds
with 200. However the challenge ends, the server is stopped with SIGTERM, and
with SIGKILL after 5 s, and so is everything that it started.

With several servers, each round starts them one after the other, warms each
one up, and sends it every load of --rows. The order is reversed in every other
round. The table shows medians over the rounds, and ratios to the first server
in the same round with 95% intervals. A server is better or worse if the whole
interval is more than 3% away from the first server. A server that is not exact
gets no rank, and the table shows what is wrong. Figures of runs that had
errors or did not saturate the server are void.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally challenge
  ringtally challenge 1M 8                        latency while not saturated
  ringtally challenge 5M 64 --pipeline 16
  ringtally challenge --duration 1m -c 100:5000   connections ramp up
  ringtally challenge 100M 4 --batch 1000
  ringtally challenge --store tally.redb          every event durable
  ringtally challenge --cpus 0-3 --client-cpus 4-7 --json -
  ringtally challenge --server 'go run ./my-server --port {port}'
  ringtally challenge --server mine='./mine {port}' --server ringtally
  ringtally challenge --server './a {port}' --rows rate:20000,near:90 --rounds 7

ringtally challenge --help lists all flags, and ringtally serve --help explains
those of the server.

Exit codes: 0 every server is exact, every event was acknowledged, and no
threshold failed, 1 otherwise, 2 bad usage, 3 a server does not start, or the
client cannot run here.";

/// The flags of `challenge`.
#[derive(Args, Debug)]
pub struct ChallengeArgs {
    /// CPUs of the server [default: half of the cores]
    ///
    /// Each gets one shard. The list is in taskset syntax, such as 0-3,8, and within the affinity mask of this process. If only the
    /// client's CPUs are named, the server gets the others.
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// CPUs of the client [default: the others]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    client_cpus: Option<CpuList>,
    #[command(flatten, next_help_heading = "Judging other servers")]
    judge: JudgeArgs,
    /// The client's
    #[command(flatten)]
    load: LoadTuning,
    /// The server's
    #[command(flatten)]
    server: ServerTuning,
}

/// The client's flags that a newcomer uses. The short help hides all other flags of the client.
const NEWCOMERS: [&str; 9] = [
    "requests_flag",
    "connections",
    "duration",
    "rate",
    "pipeline",
    "fail_if",
    "json",
    "html",
    "quiet",
];

/// Puts the server's flags under one heading, and keeps what a newcomer does not use out of the short help.
pub(super) fn present(flag: Arg) -> Arg {
    let heading = flag.get_help_heading().unwrap_or_default();
    if SERVER_HEADINGS.contains(&heading) {
        return flag.help_heading("Ringtally's own server").hide_short_help(true);
    }
    let is_clients = CLIENT_HEADINGS.contains(&heading);
    let is_hidden = is_clients && !NEWCOMERS.contains(&flag.get_id().as_str());
    flag.hide_short_help(is_hidden)
}

/// The servers to judge, and the rows.
#[derive(Args, Debug)]
struct JudgeArgs {
    /// Server to judge; may be repeated
    ///
    /// {port}, {host}, {threads}, and {cpus} in COMMAND are replaced by the port and the address to listen on, the
    /// number of CPUs, and their list; the environment has them as PORT, HOST, THREADS, and CPUS. Words are split as
    /// in a shell, with its quotes, and nothing is expanded: for more, write sh -c 'exec ...'. ringtally is this
    /// program's own server, with the flags under "Ringtally's own server", and those that follow it in COMMAND.
    #[arg(long, value_name = "[NAME=]COMMAND")]
    server: Vec<ServerCommand>,
    /// Rows of a comparison
    ///
    /// By default, saturated,near:80,near:90,stats. The rows are:
    ///   saturated   as many requests as a server takes
    ///   rate:N      N requests per second, with the score of HttpArena,
    ///               a public benchmark
    ///   near:P      P percent of the server's own capacity, which is
    ///               found first
    ///   close       a connection per request
    ///   pipeline:N  N requests in flight per connection
    ///   batch:N     batches of N events, if the server takes them
    ///   stats       saturated, while /stats is polled: a server that
    ///               shows impossible totals is wrong
    ///   pause       the first response after a pause
    /// Each run lasts 2s, or --duration, or REQUESTS, over 64 connections
    /// unless WORKERS is given.
    #[arg(
        long,
        value_name = "ROW,...",
        value_delimiter = ',',
        requires = "server",
        verbatim_doc_comment
    )]
    rows: Vec<Row>,
    /// Rounds of a comparison [default: 5]
    ///
    /// Each has every server and row. Fewer than 5 do not have intervals.
    #[arg(long, value_name = "N", value_parser = count::<u32>(1..=ROUNDS_MAX), requires = "server")]
    rounds: Option<u32>,
    /// Time to get ready
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    start_timeout: Duration,
    /// MTU of loopback, in bytes
    ///
    /// The challenge then runs in its own network namespace. Packets of the usual loopback device have up to
    /// 65536 bytes, a network card's up to 1500. This needs unshare, ip, and either root or
    /// user namespaces.
    #[arg(long, value_name = "BYTES", value_parser = count::<u64>(MTU_MIN..=MTU_MAX))]
    mtu: Option<u64>,
}

/// The default length of a run, and the default number of connections, in a comparison.
const RUN: Duration = Duration::from_secs(2);
const CONNECTIONS: u64 = 64;
/// The default number of rounds in a comparison, which is the fewest that give an interval.
const ROUNDS: u32 = 5;

impl ChallengeArgs {
    /// Checks the flags against the machine. With `--mtu`, the process continues in a network namespace.
    pub fn into_config(self) -> Result<Config, Failure> {
        if let Some(mtu) = self.judge.mtu {
            challenge::enter_network(mtu)?;
        }
        match self.judge.server.is_empty() {
            true => Ok(Config::Own(Box::new(self.into_own()?))),
            false => self.into_judge(),
        }
    }

    /// Returns the challenge of other servers.
    fn into_judge(mut self) -> Result<Config, Failure> {
        let judge = &self.judge;
        let is_one = judge.server.len() == 1 && judge.rows.is_empty() && judge.rounds.is_none();
        check_names(&judge.server)?;
        let rounds = judge.rounds.unwrap_or(ROUNDS);
        let rows = if judge.rows.is_empty() { DEFAULT_ROWS.to_vec() } else { judge.rows.clone() };
        if !is_one {
            self.load.default_shape(RUN, CONNECTIONS);
        }
        let outputs = match is_one {
            true => (Some(self.load.output()?), None),
            false => (None, Some(self.load.places()?)),
        };
        let shape = self.load.shape()?;
        if !is_one {
            self.load.check_comparable(&shape)?;
            rows.iter().try_for_each(|row| self.load.check_batches_of(row.batch(), &shape))?;
        }
        self.load.check_batches(&shape)?;
        self.load.check_thresholds(&shape, false, true)?;
        let cpus = divide_cpus(self.cpus.clone(), self.client_cpus.clone())?;
        if judge.server.iter().any(ServerCommand::is_own) {
            self.server.check_store_is_empty()?;
        }
        let command = self.judge_command([&cpus.0, &cpus.1]);
        let flags = self.server.to_flags();
        let servers = self.judge.server;
        let (server_cpus, client_cpus) = cpus;
        let nowhere = load::Server::parse("http://127.0.0.1:1")?;
        let (of_client, of_server) = (Some(client_cpus.clone()), Some(server_cpus.clone()));
        let load =
            load::Config { command, ..self.load.into_config(shape, nowhere, of_client, of_server) };
        let tuning = flags.iter().map(|flag| flag.to_string_lossy().into_owned()).collect();
        let start_max = self.judge.start_timeout;
        let config =
            Box::new(JudgeConfig { servers, server_cpus, client_cpus, start_max, tuning, load });
        Ok(match outputs {
            (Some(output), _) => Config::One(config, output),
            (None, Some(output)) => {
                Config::Several(Box::new(quiet(*config)), Several { rows, rounds, output })
            }
            (None, None) => unreachable!("one of them was opened"),
        })
    }

    /// Returns the command that repeats a challenge of other servers.
    fn judge_command(&self, cpus: [&[usize]; 2]) -> Vec<String> {
        let mut command = command(&self.load, &self.server, cpus);
        let JudgeArgs { server, rows, rounds, start_timeout, mtu } = &self.judge;
        let mut add = |flag: &str, value: Option<String>| {
            command.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        };
        server.iter().for_each(|server| add("--server", Some(server.to_string())));
        let rows: Vec<String> = rows.iter().map(ToString::to_string).collect();
        add("--rows", Some(rows.join(",")).filter(|rows| !rows.is_empty()));
        add("--rounds", rounds.map(|rounds| rounds.to_string()));
        add("--start-timeout", Some(humantime::format_duration(*start_timeout).to_string()));
        add("--mtu", mtu.map(|mtu| mtu.to_string()));
        command
    }

    /// Returns the challenge of this program's own server. The client's configuration is complete once the server has reported
    /// its address.
    fn into_own(self) -> Result<OwnConfig, Failure> {
        let output = self.load.output()?;
        let shape = self.load.shape()?;
        self.load.check_batches(&shape)?;
        self.load.check_thresholds(&shape, false, true)?;
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
        Ok(OwnConfig {
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

/// Turns off the progress output of each run in a comparison.
fn quiet(config: JudgeConfig) -> JudgeConfig {
    let load = load::Config { progress: load::Show::Nothing, ..config.load };
    JudgeConfig { load, ..config }
}

/// Checks that there are not too many servers, and that each has its own name.
fn check_names(servers: &[ServerCommand]) -> Result<(), Failure> {
    if servers.len() > SERVERS_MAX {
        return Err(Failure::Usage(format!(
            "{} servers are named, and at most {SERVERS_MAX} can be: compare them in groups",
            servers.len()
        )));
    }
    if servers.iter().any(ServerCommand::names_store) {
        return Err(Failure::Usage(
            "pass --store as a flag of challenge: it is then checked to be empty, and its password is shown \
             nowhere"
                .into(),
        ));
    }
    let mut names = BTreeSet::new();
    match servers.iter().find(|server| !names.insert(&server.name)) {
        None => Ok(()),
        Some(server) => Err(Failure::Usage(format!(
            "two servers have the name {}: write NAME=COMMAND for one of them",
            server.name
        ))),
    }
}

/// Returns the command that repeats a run on the same CPUs. The password of a store is not in the command, but in
/// the environment.
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

/// Returns the server's CPUs and the client's: the named ones or, for a side without a list, the CPUs that the other side does
/// not use.
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
