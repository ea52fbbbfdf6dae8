//! A store that any number of servers share: PostgreSQL, with one row per process that has all of its totals. The totals of the
//! group are the sum over the rows.
//!
//! The PostgreSQL client needs a runtime, which the committer's thread drives whenever it waits for the database or for
//! something to commit. So a reset by another server is noticed immediately.

mod error;
mod inspect;
mod link;
mod member;
mod password;
mod schema;
mod session;
mod shares;
mod sums;
mod sweep;
mod target;
mod tls;
mod warnings;

use super::{Group, Outcome, SharedTotals, Store};
use crate::failure::Failure;
use crate::log::Log;
use crate::tally::{State, UserIds};
pub use error::{RIGHTS, StoreError};
use futures_lite::future::{or, poll_once};
pub use inspect::{Database, Inspection, examine, inspect};
use link::Postgres;
pub use link::{Id, Link, MAY_COMMIT, MAY_WRITE, Standing, Write};
pub use member::Member;
use session::Unasked;
pub use shares::Share;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sweep::Sweeper;
pub use target::{Target, without_password};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use warnings::WarningLog;

/// The heartbeat interval: a server commits at least this often, because others count it as alive for three seconds.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The shortest time for a transaction: the database serves many servers, and a commit that waits a moment carries more. One
/// server makes at most a thousand transactions per second, including reads. Each read is sent together with the write that
/// confirms it.
const TRANSACTION: Duration = Duration::from_micros(1_050);

/// A store in PostgreSQL. Dropping it leaves the group, whose totals keep the events that it counted.
pub struct PostgresStore {
    runtime: ClientRuntime,
    member: Member<Postgres>,
    /// Notified when another server has reset the totals.
    news: Arc<Notify>,
    /// The earliest start of the next transaction.
    next: Instant,
    /// The time of the next commit if nothing changes.
    due_at: Instant,
}

impl PostgresStore {
    /// Connects, creates the tables if they are missing, and joins the group of servers with its own row. Returns the store and
    /// the totals of the group.
    ///
    /// # Errors
    ///
    /// [`Failure::Environment`] if the database does not respond within `timeout`, does not let this server in, or has tables
    /// of another format.
    pub fn open(
        target: &Target,
        timeout: Duration,
        log: Log,
    ) -> Result<(PostgresStore, Group), Failure> {
        let runtime = ClientRuntime::new()?;
        let (news, now) = (Arc::new(Notify::new()), Instant::now());
        let warnings = Some(Arc::new(WarningLog::new(log, target.to_string())));
        let first_host = Arc::default();
        let of_sweeper = Unasked { news: None, warnings };
        let of_member = Unasked { news: Some(Arc::clone(&news)), ..of_sweeper.clone() };
        let sweeper = Sweeper::new(target.clone(), Arc::clone(&first_host), of_sweeper);
        let member = Member::new(Postgres::new(target.clone(), log, of_member, first_host));
        let mut store = PostgresStore { runtime, member, news, next: now, due_at: now };
        let group = store.runtime.block_on(store.member.join(timeout))?;
        store.runtime.spawn(sweeper.run());
        Ok((store, group))
    }
}

impl Store for PostgresStore {
    /// Does not call `each`: the database decides which users are known.
    fn users(&mut self, _: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
        Ok(())
    }

    fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<Outcome, Failure> {
        self.next = Instant::now() + TRANSACTION;
        let outcome = self.runtime.block_on(self.member.commit(state, new_users));
        self.due_at = Instant::now() + HEARTBEAT;
        outcome
    }

    fn shared(&mut self) -> Option<&mut dyn SharedTotals> {
        Some(self)
    }

    fn wait(&mut self, wakeup: &Notify, is_wanted: bool) -> bool {
        if is_wanted {
            // This is too short for a timer of the runtime.
            std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
        }
        let reason = has_reason(&self.news, self.due_at, (!is_wanted).then_some(wakeup));
        self.runtime.block_on(reason)
    }

    fn introduce(&mut self, name: &str) {
        self.runtime.block_on(self.member.introduce(name.into()));
    }
}

impl SharedTotals for PostgresStore {
    fn read(&mut self) -> Result<Group, Failure> {
        self.next = self.next.max(Instant::now()) + TRANSACTION;
        self.runtime.block_on(self.member.read())
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        // This ends soon, whatever the database does.
        self.runtime.block_on(self.member.leave());
    }
}

/// Returns whether there is a reason to commit although nothing has changed: others have news, or a commit is due. Given a
/// wake-up, waits until there is a reason, or for the wake-up.
async fn has_reason(news: &Notify, due_at: Instant, wakeup: Option<&Notify>) -> bool {
    let has_news = async {
        news.notified().await;
        true
    };
    let is_due = async {
        tokio::time::sleep_until(due_at.into()).await;
        true
    };
    let is_woken = async |wakeup: &Notify| {
        wakeup.notified().await;
        false
    };
    match wakeup {
        Some(wakeup) => or(or(has_news, is_due), is_woken(wakeup)).await,
        None => poll_once(has_news).await.is_some() || Instant::now() >= due_at,
    }
}

/// The client's runtime, whose end does not wait for the lookup of a name.
struct ClientRuntime(Option<Runtime>);

impl ClientRuntime {
    fn new() -> Result<ClientRuntime, Failure> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        runtime
            .map(|runtime| ClientRuntime(Some(runtime)))
            .map_err(|error| Failure::Environment(format!("the store cannot be opened ({error})")))
    }

    /// Drives everything until some work is done.
    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime().block_on(work)
    }

    /// Begins work that continues whenever the runtime is driven.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime().spawn(work);
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("only its end takes it")
    }
}

impl Drop for ClientRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_waits_for_a_wake_up_for_news_and_for_its_heartbeat() {
        let runtime = ClientRuntime::new().unwrap();
        let (news, wakeup) = (Notify::new(), Notify::new());
        let (past, later) = (Instant::now(), Instant::now() + Duration::from_secs(3600));
        let asks = |due_at| runtime.block_on(has_reason(&news, due_at, None));
        let waits = |due_at| runtime.block_on(has_reason(&news, due_at, Some(&wakeup)));
        // A wanted commit does not wait for anything.
        assert!(!asks(later) && asks(past));
        news.notify_one();
        assert!(asks(later) && !asks(later), "news is a reason once");
        assert!(waits(past) && waits(Instant::now() + Duration::from_millis(20)));
        (0..3).for_each(|_| wakeup.notify_one());
        news.notify_one();
        assert!(waits(later), "news");
        assert!(!waits(later), "the wake-up has been kept");
        std::thread::scope(|scope| {
            scope.spawn(|| wakeup.notify_one());
            assert!(!waits(later));
            scope.spawn(|| news.notify_one());
            assert!(waits(later));
        });
    }
}
