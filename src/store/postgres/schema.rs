//! The tables, which have their own schema, and their version.

use super::error::StoreError;
use super::session::Session;

/// The version of the tables' content. A schema of another version is refused.
pub(super) const FORMAT: i64 = 1;

/// The lock that is held while the schema is created, so that only one server creates it: "ringtall" as a number.
const CREATION_LOCK: i64 = 0x7269_6e67_7461_6c6c;

/// The tables.
///
/// - `format` has the version of the other tables.
/// - `tally` has the number of resets, which is the generation. Only its users and its servers' totals count.
/// - `servers` has a row per process: its complete totals, and the number of users that it was the first to insert. Its rows
///   are replaced all the time, and free space in each page keeps their versions there.
/// - `users` has the distinct users.
const TABLES: &str = "\
    CREATE TABLE ringtally.format (
        version bigint NOT NULL
    );
    CREATE TABLE ringtally.tally (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        generation bigint NOT NULL
    );
    CREATE TABLE ringtally.servers (
        id bytea PRIMARY KEY,
        name text NOT NULL,
        generation bigint NOT NULL,
        sequence bigint NOT NULL,
        events bigint NOT NULL,
        users bigint NOT NULL,
        sum bytea NOT NULL,
        seen timestamptz NOT NULL DEFAULT now(),
        ended boolean NOT NULL DEFAULT false
    ) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
    CREATE TABLE ringtally.users (
        generation bigint NOT NULL,
        id bytea NOT NULL,
        PRIMARY KEY (generation, id)
    );
    INSERT INTO ringtally.tally (generation) VALUES (0);";

/// Makes sure that the schema exists and has this version.
///
/// # Errors
///
/// If it has another version, or is missing and this role may not create it.
pub(super) async fn prepare(session: &Session) -> Result<(), StoreError> {
    if check(session).await? {
        return Ok(());
    }
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    client.execute("SELECT pg_advisory_xact_lock($1)", &[&CREATION_LOCK]).await?;
    // Another server may have been faster.
    if !check(session).await? {
        let exists = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'ringtally')";
        if !client.query_one(exists, &[]).await?.get::<_, bool>(0) {
            // `CREATE SCHEMA IF NOT EXISTS` needs the right to create a schema even if the schema exists.
            client.batch_execute("CREATE SCHEMA ringtally").await?;
        }
        client.batch_execute(TABLES).await?;
        client.execute("INSERT INTO ringtally.format VALUES ($1)", &[&FORMAT]).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// Reports whether the schema exists and has this version. Does not change anything.
///
/// # Errors
///
/// If it has another version, or cannot be read.
pub(super) async fn check(session: &Session) -> Result<bool, StoreError> {
    let exists =
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'ringtally' AND c.relname = 'format')";
    if !session.client.query_one(exists, &[]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let rows = session.client.query("SELECT version FROM ringtally.format", &[]).await?;
    match rows.as_slice() {
        [row] if row.get::<_, i64>(0) == FORMAT => Ok(true),
        [row] => Err(StoreError::Lasting(format!(
            "its schema ringtally has format {}, which this version of ringtally does not know: use the \
             version that wrote it, or a newer one",
            row.get::<_, i64>(0)
        ))),
        _ => Err(StoreError::Lasting(
            "its schema ringtally was not written by ringtally, or is damaged: restore it from a backup, or \
             name another database"
                .into(),
        )),
    }
}
