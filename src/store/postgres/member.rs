//! One server's part in the group: its row, the commits to it, and what it does when the database is away.
//!
//! A commit names the number of the one before it, and its transaction first locks the server's row and compares.
//! So one whose outcome is unknown is repeated as it is: where it had been made, the row has its number, and
//! repeating it changes nothing; and one that is still under way on a connection that was lost is waited for,
//! or finds that it came too late.
//!
//! The number of resets, the generation, is read and not locked: a commit that read the old one held only events
//! that were received before the reset was acknowledged, and belongs before it.

use super::schema;
use super::session::{Purpose, Session, within};
use super::shares::{Share, add_up, count, damaged};
use super::sums;
use super::target::Target;
use super::trouble::Trouble;
use crate::failure::Failure;
use crate::log::Log;
use crate::store::{Group, Outcome};
use crate::tally::{ExactSum, State, UserIds};
use crate::uring::Wakeup;
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

/// The users that one statement inserts: so many are one round trip, and the memory that the database takes for
/// them is bounded.
const SLICE_USERS: usize = 8192;

/// How recently a server must have been seen to count as alive, which its heartbeats keep it.
const ALIVE: Duration = Duration::from_secs(3);

/// How often a reset looks whether the others have heard of it.
const ADOPTION_POLL: Duration = Duration::from_millis(3);

/// The time that an attempt may take, at least, and for each new user. Doubled for each further attempt, so that
/// a database that is slow is not given up for ever.
const ATTEMPT: Duration = Duration::from_secs(5);
const ATTEMPT_PER_USER: Duration = Duration::from_micros(500);
const ATTEMPT_MAX: Duration = Duration::from_secs(600);

/// The pauses between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A commit of totals alone: one statement is one transaction, and one round trip.
const TOTALS: &str = "\
    WITH mine AS MATERIALIZED (
        SELECT id FROM ringtally.servers
        WHERE id = $1 AND (sequence = $2 OR
            sequence = $2 - 1 AND EXISTS (SELECT FROM ringtally.tally WHERE generation = $3))
        FOR UPDATE
    )
    UPDATE ringtally.servers s
    SET generation = $3, sequence = $2, events = $4, sum = $5, seen = now(),
        users = CASE WHEN s.generation = $3 THEN s.users ELSE 0 END
    FROM mine WHERE s.id = mine.id";

/// The same with new users, which are sorted, so that two servers with the same ones do not wait for each other. A
/// server counts those that it was the first to insert. The row is locked before the first of them is.
const TOTALS_AND_USERS: &str = "\
    WITH mine AS MATERIALIZED (
        SELECT id, sequence FROM ringtally.servers
        WHERE id = $1 AND (sequence = $2 OR
            sequence = $2 - 1 AND EXISTS (SELECT FROM ringtally.tally WHERE generation = $3))
        FOR UPDATE
    ), added AS (
        INSERT INTO ringtally.users (generation, id)
        SELECT $3, u FROM unnest($6::bytea[]) AS u
        WHERE (SELECT count(*) FROM mine WHERE sequence < $2) > 0
        ON CONFLICT DO NOTHING
        RETURNING 1
    )
    UPDATE ringtally.servers s
    SET generation = $3, sequence = $2, events = $4, sum = $5, seen = now(),
        users = CASE WHEN s.generation = $3 THEN s.users ELSE 0 END + (SELECT count(*) FROM added)
    FROM mine WHERE s.id = mine.id";

/// The rows that count, of one moment.
const READ: &str = "\
    SELECT s.id = $1, s.name, s.events, s.users, s.sum, s.ended,
        greatest(extract(epoch FROM clock_timestamp() - s.seen), 0)::float8
    FROM ringtally.tally t JOIN ringtally.servers s USING (generation)
    ORDER BY s.name, s.id";

const LOCK_OWN_ROW: &str = "\
    SELECT s.sequence, s.generation, t.generation FROM ringtally.servers s, ringtally.tally t
    WHERE s.id = $1 FOR UPDATE OF s";

const OWN_ROW: &str = "\
    SELECT t.generation, s.generation, s.sequence
    FROM ringtally.tally t LEFT JOIN ringtally.servers s ON s.id = $1";

