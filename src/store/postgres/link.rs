//! A server's requests to the database and to the clock. In PostgreSQL, the requests are statements.
//!
//! Every statement that writes data to be acknowledged also checks two things: its commit waits for the disk and the standbys,
//! and a warning would be sent. The settings at the beginning of the session prove nothing, because a pooler may run a
//! statement in another session.

use super::error::StoreError;
use super::schema;
use super::session::{Purpose, Session, Unasked};
use super::shares::{Share, count, damaged};
use super::sums;
use super::target::Target;
use crate::log::Log;
use crate::tally::{ExactSum, State};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

/// The time that a server counts as alive after it was last seen; heartbeats keep it alive.
pub(super) const ALIVE: Duration = Duration::from_secs(3);

/// The number of users that one statement inserts in one round trip; it bounds the memory that the database takes for
/// them.
const SLICE_USERS: usize = 8192;

/// The condition that a commit of the session is durable once it returns, and that the session gets PostgreSQL's warnings.
const IS_SAFE: &str = "current_setting('synchronous_commit') IN ('on', 'remote_apply') \
    AND current_setting('client_min_messages') <> 'error'";

/// The condition for a write with the number $2 to a row. $3 indicates that it may have been made already.
pub const MAY_WRITE: &str = "(sequence = $2 AND $3 OR sequence = $2 - 1)";

/// The condition for a commit in the generation $4.
pub const MAY_COMMIT: &str = "(sequence = $2 AND $3 OR sequence = $2 - 1 AND \
    EXISTS (SELECT FROM ringtally.tally WHERE generation = $4))";

/// The number of a server's row.
pub type Id = [u8; 16];

/// A commit to the row of a server.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The row.
    pub id: &'a Id,
    /// The number of this write, which is made if the row has the preceding number.
    pub sequence: i64,
    /// Whether it may have been made already, so that the row may also have this number.
    pub is_repeat: bool,
    /// The generation that the group must be in.
    pub generation: i64,
    /// Whether it begins the next generation instead, whichever that is.
    pub is_reset: bool,
    /// The totals of the server.
    pub state: &'a State,
    /// Its new users, sorted so that two servers with the same users do not wait for each other.
    pub users: &'a [&'a [u8]],
}

/// The relation of a write to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was made already.
    Made,
    /// It is the next one.
    Next,
    /// It must not be made: another write has preceded it, or the group is in another generation.
    Refused,
}

impl Write<'_> {
    /// Returns its standing to a row with this number, in a group of this generation. It follows [`MAY_COMMIT`], except that a
    /// reset is made in any generation.
    pub fn standing(&self, row_sequence: i64, group_generation: i64) -> Standing {
        let is_current = self.is_reset || group_generation == self.generation;
        if row_sequence == self.sequence && self.is_repeat {
            Standing::Made
        } else if row_sequence == self.sequence - 1 && is_current {
            Standing::Next
        } else {
            Standing::Refused
        }
    }
}

/// One server's access to the database, and its clock. A method that writes returns once its write is durable.
#[expect(async_fn_in_trait, reason = "a server has one thread for it")]
pub trait Link {
    /// Returns the time since some moment, which includes the time while the machine is suspended.
    fn now(&self) -> Duration;

    /// Waits.
    async fn pause(&self, time: Duration);

    /// Returns the database, as it is shown.
    fn target(&self) -> String;

    /// Reports something that the operator should look into.
    fn warn(&self, what: &str);

    /// Reports other information.
    fn inform(&self, what: &str);

    /// Returns the number of hosts of the database.
    fn hosts(&self) -> u32;

    /// Connects, unless there is a connection.
    async fn connect(&mut self) -> Result<(), StoreError>;

    /// Gives up the connection, or the attempt to connect. If `leaves`, a host that has used up its time is tried after
    /// the others.
    fn disconnect(&mut self, leaves: bool);

    /// Adds the row of a server in the current generation, unless the row exists. Returns the row's generation.
    async fn register(&self, id: &Id, name: &str) -> Result<i64, StoreError>;

