//! The cost of a group on PostgreSQL, measured on this machine with the released program that `RINGTALLY_PROGRAM` names. The
//! results go to the file that `RINGTALLY_FIGURES` names.

use super::postgres::Postgres;
use crate::world::{Server, output_within, text};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(300);

fn program() -> Command {
    Command::new(std::env::var("RINGTALLY_PROGRAM").unwrap())
}

fn serve(cpu: &str, store: Option<&str>) -> Server {
    let mut command = program();
    command.args(["serve", "--port", "0", "--cpus", cpu]);
    if let Some(url) = store {
        command.args(["--store", url]);
    }
    Server::start_command(command)
}

/// Runs a load, and checks that every event is acknowledged. Returns its report.
fn load(server: &Server, flags: &str) -> Value {
    let mut command = program();
    command.args(["load", "--cpus", "1", "--quiet", "--json", "-", "--url", &server.url()]);
    let output = output_within(command.args(flags.split(' ')), PATIENCE);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Without a reset, the load cannot distinguish its own users.
    let is_exact = report["verdict"] == "exact" || flags.contains("--no-reset");
    let is_complete = report["acknowledged"] == report["requests"] && report["unknown"] == 0;
    assert!(is_exact && is_complete, "{}", text(&output.stderr));
    report
}

/// Returns the CPU seconds of a process and its ended children.
pub(crate) fn cpu_s(pid: u32) -> f64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Fields 14 to 17 of proc_pid_stat(5), in ticks.
    let ticks: f64 = fields[11..15].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// The cost of one run.
struct Cost {
    requests_per_s: f64,
    server_us: f64,
    database_us: f64,
    transactions_per_s: f64,
    p99_us: f64,
}

fn transactions(database: &Postgres) -> f64 {
    // Statistics are written with a delay.
    std::thread::sleep(Duration::from_secs(2));
    let sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'";
    database.sql(sql).parse().unwrap()
}