/// A server of the group.
pub(super) struct Member {
    target: Target,
    log: Log,
    news: Arc<Wakeup>,
    connection: Option<Connected>,
    /// The row of this server; another one if it is lost.
    id: [u8; 16],
    has_row: bool,
    name: String,
    /// The number of the last commit.
    sequence: i64,
    /// The group's generation that this server's totals belong to.
    generation: i64,
    /// This server's own count of resets, as of the last commit.
    local_generation: u64,
    /// Whether the last commit was superseded, and the next state follows that.
    is_superseded: bool,
    /// Whether a commit was made after the last read.
    is_confirmed: bool,
    /// Since when the database has been away.
    away_since: Option<Instant>,
}

/// A session with the statements that are used all the time.
struct Connected {
    session: Session,
    totals: Statement,
    totals_and_users: Statement,
    read: Statement,
}

/// What a commit is to make durable.
struct Change<'a> {
    is_reset: bool,
    events: i64,
    sum: Vec<u8>,
    /// Sorted.
    users: Vec<&'a [u8]>,
}

/// What has come of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// It is durable, in this generation of the group.
    In(i64),
    /// The group is in this later generation.
    Superseded(i64),
    /// There was no row, and there is one now.
    NotYet,
}

impl Member {
    pub(super) fn new(target: Target, log: Log, news: Arc<Wakeup>) -> Member {
        Member {
            target,
            log,
            news,
            connection: None,
            id: random_id(),
            has_row: false,
            name: String::new(),
            sequence: 0,
            generation: 0,
            local_generation: 0,
            is_superseded: false,
            is_confirmed: false,
            away_since: None,
        }
    }