    /// Makes a commit, if the row and the group are as expected. Returns the generation that it is in.
    async fn commit(&self, write: &Write<'_>) -> Result<Option<i64>, StoreError>;

    /// Reads the generation of the group, and the number of the last write to a row, if the row exists.
    async fn look(&self, id: &Id) -> Result<(i64, Option<i64>), StoreError>;

    /// Writes a number to a row, unless the row has a higher one. Returns whether it was written.
    async fn skip_to(&self, id: &Id, sequence: i64) -> Result<bool, StoreError>;

    /// Reads the rows that count, at a single moment.
    async fn rows(&self, id: &Id) -> Result<Vec<Share>, StoreError>;

    /// Makes a write that changes only the number of the row. Returns whether it was made.
    async fn confirm(&self, id: &Id, sequence: i64, is_repeat: bool) -> Result<bool, StoreError>;

    /// Reads the number of other live servers that are in an older generation.
    async fn lagging(&self, id: &Id, generation: i64) -> Result<u64, StoreError>;

    /// Names a server.
    async fn rename(&self, id: &Id, name: &str) -> Result<(), StoreError>;

    /// Notes that a server has ended.
    async fn end(&self, id: &Id) -> Result<(), StoreError>;
}

/// Returns the statement that commits totals alone: one statement is one transaction, and one round trip.
fn totals() -> String {
    format!(
        "WITH mine AS MATERIALIZED (
            SELECT id FROM ringtally.servers
            WHERE id = $1 AND {MAY_COMMIT} AND {IS_SAFE}
            FOR UPDATE
        )
        UPDATE ringtally.servers s
        SET generation = $4, sequence = $2, events = $5, sum = $6, seen = now(),
            users = CASE WHEN s.generation = $4 THEN s.users ELSE 0 END
        FROM mine WHERE s.id = mine.id"
    )
}

/// Returns the statement that also commits new users. A server counts the users that it was the first to insert. The row is
/// locked before the first of them is.
fn totals_and_users() -> String {
    format!(
        "WITH mine AS MATERIALIZED (
            SELECT id, sequence FROM ringtally.servers
            WHERE id = $1 AND {MAY_COMMIT} AND {IS_SAFE}
            FOR UPDATE
        ), added AS (
            INSERT INTO ringtally.users (generation, id)
            SELECT $4, u FROM unnest($7::bytea[]) AS u
            WHERE (SELECT count(*) FROM mine WHERE sequence < $2) > 0
            ON CONFLICT DO NOTHING
            RETURNING 1
        )
        UPDATE ringtally.servers s
        SET generation = $4, sequence = $2, events = $5, sum = $6, seen = now(),
            users = CASE WHEN s.generation = $4 THEN s.users ELSE 0 END + (SELECT count(*) FROM added)
        FROM mine WHERE s.id = mine.id"
    )
}

/// The rows that count, at a single moment.
const ROWS: &str = "\
    SELECT s.id = $1, s.name, s.events, s.users, s.sum, s.ended,
        greatest(extract(epoch FROM clock_timestamp() - s.seen), 0)::float8
    FROM ringtally.tally t JOIN ringtally.servers s USING (generation)
    ORDER BY s.name, s.id";

fn confirmation() -> String {
    format!(
        "UPDATE ringtally.servers SET sequence = $2, seen = now()
        WHERE id = $1 AND {MAY_WRITE} AND {IS_SAFE}"
    )
}

/// The link to PostgreSQL.
pub(super) struct Postgres {
    target: Target,
    log: Log,
    unasked: Unasked,
    connection: Option<Connected>,
    /// The host to try first, which the sweeper does, too.
    first_host: Arc<AtomicUsize>,
    /// The last host that was tried: the session's host, if there is a session.
    host: AtomicUsize,
}

/// A session with the statements that are used all the time.
struct Connected {
    session: Session,
    totals: Statement,
    totals_and_users: Statement,
    rows: Statement,
    confirmation: Statement,
}

impl Postgres {
    pub(super) fn new(
        target: Target,
        log: Log,
        unasked: Unasked,
        first_host: Arc<AtomicUsize>,
    ) -> Postgres {
        Postgres {
            target,
            log,
            unasked,
            connection: None,
            first_host,
            host: AtomicUsize::default(),
        }
    }

    fn connected(&self) -> Result<&Connected, StoreError> {
        self.connection
            .as_ref()
            .ok_or_else(|| StoreError::Passing("the connection was lost".into()))
    }

