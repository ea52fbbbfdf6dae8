//! Removes rows that no longer count: users of older generations, and rows of servers that are gone. It has its own connection
//! while there is something to do, and works in slices that do not delay commits.

use super::error::{StoreError, within};
use super::member::GONE;
use super::session::{Purpose, Session, Unasked};
use super::shares::{count, damaged};
use super::sums;
use super::target::Target;
use crate::tally::ExactSum;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The longest time between checks for work: a reset leaves users behind.
const EVERY: Duration = Duration::from_secs(30);

/// The number of users that one statement deletes.
const SLICE_USERS: i64 = 2_000;

/// The number of server rows that one transaction adds up.
const SLICE_SERVERS: i64 = 100;

/// A slice that takes longer is given up.
const SLICE_TIME: Duration = Duration::from_secs(60);

/// The lock of the server that sweeps: "sweeping" as a number.
const LOCK: i64 = 0x7377_6565_7069_6e67;

/// The condition for rows that are no longer written: their servers have ended, or were not seen for an hour. If a server was
/// only paused, it finds its row gone and begins a new one.
fn is_gone() -> String {
    format!("(ended OR seen < now() - make_interval(secs => {}))", GONE.as_secs())
}

/// The row that the other rows are added to.
const SUM_OF_ALL: [u8; 16] = [0; 16];

/// The server that removes rows.
pub(super) struct Sweeper {
    target: Target,
    /// The host to try first, which the server has found.
    first_host: Arc<AtomicUsize>,
    unasked: Unasked,
}

impl Sweeper {
    pub(super) fn new(target: Target, first_host: Arc<AtomicUsize>, unasked: Unasked) -> Sweeper {
        Sweeper { target, first_host, unasked }
    }

    /// Sweeps now and then, for as long as it is polled. It tries again the next time after a failure.
    pub(super) async fn run(self) {
        loop {
            tokio::time::sleep(EVERY.mul_f64(fastrand::f64() / 2.0 + 0.5)).await;
            let _ = self.sweep().await;
        }
    }

    async fn sweep(&self) -> Result<(), StoreError> {
        let (first, name, tried) =
            (self.first_host.load(Ordering::Relaxed), "ringtally sweep", AtomicUsize::default());
        let (target, unasked) = (&self.target, &self.unasked);
        let session = Session::open(target, first, Purpose::Write, name, unasked, &tried).await?;
        let sql = "SELECT pg_try_advisory_lock($1)";
        if !session.client.query_one(sql, &[&LOCK]).await?.get::<_, bool>(0) {
            return Ok(());
        }
        loop {
            let started = Instant::now();
            let swept = async {
                Ok(forget_users(&session).await?
                    + forget_servers(&session).await?
                    + add_up(&session).await?)
            };
            if within(SLICE_TIME, swept).await? == 0 {
                return Ok(());
            }
            // The work takes at most a fifth of the time.
            tokio::time::sleep(started.elapsed() * 4).await;
        }
    }
}

async fn forget_users(session: &Session) -> Result<u64, StoreError> {
    let sql = "DELETE FROM ringtally.users WHERE ctid = ANY (ARRAY(
            SELECT u.ctid FROM ringtally.users u
            WHERE u.generation < (SELECT generation FROM ringtally.tally)
            LIMIT $1 FOR UPDATE SKIP LOCKED))";
    Ok(session.client.execute(sql, &[&SLICE_USERS]).await?)
}

async fn forget_servers(session: &Session) -> Result<u64, StoreError> {
    let sql = format!(
        "DELETE FROM ringtally.servers WHERE id = ANY (ARRAY(
            SELECT s.id FROM ringtally.servers s
            WHERE s.generation < (SELECT generation FROM ringtally.tally) AND {}
            LIMIT $1 FOR UPDATE SKIP LOCKED))",
        is_gone()
    );
    Ok(session.client.execute(&sql, &[&SLICE_SERVERS]).await?)
}

/// Adds rows of ended servers to the row that stands for all of them, unless that is the only row.
async fn add_up(session: &Session) -> Result<u64, StoreError> {
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    let sql = format!(
        "SELECT s.id, s.events, s.users, s.sum, s.generation FROM ringtally.servers s
        WHERE s.generation = (SELECT generation FROM ringtally.tally) AND {} AND s.id <> $1
        ORDER BY s.id LIMIT $2 FOR UPDATE SKIP LOCKED",
        is_gone()
    );
    let all = &SUM_OF_ALL[..];
    let rows = client.query(&sql, &[&all, &SLICE_SERVERS]).await?;
    let Some(generation) = rows.first().map(|row| row.get::<_, i64>(4)) else {
        client.batch_execute("ROLLBACK").await?;
        return Ok(0);
    };
    let empty = sums::pack(&ExactSum::default());
    let sql =
        "INSERT INTO ringtally.servers (id, name, generation, sequence, events, users, sum, ended)
        VALUES ($1, 'servers that have ended', $2, 0, 0, 0, $3, true) ON CONFLICT (id) DO UPDATE
        SET generation = $2, events = 0, users = 0, sum = $3 WHERE servers.generation < $2";
    client.execute(sql, &[&all, &generation, &empty]).await?;
    let sql =
        "SELECT events, users, sum, generation FROM ringtally.servers WHERE id = $1 FOR UPDATE";
    let row = client.query_one(sql, &[&all]).await?;
    if row.get::<_, i64>(3) != generation {
        // A reset came in between.
        client.batch_execute("ROLLBACK").await?;
        return Ok(1);
    }
    let (mut events, mut users) = (count(row.get(0))?, count(row.get(1))?);
    let mut sum = sums::unpack(row.get(2)).ok_or_else(damaged)?;
    let mut ids: Vec<&[u8]> = Vec::with_capacity(rows.len());
    for row in &rows {
        ids.push(row.get(0));
        events += count(row.get(1))?;
        users += count(row.get(2))?;
        sum.merge(&sums::unpack(row.get(3)).ok_or_else(damaged)?);
    }
    let [events, users] = [events, users]
        .map(|number| i64::try_from(number).expect("no number of events gets so far"));
    let sql = "UPDATE ringtally.servers SET events = $2, users = $3, sum = $4, seen = now() WHERE id = $1";
    client.execute(sql, &[&all, &events, &users, &sums::pack(&sum)]).await?;
    client.execute("DELETE FROM ringtally.servers WHERE id = ANY ($1)", &[&ids]).await?;
    client.batch_execute("COMMIT").await?;
    Ok(ids.len() as u64)
}