    /// Connects for the first time, creates the schema where there is none, and joins the group.
    ///
    /// # Errors
    ///
    /// The database did not respond within `timeout`, or does not let this server in, or has another format.
    pub(super) async fn join(&mut self, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        let mut pause = PAUSE_MIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let joining = within(left.max(PAUSE_MIN), self.try_to_join());
            let why = match joining.await {
                Ok(()) => return Ok(()),
                Err(Trouble::Passing(why)) => why,
                Err(trouble) => return Err(trouble.failure(&self.target)),
            };
            self.connection = None;
            if Instant::now() >= deadline {
                let (target, timeout) = (&self.target, humantime::format_duration(timeout));
                return Err(Failure::Environment(format!(
                    "the store {target} could not be used within {timeout} ({why}): start the database, check \
                     the host and the port, or raise --store-timeout"
                )));
            }
            tokio::time::sleep_until((Instant::now() + pause).min(deadline).into()).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn try_to_join(&mut self) -> Result<(), Trouble> {
        let sql = "SELECT generation FROM ringtally.tally";
        let row = self.connected().await?.session.client.query_one(sql, &[]).await?;
        self.generation = row.get(0);
        self.register().await
    }

    /// Says how this server is called.
    pub(super) async fn introduce(&mut self, name: String) {
        self.name = name;
        if let Some(Connected { session, .. }) = &self.connection {
            let sql = "UPDATE ringtally.servers SET name = $2 WHERE id = $1";
            let naming =
                async { Ok(session.client.execute(sql, &[&&self.id[..], &self.name]).await?) };
            // Where that fails, only a name is missing.
            let _ = within(ATTEMPT, naming).await;
        }
    }

    /// Makes a state durable, however long that takes.
    ///
    /// # Errors
    ///
    /// What no further attempt can mend.
    pub(super) async fn commit(
        &mut self,
        state: &State,
        new_users: &UserIds,
    ) -> Result<Outcome, Failure> {
        let resets = state.generation - self.local_generation;
        if self.is_superseded && resets == 0 {
            return Ok(Outcome::Superseded);
        }
        let mut users: Vec<&[u8]> = new_users.iter().collect();
        users.sort_unstable();
        let change = Change {
            is_reset: resets > u64::from(self.is_superseded),
            events: i64::try_from(state.events).expect("no number of events gets so far"),
            sum: sums::pack(&state.sum),
            users,
        };
        let (mut attempts, mut pause) = (0, PAUSE_MIN);
        let made = loop {
            let limit = attempt_limit(attempts, change.users.len());
            attempts += 1;
            match within(limit, self.attempt(&change)).await {
                Ok(Made::In(generation)) => break Ok(generation),
                Ok(Made::Superseded(generation)) => break Err(generation),
                Ok(Made::NotYet) => {}
                Err(trouble) => self.stand(trouble, &mut pause).await?,
            }
        };
        self.note_back();
        self.is_confirmed = true;
        self.local_generation = state.generation;
        match made {
            Ok(generation) => {
                (self.generation, self.is_superseded) = (generation, false);
                self.sequence += 1;
                if change.is_reset {
                    self.wait_for_adoption().await;
                }
                Ok(Outcome::Durable)
            }
            Err(generation) => {
                (self.generation, self.is_superseded) = (generation, true);
                Ok(Outcome::Superseded)
            }
        }
    }

    /// The totals of the group.
    ///
    /// # Errors
    ///
    /// As [`Member::commit`].
    pub(super) async fn read(&mut self) -> Result<Group, Failure> {
        let (mut attempts, mut pause) = (0, PAUSE_MIN);
        loop {
            let limit = attempt_limit(attempts, 0);
            attempts += 1;
            match within(limit, self.try_to_read()).await {
                Ok(group) => {
                    self.note_back();
                    self.is_confirmed = false;
                    return Ok(group);
                }
                Err(trouble) => self.stand(trouble, &mut pause).await?,
            }
        }
    }

    /// Notes that this server has ended, so that no reset waits for it.
    pub(super) async fn leave(&mut self) {
        let Some(Connected { session, .. }) = &self.connection else { return };
        let sql = "UPDATE ringtally.servers SET ended = true WHERE id = $1";
        let ending = async { Ok(session.client.execute(sql, &[&&self.id[..]]).await?) };
        // Where that fails, it counts as alive for a few seconds more.
        let _ = within(Duration::from_millis(500), ending).await;
    }

    /// What a failed attempt leads to: another one after a pause, or the end.
    async fn stand(&mut self, trouble: Trouble, pause: &mut Duration) -> Result<(), Failure> {
        // Whatever was under way on it, the next attempt begins on a connection of its own.
        self.connection = None;
        match trouble {
            Trouble::Lasting(_) => return Err(trouble.failure(&self.target)),
            Trouble::Passing(why) | Trouble::Refused(why) => {
                if self.away_since.is_none() {
                    self.away_since = Some(Instant::now());
                    self.log.warn(&format!("the store {}: {why}: trying again", self.target));
                }
            }
        }
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.5)).await;
        *pause = (*pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    fn note_back(&mut self) {
        if let Some(since) = self.away_since.take() {
            let seconds = since.elapsed().as_secs_f64();
            self.log
                .info(&format!("the store {} responds again after {seconds:.1} s", self.target));
        }
    }

    /// The connection, and a new one where there is none.
    async fn connected(&mut self) -> Result<&Connected, Trouble> {
        if self.connection.as_ref().is_none_or(|connected| connected.session.client.is_closed()) {
            let news = Some(Arc::clone(&self.news));
            let session = Session::open(&self.target, Purpose::Write, "ringtally", news).await?;
            schema::prepare(&session).await?;
            let client = &session.client;
            client.batch_execute("LISTEN ringtally").await?;
            let totals = client.prepare(TOTALS).await?;
            let totals_and_users = client.prepare(TOTALS_AND_USERS).await?;
            let read = client.prepare(READ).await?;
            // What was said while nobody listened has to be looked for.
            self.news.wake();
            self.connection = Some(Connected { session, totals, totals_and_users, read });
        }
        Ok(self.connection.as_ref().expect("it was just made"))
    }

    /// Adds the row of this server, unless it is there.
    async fn register(&mut self) -> Result<(), Trouble> {
        let parameters: [&(dyn ToSql + Sync); 4] =
            [&&self.id[..], &self.name, &self.generation, &sums::pack(&ExactSum::default())];
        let sql =
            "INSERT INTO ringtally.servers (id, name, generation, sequence, events, users, sum)
            VALUES ($1, $2, $3, 0, 0, 0, $4) ON CONFLICT DO NOTHING";
        let Some(Connected { session, .. }) = &self.connection else {
            return Err(Trouble::Passing("the connection was lost".into()));
        };
        session.client.execute(sql, &parameters).await?;
        self.has_row = true;
        Ok(())
    }

    async fn attempt(&mut self, change: &Change<'_>) -> Result<Made, Trouble> {
        self.connected().await?;
        if !self.has_row {
            self.register().await?;
        }
        let made = match change.is_reset || change.users.len() > SLICE_USERS {
            true => self.commit_in_steps(change).await?,
            false => self.commit_at_once(change).await?,
        };
        match made {
            Some(generation) => Ok(Made::In(generation)),
            None => self.explain(change).await,
        }
    }

    /// Commits in one statement. Returns the generation; `None` where the row or the tally is not as it must be.
    async fn commit_at_once(&self, change: &Change<'_>) -> Result<Option<i64>, Trouble> {
        let Some(Connected { session, totals, totals_and_users, .. }) = &self.connection else {
            return Err(Trouble::Passing("the connection was lost".into()));
        };
        let (id, sequence) = (&self.id[..], self.sequence + 1);
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&id, &sequence, &self.generation, &change.events, &change.sum, &change.users];
        session.forget_warnings();
        let rows = match change.users.is_empty() {
            true => session.client.execute(totals, &parameters[..5]).await?,
            false => session.client.execute(totals_and_users, &parameters).await?,
        };
        session.check_warnings()?;
        Ok((rows > 0).then_some(self.generation))
    }

