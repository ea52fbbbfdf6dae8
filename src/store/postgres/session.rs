//! A connection to PostgreSQL, and the task that moves its bytes and receives its notices.

use super::error::StoreError;
use super::password;
use super::target::{Host, Target};
use super::tls::{Connector, Stream};
use super::warnings::{WarningLog, is_about_a_standby};
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::Severity;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Socket};

/// The oldest version of PostgreSQL that supports the statements, in PostgreSQL's own numbering.
const VERSION_MIN: i32 = 120_000;

/// The settings of every session. A commit is acknowledged once the database reports it as durable, so no setting of the role
/// or the database may weaken that. Each setting is set even if it already has the value: a setting that a session has not set
/// itself changes when the configuration is reloaded. A session of a disconnected server must not hold its locks for long,
/// because the server returns on another session.
const SETTINGS: &str = "\
    SET search_path = pg_catalog;
    SET client_min_messages = warning;
    SET default_transaction_isolation = 'read committed';
    SET default_transaction_deferrable = off;
    SET statement_timeout = 0;
    SET lock_timeout = 0;
    SET idle_in_transaction_session_timeout = '10s';
    SET tcp_keepalives_idle = 5;
    SET tcp_keepalives_interval = 1;
    SET tcp_keepalives_count = 5;
    SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)";

/// The purpose of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Reading: a standby is sufficient if none of the hosts is a primary.
    Read,
    /// Writing.
    Write,
}

/// The receivers of messages that the database sends unasked.
#[derive(Clone, Default)]
pub(super) struct Unasked {
    /// Wakes up on notifications from other servers.
    pub(super) news: Option<Arc<Notify>>,
    /// Receives warnings.
    pub(super) warnings: Option<Arc<WarningLog>>,
}

impl Unasked {
    pub(super) fn note_news(&self) {
        if let Some(news) = &self.news {
            news.notify_one();
        }
    }
}

/// A connection. Dropping it closes the connection.
pub(super) struct Session {
    pub(super) client: Client,
    /// The warning that a commit may be missing on the standby that it should have waited for.
    warning: Arc<Mutex<Option<String>>>,
    driver: JoinHandle<()>,
    /// The host, and the version of the database.
    pub(super) about: String,
    /// The reason why no primary was found, if the host is a standby.
    pub(super) no_primary: Option<String>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Connects to a host that accepts the login and can serve the purpose: the first such host from the number `first` on or,
    /// for reading, a standby if no host is a primary. `tried` has the number of the last host that was tried, even if this
    /// call is cut off.
    ///
    /// # Errors
    ///
    /// The reasons why none of them did. The error is passing if any of them may do so later.
    pub(super) async fn open(
        target: &Target,
        first: usize,
        purpose: Purpose,
        application: &str,
        unasked: &Unasked,
        tried: &AtomicUsize,
    ) -> Result<Session, StoreError> {
        let connector = target.tls.connector(&target.roots).map_err(StoreError::Lasting)?;
        let (mut worst, mut standby) = (None, None);
        let mut reasons = Vec::new();
        for host in (0..target.hosts.len()).map(|number| (first + number) % target.hosts.len()) {
            tried.store(host, Ordering::Relaxed);
            let connecting =
                Session::connect(target, host, purpose, application, connector.clone(), unasked);
            let error = match timeout(target.patience.connect, connecting).await {
                Ok(Ok(session)) => match session.no_primary.clone() {
                    None => return Ok(session),
                    Some(why) => {
                        standby.get_or_insert(session);
                        StoreError::Passing(why)
                    }
                },
                Ok(Err(error)) => error,
                Err(_) => {
                    let ms = target.patience.connect.as_millis();
                    StoreError::Passing(format!("it did not respond within {ms} ms"))
                }
            };
            reasons.push(format!("{}: {error}", target.hosts[host]));
            if !matches!(worst, Some(StoreError::Passing(_))) {
                worst = Some(error);
            }
        }
        let reasons = reasons.join("; ");
        if let Some(session) = &mut standby {
            session.no_primary = Some(reasons.clone());
        }
        standby.ok_or(match worst {
            Some(StoreError::Lasting(_)) => StoreError::Lasting(reasons),
            Some(StoreError::Refused(_)) => StoreError::Refused(reasons),
            Some(StoreError::Passing(_) | StoreError::Unconfirmed(_)) | None => {
                StoreError::Passing(reasons)
            }
        })
    }