    /// Runs a statement that writes, once. Returns the number of rows that it has changed.
    async fn execute(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, StoreError> {
        let Connected { session, .. } = self.connected()?;
        session.forget_warning();
        let rows = session.client.execute(sql, parameters).await?;
        session.check_warning()?;
        Ok(rows)
    }

    /// Commits in one statement.
    async fn commit_at_once(&self, write: &Write<'_>) -> Result<Option<i64>, StoreError> {
        let Connected { session, totals, totals_and_users, .. } = self.connected()?;
        let (id, events, sum) = (&write.id[..], events(write.state), sums::pack(&write.state.sum));
        let parameters: [&(dyn ToSql + Sync); 7] = [
            &id,
            &write.sequence,
            &write.is_repeat,
            &write.generation,
            &events,
            &sum,
            &write.users,
        ];
        session.forget_warning();
        let rows = match write.users.is_empty() {
            true => session.client.execute(totals, &parameters[..6]).await?,
            false => session.client.execute(totals_and_users, &parameters).await?,
        };
        session.check_warning()?;
        Ok((rows > 0).then_some(write.generation))
    }

    /// Commits a reset, or more users than fit one statement.
    async fn commit_in_steps(&self, write: &Write<'_>) -> Result<Option<i64>, StoreError> {
        let Connected { session, .. } = self.connected()?;
        let (client, id, sequence) = (&session.client, &write.id[..], write.sequence);
        client.batch_execute("BEGIN").await?;
        session.forget_warning();
        let sql = format!(
            "SELECT s.sequence, s.generation, t.generation FROM ringtally.servers s, ringtally.tally t
            WHERE s.id = $1 AND {IS_SAFE} FOR UPDATE OF s"
        );
        let row = client.query_opt(&sql, &[&id]).await?;
        let row = row.map(|row| (row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)));
        let stands = |(own, of_row, of_group)| (write.standing(own, of_group), of_row, of_group);
        let generation = match row.map(stands) {
            // It was made already. Write something, so that this commit waits for the standbys, because the other commit may
            // not have waited.
            Some((Standing::Made, generation, _)) => {
                let sql = "UPDATE ringtally.servers SET seen = now() WHERE id = $1";
                client.execute(sql, &[&id]).await?;
                client.batch_execute("COMMIT").await?;
                session.check_warning()?;
                return Ok(Some(generation));
            }
            Some((Standing::Next, ..)) if write.is_reset => {
                let sql =
                    "UPDATE ringtally.tally SET generation = generation + 1 RETURNING generation";
                client.query_one(sql, &[]).await?.get(0)
            }
            Some((Standing::Next, _, of_group)) => of_group,
            Some((Standing::Refused, ..)) | None => {
                client.batch_execute("ROLLBACK").await?;
                return Ok(None);
            }
        };
        let mut added = 0;
        for users in write.users.chunks(SLICE_USERS) {
            let sql = "INSERT INTO ringtally.users (generation, id)
                SELECT $1, u FROM unnest($2::bytea[]) AS u ON CONFLICT DO NOTHING";
            added += client.execute(sql, &[&generation, &users]).await?;
        }
        let added = i64::try_from(added).expect("it is a part of what was sent");
        let sql = "UPDATE ringtally.servers
            SET generation = $2, sequence = $3, events = $4, sum = $5, seen = now(),
                users = CASE WHEN generation = $2 THEN users ELSE 0 END + $6
            WHERE id = $1";
        let (events, sum) = (events(write.state), sums::pack(&write.state.sum));
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&id, &generation, &sequence, &events, &sum, &added];
        client.execute(sql, &parameters).await?;
        if write.is_reset {
            client.batch_execute("NOTIFY ringtally").await?;
        }
        // This succeeds even if the database answers that the transaction was rolled back (issue 1334 of rust-postgres). So
        // nothing above may leave a response unread that could be an error.
        client.batch_execute("COMMIT").await?;
        session.check_warning()?;
        Ok(Some(generation))
    }
}

impl Link for Postgres {
    fn now(&self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        // The clock starts with the machine, and is never negative.
        Duration::from_secs(now.tv_sec as u64) + Duration::from_nanos(now.tv_nsec as u64)
    }

    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn target(&self) -> String {
        self.target.to_string()
    }

    fn warn(&self, what: &str) {
        self.log.warn(&format!("the store {}: {what}", self.target));
    }

