//! Reads a database's content and promises without changing it.

use super::error::{StoreError, within};
use super::session::{Purpose, Session, Unasked};
use super::shares::{count, damaged};
use super::target::Target;
use super::{ClientRuntime, schema, sums};
use crate::failure::Failure;
use crate::tally::{ExactSum, Totals};
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

/// The time that a database may take to respond.
const LIMIT: Duration = Duration::from_secs(600);

/// The content of a store.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// The totals over all servers.
    pub totals: Totals,
    /// The number of users in its list.
    pub users: u64,
    /// The standby that they were read on, if any, and the reason why no primary was found.
    pub standby: Option<String>,
}

/// A database's description of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// The host that answered, and its version.
    pub about: String,
    /// The reason why no primary was found, if it is a standby.
    pub no_primary: Option<String>,
    /// The time that it takes to respond.
    pub round_trip: Duration,
    /// Whether the connection is encrypted.
    pub is_encrypted: bool,
    /// Settings that let it lose what it confirmed, such as `fsync = off`.
    pub unsafe_settings: Vec<String>,
    /// `synchronous_standby_names`.
    pub standbys: String,
    /// The number of standbys that it waits for now.
    pub standbys_waited_for: u64,
    /// Whether the tables are there.
    pub has_tables: bool,
    /// Whether the role may create a missing schema, or use the tables of the existing one.
    pub has_rights: bool,
}

/// Returns the content of a store in PostgreSQL at one moment; `None` if no server has made one. Reads it on the first host
/// that is a primary or, if none is, on the first standby.
///
/// # Errors
///
/// [`Failure::Environment`] if the database does not answer, or holds a store of another format, or a damaged one.
pub fn inspect(target: &Target) -> Result<Option<Inspection>, Failure> {
    read_only(target, read)
}

/// Returns the description that the database of a store gives of itself.
///
/// # Errors
///
/// [`Failure::Environment`] if it does not answer.
pub fn examine(target: &Target) -> Result<Database, Failure> {
    read_only(target, ask)
}

/// Reads something in a read-only transaction.
fn read_only<T>(
    target: &Target,
    read: impl AsyncFnOnce(&Session) -> Result<T, StoreError>,
) -> Result<T, Failure> {
    let runtime = ClientRuntime::new()?;
    let reading = async {
        let (name, unasked, tried) =
            ("ringtally inspect", Unasked::default(), AtomicUsize::default());
        let session = Session::open(target, 0, Purpose::Read, name, &unasked, &tried).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        session.client.batch_execute(begin).await?;
        read(&session).await
    };
    let result = runtime.block_on(within(LIMIT, reading));
    result.map_err(|error| error.failure(target))
}

async fn read(session: &Session) -> Result<Option<Inspection>, StoreError> {
    if !schema::check(session).await? {
        return Ok(None);
    }
    let sql = "SELECT s.events, s.users, s.sum FROM ringtally.servers s JOIN ringtally.tally t USING (generation)";
    let (mut events, mut unique_users, mut sum) = (0, 0, ExactSum::default());
    for row in session.client.query(sql, &[]).await? {
        events += count(row.get(0))?;
        unique_users += count(row.get(1))?;
        sum.merge(&sums::unpack(row.get(2)).ok_or_else(damaged)?);
    }
    let sql = "SELECT count(*) FROM ringtally.users u JOIN ringtally.tally t USING (generation)";
    let users = count(session.client.query_one(sql, &[]).await?.get(0))?;
    if users != unique_users {
        return Err(StoreError::Lasting(format!(
            "it is damaged: its rows have {unique_users} users, and its list {users}: restore it from a backup"
        )));
    }
    let totals = Totals { total_requests: events, unique_users, sum: sum.round() };
    let Session { about, no_primary, .. } = session;
    let standby = no_primary.as_ref().map(|why| format!("{about} ({why})"));
    Ok(Some(Inspection { totals, users, standby }))
}

async fn ask(session: &Session) -> Result<Database, StoreError> {
    let client = &session.client;
    let started = Instant::now();
    client.query_one("SELECT 1", &[]).await?;
    let round_trip = started.elapsed();
    let sql =
        "SELECT current_setting('fsync') = 'off', current_setting('full_page_writes') = 'off',
        current_setting('synchronous_standby_names'),
        (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')),
        COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false),
        has_database_privilege(current_database(), 'CREATE')";
    let row = client.query_one(sql, &[]).await?;
    let names = ["fsync = off", "full_page_writes = off"];
    let unsafe_settings = names.iter().enumerate().filter(|(at, _)| row.get::<_, bool>(*at));
    let unsafe_settings = unsafe_settings.map(|(_, name)| (*name).to_owned()).collect();
    let has_tables = schema::check(session).await?;
    let has_rights = match has_tables {
        false => row.get(5),
        true => {
            // A call with a list of rights reports whether the role has any of them.
            let sql = "SELECT bool_and(has_table_privilege('ringtally.' || name, needed))
                FROM (VALUES ('servers', '{SELECT,INSERT,UPDATE,DELETE}'::text[]),
                    ('users', '{SELECT,INSERT,DELETE}'), ('tally', '{SELECT,UPDATE}')) AS tables(name, rights),
                    unnest(rights) AS needed";
            client.query_one(sql, &[]).await?.get(0)
        }
    };
    Ok(Database {
        about: session.about.clone(),
        no_primary: session.no_primary.clone(),
        round_trip,
        is_encrypted: row.get(4),
        unsafe_settings,
        standbys: row.get(2),
        standbys_waited_for: count(row.get(3))?,
        has_tables,
        has_rights,
    })
}