    async fn connect(
        target: &Target,
        number: usize,
        purpose: Purpose,
        application: &str,
        connector: Connector,
        unasked: &Unasked,
    ) -> Result<Session, StoreError> {
        let host = &target.hosts[number];
        let (password, ignored) = password::find(target, host);
        let config = config(target, host, application, password.map(|password| password.0));
        let (client, connection) = config.connect(connector).await.map_err(|error| {
            match (StoreError::from(error), ignored) {
                // The missing password is in a file that was not used.
                (StoreError::Refused(why), Some(ignored)) => StoreError::Refused(format!("{ignored}; {why}")),
                // A password is missing, so none can be sent.
                (StoreError::Passing(why), ignored) if why == "password missing" => {
                    let ignored = ignored.map_or(String::new(), |ignored| format!("{ignored}; "));
                    StoreError::Refused(format!(
                        "{ignored}it asks for a password: set PGPASSWORD, or PGPASSFILE to the name of a \
                         file that has it"
                    ))
                }
                (error, _) => error,
            }
        })?;
        let version = connection.parameter("server_version").unwrap_or("of unknown version");
        let about = format!("PostgreSQL {version} on {host}");
        let warning = Arc::default();
        let driver = tokio::spawn(drive(connection, Arc::clone(&warning), unasked.clone()));
        let mut session = Session { client, warning, driver, about, no_primary: None };
        session.no_primary = session.check(purpose).await?;
        session.client.batch_execute(SETTINGS).await?;
        Ok(session)
    }

    /// Refuses a database that is too old, or that cannot serve the purpose of the session. Returns the reason why it is not a
    /// primary, unless it is one.
    async fn check(&self, purpose: Purpose) -> Result<Option<String>, StoreError> {
        let sql = "SELECT current_setting('server_version_num')::int,
            pg_is_in_recovery(), current_setting('transaction_read_only')::boolean";
        let row = self.client.query_one(sql, &[]).await?;
        if row.get::<_, i32>(0) < VERSION_MIN {
            return Err(StoreError::Lasting(format!("{} is too old: use 12 or newer", self.about)));
        }
        if row.get(1) {
            let why = "it is a standby, which is read-only".into();
            return if purpose == Purpose::Read {
                Ok(Some(why))
            } else {
                Err(StoreError::Passing(why))
            };
        }
        if purpose == Purpose::Write && row.get(2) {
            return Err(StoreError::Passing(
                "its sessions are read-only, and it is no standby: set default_transaction_read_only to off for the \
                 role, the database, or the server, whichever has it on"
                    .into(),
            ));
        }
        Ok(None)
    }

    /// Forgets a warning about another commit.
    pub(super) fn forget_warning(&self) {
        lock(&self.warning).take();
    }

    /// Returns an error if the database has warned that a commit may not be on the standby that it should have waited for.
    pub(super) fn check_warning(&self) -> Result<(), StoreError> {
        match lock(&self.warning).take() {
            None => Ok(()),
            Some(warning) => {
                Err(StoreError::Unconfirmed(format!("PostgreSQL warned \"{warning}\"")))
            }
        }
    }
}

fn config(target: &Target, host: &Host, application: &str, password: Option<String>) -> Config {
    let patience = &target.patience;
    let mut config = Config::new();
    config
        .user(&target.user)
        .dbname(&target.database)
        .port(host.port)
        .application_name(target.application.as_deref().unwrap_or(application))
        .channel_binding(target.binding)
        .connect_timeout(patience.connect)
        .keepalives(patience.keepalives)
        .keepalives_idle(patience.idle)
        .keepalives_interval(patience.interval)
        .keepalives_retries(patience.count)
        .tcp_user_timeout(patience.user_timeout);
    if host.is_socket() {
        config.host_path(&host.name).ssl_mode(SslMode::Disable);
    } else {
        config.host(&host.name).ssl_mode(target.tls.negotiation());
    }
    if let Some(address) = host.address {
        config.hostaddr(address);
    }
    if let Some(password) = password {
        config.password(password);
    }
    if let Some(options) = &target.options {
        config.options(options);
    }
    config
}

/// Moves the bytes of a connection until it ends.
async fn drive(
    mut connection: Connection<Socket, Stream>,
    warning: Arc<Mutex<Option<String>>>,
    unasked: Unasked,
) {
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            AsyncMessage::Notification(_) => unasked.note_news(),
            AsyncMessage::Notice(notice) if notice.parsed_severity() == Some(Severity::Warning) => {
                if is_about_a_standby(notice.routine(), notice.message()) {
                    *lock(&warning) = Some(notice.message().to_owned());
                } else if let Some(warnings) = &unasked.warnings {
                    warnings.note(notice.code().code(), notice.routine(), notice.message());
                }
            }
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Its content changes atomically.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