    fn inform(&self, what: &str) {
        self.log.info(&format!("the store {}: {what}", self.target));
    }

    fn hosts(&self) -> u32 {
        u32::try_from(self.target.hosts.len()).unwrap_or(u32::MAX)
    }

    async fn connect(&mut self) -> Result<(), StoreError> {
        if self.connection.as_ref().is_some_and(|connected| !connected.session.client.is_closed()) {
            return Ok(());
        }
        let (first, name) = (self.first_host.load(Ordering::Relaxed), "ringtally");
        let (target, unasked) = (&self.target, &self.unasked);
        let session =
            Session::open(target, first, Purpose::Write, name, unasked, &self.host).await?;
        schema::prepare(&session).await?;
        let client = &session.client;
        client.batch_execute("LISTEN ringtally").await?;
        let totals = client.prepare(&totals()).await?;
        let totals_and_users = client.prepare(&totals_and_users()).await?;
        let rows = client.prepare(ROWS).await?;
        let confirmation = client.prepare(&confirmation()).await?;
        // Notifications may have been missed while nobody was listening.
        self.unasked.note_news();
        self.connection = Some(Connected { session, totals, totals_and_users, rows, confirmation });
        Ok(())
    }

    fn disconnect(&mut self, leaves: bool) {
        let was_connected = self.connection.take().is_some();
        if leaves {
            let host = self.host.load(Ordering::Relaxed);
            // A host that had little time left may just be slow, so it is the first one in the next round.
            let has_failed = was_connected || host == self.first_host.load(Ordering::Relaxed);
            let next = if has_failed { host + 1 } else { host };
            self.first_host.store(next % self.target.hosts.len(), Ordering::Relaxed);
        }
    }

    async fn register(&self, id: &Id, name: &str) -> Result<i64, StoreError> {
        // Write an existing row again, because the commit that added it may not have waited for the standbys.
        let sql = format!(
            "INSERT INTO ringtally.servers (id, name, generation, sequence, events, users, sum)
            SELECT $1::bytea, $2::text, generation, 0, 0, 0, $3::bytea FROM ringtally.tally WHERE {IS_SAFE}
            ON CONFLICT (id) DO UPDATE SET seen = now() RETURNING generation"
        );
        let Connected { session, .. } = self.connected()?;
        session.forget_warning();
        let parameters: [&(dyn ToSql + Sync); 3] =
            [&&id[..], &name, &sums::pack(&ExactSum::default())];
        let row = session.client.query_opt(&sql, &parameters).await?;
        session.check_warning()?;
        row.map(|row| row.get(0)).ok_or_else(unsafe_session)
    }

    async fn commit(&self, write: &Write<'_>) -> Result<Option<i64>, StoreError> {
        match write.is_reset || write.users.len() > SLICE_USERS {
            true => self.commit_in_steps(write).await,
            false => self.commit_at_once(write).await,
        }
    }

    async fn look(&self, id: &Id) -> Result<(i64, Option<i64>), StoreError> {
        let sql = format!(
            "SELECT t.generation, s.sequence, {IS_SAFE}
            FROM ringtally.tally t LEFT JOIN ringtally.servers s ON s.id = $1"
        );
        let Connected { session, .. } = self.connected()?;
        let row = session.client.query_one(&sql, &[&&id[..]]).await?;
        match row.get(2) {
            true => Ok((row.get(0), row.get(1))),
            false => Err(unsafe_session()),
        }
    }

    async fn skip_to(&self, id: &Id, sequence: i64) -> Result<bool, StoreError> {
        let sql = format!(
            "UPDATE ringtally.servers SET sequence = $2, seen = now()
            WHERE id = $1 AND sequence <= $2 AND {IS_SAFE}"
        );
        Ok(self.execute(&sql, &[&&id[..], &sequence]).await? > 0)
    }

    async fn rows(&self, id: &Id) -> Result<Vec<Share>, StoreError> {
        let Connected { session, rows, .. } = self.connected()?;
        let rows = session.client.query(rows, &[&&id[..]]).await?;
        let share = |row: &tokio_postgres::Row| {
            Ok(Share {
                is_this: row.get(0),
                name: row.get(1),
                events: count(row.get(2))?,
                users: count(row.get(3))?,
                sum: sums::unpack(row.get(4)).ok_or_else(damaged)?,
                has_ended: row.get(5),
                age: Duration::try_from_secs_f64(row.get(6)).unwrap_or(Duration::MAX),
            })
        };
        rows.iter().map(share).collect()
    }