    /// Commits a reset, or more users than fit one statement.
    async fn commit_in_steps(&self, change: &Change<'_>) -> Result<Option<i64>, Trouble> {
        let Some(Connected { session, .. }) = &self.connection else {
            return Err(Trouble::Passing("the connection was lost".into()));
        };
        let (client, id, sequence) = (&session.client, &self.id[..], self.sequence + 1);
        client.batch_execute("BEGIN").await?;
        session.forget_warnings();
        let row = client.query_opt(LOCK_OWN_ROW, &[&id]).await?;
        let row = row.map(|row| (row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)));
        let generation = match row {
            // It had been made. Something has to be written, so that this commit waits for the standbys that the
            // other one may not have waited for.
            Some((own, generation, _)) if own == sequence => {
                let sql = "UPDATE ringtally.servers SET seen = now() WHERE id = $1";
                client.execute(sql, &[&id]).await?;
                client.batch_execute("COMMIT").await?;
                session.check_warnings()?;
                return Ok(Some(generation));
            }
            Some((own, ..)) if own == self.sequence && change.is_reset => {
                let sql =
                    "UPDATE ringtally.tally SET generation = generation + 1 RETURNING generation";
                client.query_one(sql, &[]).await?.get(0)
            }
            Some((own, _, of_group)) if own == self.sequence && of_group == self.generation => {
                of_group
            }
            _ => {
                client.batch_execute("ROLLBACK").await?;
                return Ok(None);
            }
        };
        let mut added = 0;
        for users in change.users.chunks(SLICE_USERS) {
            let sql = "INSERT INTO ringtally.users (generation, id)
                SELECT $1, u FROM unnest($2::bytea[]) AS u ON CONFLICT DO NOTHING";
            added += client.execute(sql, &[&generation, &users]).await?;
        }
        let added = i64::try_from(added).expect("it is a part of what was sent");
        let sql = "UPDATE ringtally.servers
            SET generation = $2, sequence = $3, events = $4, sum = $5, seen = now(),
                users = CASE WHEN generation = $2 THEN users ELSE 0 END + $6
            WHERE id = $1";
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&id, &generation, &sequence, &change.events, &change.sum, &added];
        client.execute(sql, &parameters).await?;
        if change.is_reset {
            client.batch_execute("NOTIFY ringtally").await?;
        }
        client.batch_execute("COMMIT").await?;
        session.check_warnings()?;
        Ok(Some(generation))
    }

    /// Why a commit was not made: somebody has reset the group, or the row is gone.
    async fn explain(&mut self, change: &Change<'_>) -> Result<Made, Trouble> {
        let Some(Connected { session, .. }) = &self.connection else {
            return Err(Trouble::Passing("the connection was lost".into()));
        };
        let row = session.client.query_one(OWN_ROW, &[&&self.id[..]]).await?;
        let (of_group, sequence) = (row.get::<_, i64>(0), row.get::<_, Option<i64>>(2));
        let Some(sequence) = sequence else {
            // It was not seen for so long that its totals were added to those of the servers that have ended.
            (self.id, self.has_row, self.sequence) = (random_id(), false, 0);
            return Ok(match change.is_reset {
                true => Made::NotYet,
                false => Made::Superseded(of_group),
            });
        };
        if of_group < self.generation || sequence < self.sequence {
            return Err(Trouble::Lasting(
                "it holds an older state than it had confirmed, as a standby that was not synchronous does, or \
                 a backup: restart the server to go on from that state"
                    .into(),
            ));
        }
        if of_group > self.generation {
            // An attempt may still be under way on a connection that was lost, and the next commit must not be
            // taken for it: its number is another, which this waits for and makes too late.
            let next = self.sequence + 2;
            let sql = "UPDATE ringtally.servers SET sequence = $2 WHERE id = $1 AND sequence < $2";
            session.client.execute(sql, &[&&self.id[..], &next]).await?;
            self.sequence = next;
            return Ok(Made::Superseded(of_group));
        }
        if sequence > self.sequence + 1 {
            return Err(Trouble::Lasting(
                "another process writes to the row of this server: stop it".into(),
            ));
        }
        Err(Trouble::Passing("the row of this server changed meanwhile".into()))
    }

    /// Waits until every other server that is alive has heard of the reset, so that what is sent after its
    /// acknowledgement is counted after it everywhere. One that does not hear of it in time closes the
    /// connections of such events, and counts none of them.
    async fn wait_for_adoption(&mut self) {
        let deadline = Instant::now() + ALIVE;
        let sql = "SELECT count(*) FROM ringtally.servers WHERE id <> $1 AND generation < $2 AND NOT ended
            AND seen > clock_timestamp() - make_interval(secs => $3)";
        let alive = ALIVE.as_secs_f64();
        while let Some(Connected { session, .. }) = &self.connection
            && Instant::now() < deadline
        {
            let (id, left) = (&self.id[..], deadline.saturating_duration_since(Instant::now()));
            let asking = async {
                Ok(session.client.query_one(sql, &[&id, &self.generation, &alive]).await?)
            };
            match within(left, asking).await {
                Ok(row) if row.get::<_, i64>(0) == 0 => return,
                Ok(_) => tokio::time::sleep(ADOPTION_POLL).await,
                Err(_) => self.connection = None,
            }
        }
        tokio::time::sleep_until(deadline.into()).await;
    }

    async fn try_to_read(&mut self) -> Result<Group, Trouble> {
        let (id, is_confirmed) = (self.id, self.is_confirmed);
        let Connected { session, read, .. } = self.connected().await?;
        if !is_confirmed {
            // Where a standby was promoted, this may be the server that it stands in for: it can be read, but
            // waits in vain for the standby to confirm what is written.
            let sql = "UPDATE ringtally.servers SET seen = now() WHERE id = $1";
            session.forget_warnings();
            session.client.execute(sql, &[&&id[..]]).await?;
            session.check_warnings()?;
        }
        let rows = session.client.query(read, &[&&id[..]]).await?;
        let rows = rows.iter().map(|row| {
            Ok(Share {
                is_this: row.get(0),
                name: row.get(1),
                events: count(row.get(2))?,
                users: count(row.get(3))?,
                sum: sums::unpack(row.get(4)).ok_or_else(damaged)?,
                has_ended: row.get(5),
                age: Duration::try_from_secs_f64(row.get(6)).unwrap_or(Duration::MAX),
            })
        });
        Ok(add_up(rows.collect::<Result<Vec<Share>, Trouble>>()?))
    }
}

fn attempt_limit(attempts: u32, users: usize) -> Duration {
    let users = u32::try_from(users).unwrap_or(u32::MAX);
    let once = ATTEMPT + ATTEMPT_PER_USER.saturating_mul(users);
    once.saturating_mul(1 << attempts.min(10)).min(ATTEMPT_MAX)
}

/// A number that no other process has.
fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    let filled = rustix::io::retry_on_intr(|| getrandom(&mut id, GetRandomFlags::empty()));
    assert_eq!(filled, Ok(id.len()), "Linux fills so few bytes at once");
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_gets_more_time_with_users_and_after_others() {
        assert_eq!(attempt_limit(0, 0), Duration::from_secs(5));
        assert_eq!(attempt_limit(0, 100_000), Duration::from_secs(55));
        assert_eq!(attempt_limit(2, 0), Duration::from_secs(20));
        assert_eq!(attempt_limit(u32::MAX, usize::MAX), ATTEMPT_MAX);
    }

    #[test]
    fn ids_differ() {
        assert_ne!(random_id(), random_id());
    }
}