fn measure(server: &Server, database: Option<&Postgres>, flags: &str) -> Cost {
    let before = database.map_or(0.0, transactions);
    let (own, its) = (cpu_s(server.pid()), database.map_or(0.0, Postgres::cpu_s));
    let started = Instant::now();
    let report = load(server, flags);
    let elapsed_s = started.elapsed().as_secs_f64();
    let (own, its) = (cpu_s(server.pid()) - own, database.map_or(0.0, Postgres::cpu_s) - its);
    let requests = report["requests"].as_f64().unwrap();
    Cost {
        requests_per_s: report["requests_per_s"].as_f64().unwrap(),
        server_us: own * 1e6 / requests,
        database_us: its * 1e6 / requests,
        transactions_per_s: (database.map_or(0.0, transactions) - before) / elapsed_s,
        p99_us: report["latency_us"]["p99"].as_f64().unwrap(),
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Measures server CPU per request of known users, alternately without a database and with it.
fn known_users(database: &Postgres, pairs: usize) -> Value {
    let (mut ratios, mut costs, mut without_rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        let run = |store: Option<&Postgres>| {
            let server = serve("0", store.map(|store| store.url("")).as_deref());
            load(&server, "200000 1000");
            measure(&server, store, "600000 1000 --no-reset --user-prefix user_")
        };
        let (without, with) = (run(None), run(Some(database)));
        ratios.push(with.server_us / without.server_us);
        without_rates.push(without.requests_per_s);
        costs.push(with);
    }
    let of = |get: fn(&Cost) -> f64| median(costs.iter().map(get).collect());
    json!({
        "server_cpu_ratio": median(ratios.clone()),
        "server_cpu_ratios": ratios,
        "requests_per_s_without": median(without_rates),
        "requests_per_s": of(|cost| cost.requests_per_s),
        "server_cpu_us": of(|cost| cost.server_us),
        "database_cpu_us": of(|cost| cost.database_us),
        "transactions_per_s": of(|cost| cost.transactions_per_s),
        "p99_us": of(|cost| cost.p99_us),
    })
}

/// Measures transactions per second at several event rates.
fn transactions_by_rate(database: &Postgres) -> Value {
    let server = serve("0", Some(&database.url("")));
    load(&server, "200000 64");
    let runs = [
        "30000 64 --rate 5000",
        "120000 64 --rate 20000",
        "240000 64 --rate 40000",
        "1000000 1000",
    ];
    let costs = runs.map(|flags| {
        let cost = measure(&server, Some(database), &format!("{flags} --no-reset --user-prefix user_"));
        json!({"load": flags, "events_per_s": cost.requests_per_s, "transactions_per_s": cost.transactions_per_s,
            "database_cpu_us_per_event": cost.database_us, "p99_us": cost.p99_us})
    });
    json!(costs)
}

/// Measures events of new users only, and of users that are new to a server but known to another.
fn new_users(database: &Postgres) -> Value {
    let (mut new, mut elsewhere) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let servers = [(); 2].map(|()| serve("0", Some(&database.url(""))));
        let load = "500000 1000 --users 500000";
        new.push(measure(&servers[0], Some(database), load));
        elsewhere.push(measure(
            &servers[1],
            Some(database),
            &format!("{load} --no-reset --user-prefix user_"),
        ));
    }
    let of = |runs: &[Cost], get: fn(&Cost) -> f64| median(runs.iter().map(get).collect());
    let costs = |runs: &[Cost]| {
        json!({
            "users_per_s": of(runs, |cost| cost.requests_per_s),
            "server_cpu_us": of(runs, |cost| cost.server_us),
            "database_cpu_us": of(runs, |cost| cost.database_us),
        })
    };
    let size = "SELECT pg_total_relation_size('ringtally.users') / greatest(count(*), 1) FROM ringtally.users";
    let bytes: f64 = database.sql(size).parse().unwrap();
    json!({"new": costs(&new), "known_elsewhere": costs(&elsewhere), "bytes_per_user": bytes})
}

/// Runs a load in three parts, each on its own server. Returns the median rate.
fn three_servers(database: &Postgres) -> Value {
    let url = database.url("");
    let folder = std::env::temp_dir().join(format!("ringtally-figures-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let rates: Vec<f64> = (0..3)
        .map(|_| {
            let servers: Vec<Server> =
                ["0", "1", "0"].iter().map(|cpu| serve(cpu, Some(&url))).collect();
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
            let start_at = (now + 6).to_string();
            let file =
                |part: usize| folder.join(format!("part{part}.json")).to_str().unwrap().to_owned();
            let parts: Vec<Child> = servers
                .iter()
                .enumerate()
                .map(|(at, server)| {
                    let mut command = program();
                    command.args(["load", "600000", "960", "--quiet", "--start-at", &start_at]);
                    command.args(["--part", &format!("{}/3", at + 1), "--url", &server.url()]);
                    command.args(["--cpus", if at == 0 { "1" } else { "0" }, "--json", &file(at)]);
                    command.stdout(Stdio::null()).spawn().unwrap()
                })
                .collect();
            for mut part in parts {
                assert!(part.wait().unwrap().success());
            }
            let mut merge = program();
            merge.args(["merge", "--json", "-", "--url", &servers[0].url()]).args((0..3).map(file));
            let output = output_within(&mut merge, PATIENCE);
            let report: Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|error| panic!("{error}: {output:?}"));
            assert_eq!(report["verdict"], "exact", "{report}");
            report["requests_per_s"].as_f64().unwrap()
        })
        .collect();
    std::fs::remove_dir_all(folder).unwrap();
    json!(median(rates))
}

/// Returns the events per second of PostgreSQL alone, with one INSERT per event.
fn inserts(database: &Postgres) -> Value {
    let said = database.pgbench(
        "CREATE TABLE events (user_id text NOT NULL, value float8 NOT NULL)",
        "\\set user random(0, 74999)\n\\set value random(0, 999)\n\
         INSERT INTO events VALUES ('user_' || :user, :value);\n",
        &["-c", "960", "-j", "2", "-T", "15"],
    );
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap();
    json!(tps.split(' ').next().unwrap().parse::<f64>().unwrap())
}

/// Measures the database's cost of commits and of reads, one after the other. Reads have 1 or 100 more servers' rows to read.
fn single(database: &Postgres) -> Value {
    let server = serve("0", Some(&database.url("")));
    let cost = measure(&server, Some(database), "5000 1 --users 1");
    let read = |rows: u32| {
        database.sql("DELETE FROM ringtally.servers WHERE name LIKE 'model%'");
        database.sql(&format!(
            "INSERT INTO ringtally.servers (id, name, generation, sequence, events, users, sum)
             SELECT decode(md5(n::text), 'hex'), 'model' || n, generation, 0, 0, 0, '\\x0000'
             FROM ringtally.tally, generate_series(1, {rows}) n"
        ));
        let before = database.cpu_s();
        let started = Instant::now();
        for _ in 0..1000 {
            server.stats();
        }
        let (elapsed, cpu) = (started.elapsed().as_secs_f64(), database.cpu_s() - before);
        json!({"rows": rows, "ms": elapsed, "database_cpu_us": cpu * 1e3})
    };
    let reads = [read(1), read(100)];
    database.sql("DELETE FROM ringtally.servers WHERE name LIKE 'model%'");
    json!({"commit_latency_p99_us": cost.p99_us, "commits_per_s": cost.requests_per_s,
        "database_cpu_us_per_commit": cost.database_us, "reads": reads})
}

#[test]
#[ignore = "takes minutes and measures: run ci/cluster figures"]
fn what_a_cluster_costs() {
    let database =
        Postgres::new(&["max_connections=1000", "shared_buffers=512MB", "max_wal_size=4GB"]);
    let pairs = std::env::var("RINGTALLY_PAIRS").map_or(3, |text| text.parse().unwrap());
    let said = |name: &str, value: Value| {
        eprintln!("{name}: {value}");
        value
    };
    if std::env::var_os("RINGTALLY_ONLY_GROUP").is_some() {
        said("inserts", inserts(&database));
        said("three servers", three_servers(&database));
        return;
    }
    let figures = json!({
        "single": said("single", single(&database)),
        "known_users": said("known users", known_users(&database, pairs)),
        "transactions": said("transactions", transactions_by_rate(&database)),
        "new_users": said("new users", new_users(&database)),
        "inserts_per_s": said("inserts", inserts(&database)),
        "three_servers_events_per_s": said("three servers", three_servers(&database)),
    });
    let text = serde_json::to_string_pretty(&figures).unwrap();
    println!("{text}");
    std::fs::write(std::env::var("RINGTALLY_FIGURES").unwrap(), text).unwrap();
}