    async fn confirm(&self, id: &Id, sequence: i64, is_repeat: bool) -> Result<bool, StoreError> {
        let Connected { session, confirmation, .. } = self.connected()?;
        session.forget_warning();
        let parameters: [&(dyn ToSql + Sync); 3] = [&&id[..], &sequence, &is_repeat];
        let rows = session.client.execute(confirmation, &parameters).await?;
        session.check_warning()?;
        Ok(rows > 0)
    }

    async fn lagging(&self, id: &Id, generation: i64) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM ringtally.servers WHERE id <> $1 AND generation < $2 AND NOT ended
            AND seen > clock_timestamp() - make_interval(secs => $3)";
        let Connected { session, .. } = self.connected()?;
        let parameters: [&(dyn ToSql + Sync); 3] = [&&id[..], &generation, &ALIVE.as_secs_f64()];
        count(session.client.query_one(sql, &parameters).await?.get(0))
    }

    async fn rename(&self, id: &Id, name: &str) -> Result<(), StoreError> {
        let sql = "UPDATE ringtally.servers SET name = $2 WHERE id = $1";
        self.execute(sql, &[&&id[..], &name]).await?;
        Ok(())
    }

    async fn end(&self, id: &Id) -> Result<(), StoreError> {
        let sql = "UPDATE ringtally.servers SET ended = true WHERE id = $1";
        self.execute(sql, &[&&id[..]]).await?;
        Ok(())
    }
}

fn events(state: &State) -> i64 {
    i64::try_from(state.events).expect("no number of events gets so far")
}

/// Returns the error for a session that would acknowledge data that is not durable.
fn unsafe_session() -> StoreError {
    StoreError::Passing(
        "its session has another synchronous_commit or client_min_messages than this server has set, as behind a \
         pooler that gives each transaction another session: use session mode (pool_mode = session), or connect to \
         PostgreSQL itself"
            .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::postgres::{ClientRuntime, Member};
    use std::io::{Read, Write as _};
    use std::net::TcpListener;

    /// Returns the error of a server that tries to join at this URL.
    fn join(url: &str, timeout: Duration) -> String {
        let target = Target::parse_with(url, &|_| None).unwrap();
        let link = Postgres::new(target, Log::Text, Unasked::default(), Arc::default());
        let mut member = Member::new(link);
        let joining = member.join(timeout);
        ClientRuntime::new().unwrap().block_on(joining).unwrap_err().to_string()
    }

    #[test]
    fn each_host_is_tried_within_the_time_of_a_start() {
        // The first host does not have a socket, and the others accept connections and never answer. Each attempt has a second,
        // which is less than a host may take.
        let silent = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [second, third] = silent.each_ref().map(|host| host.local_addr().unwrap());
        let url = format!("postgres://me@%2Fnone,{second},{third}/tally?connect_timeout=10");
        let failed = join(&url, Duration::from_secs(3));
        assert!(failed.contains("could not be used within 3s"), "{failed}");
        for (number, host) in silent.iter().enumerate() {
            host.set_nonblocking(true).unwrap();
            assert!(host.accept().is_ok(), "silent host {number} was never tried");
        }
    }

    #[test]
    fn what_a_host_said_before_it_fell_silent_is_reported() {
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://me@{}/tally?sslmode=disable", host.local_addr().unwrap());
        // PostgreSQL documentation, section "Message Formats", ErrorResponse.
        let fields = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0";
        let length = u32::try_from(4 + fields.len()).unwrap().to_be_bytes();
        let refusing = std::thread::spawn(move || {
            let (mut first, _) = host.accept().unwrap();
            assert!(first.read(&mut [0; 256]).unwrap() > 0);
            first.write_all(&[b"E", &length[..], &fields[..]].concat()).unwrap();
            host
        });
        let failed = join(&url, Duration::from_secs(1));
        let _silent = refusing.join().unwrap();
        assert!(failed.contains("it did not respond within"), "{failed}");
        assert!(failed.contains("before that: ") && failed.contains("is starting up"), "{failed}");
    }
}
