//! A store that any number of servers share: PostgreSQL, where each process has a row of its own with its totals in
//! full, and the totals of the group are the sum over the rows.
//!
//! The client of PostgreSQL needs a runtime, which is on a thread of its own and serves it between commits, too: so
//! a reset by another server is heard of at once.

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
mod trouble;
mod warnings;

use super::{Group, News, Outcome, Store};
use crate::failure::Failure;
use crate::log::Log;
use crate::tally::{State, UserIds};
use crate::uring::Wakeup;
pub use inspect::{Database, Inspection, examine, inspect};
use link::Postgres;
pub use link::{Id, Link, Write};
pub use member::Member;
use session::Unasked;
pub use shares::Share;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sweep::Sweeper;
pub use target::{Target, without_password};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;
pub use trouble::Trouble;
use warnings::WarningLog;

/// How often a server commits in any case: others count it as alive for three seconds.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The shortest time for a transaction: the database is there for many servers, and a commit that waits a moment
/// carries more. One server makes no more than a thousand per second, reads included, each of which is sent together with
/// the write that confirms it.
const TRANSACTION: Duration = Duration::from_micros(1_050);

/// A store in PostgreSQL. Dropped, it leaves the group, whose totals keep what it counted.
#[derive(Debug)]
pub struct PostgresStore {
    /// `None` once it is dropped.
    requests: Option<UnboundedSender<Request>>,
    thread: Option<JoinHandle<()>>,
    news: Arc<Wakeup>,
    /// When the next transaction may begin.
    next: Instant,
}

/// What the thread of the store is asked for, with where the answer goes.
#[derive(Debug)]
enum Request {
    Introduce(String),
    Commit(Box<State>, UserIds, Sender<Result<Outcome, Failure>>),
    Read(Sender<Result<Group, Failure>>),
}

impl PostgresStore {
    /// Connects, creates the tables where there are none, and joins the group of servers with a row of its own.
    /// Returns also what the group has counted.
    ///
    /// # Errors
    ///
    /// [`Failure::Environment`]: the database did not respond within `timeout`, does not let this server in, or
    /// has tables of another format.
    pub fn open(
        target: &Target,
        timeout: Duration,
        log: Log,
    ) -> Result<(PostgresStore, Group), Failure> {
        let no_room = |error| Failure::Environment(format!("the store cannot be opened ({error})"));
        let news = Arc::new(Wakeup::new().map_err(no_room)?);
        let runtime = runtime().map_err(no_room)?;
        let (requests, received) = unbounded_channel();
        let (joined, is_joined) = channel();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn({
                let (target, news) = (target.clone(), Arc::clone(&news));
                move || {
                    let warnings = Some(Rc::new(WarningLog::new(log, target.to_string())));
                    let first_host = Rc::new(Cell::new(0));
                    let of_sweeper = Unasked { news: None, warnings };
                    let of_member = Unasked { news: Some(news), ..of_sweeper.clone() };
                    let sweeper = Sweeper::new(target.clone(), Rc::clone(&first_host), of_sweeper);
                    let member = Member::new(Postgres::new(target, log, of_member, first_host));
                    let serving = serve(member, sweeper, timeout, joined, received);
                    LocalSet::new().block_on(&runtime, serving);
                    // A name that is being looked up is not waited for.
                    runtime.shutdown_background();
                }
            })
            .map_err(no_room)?;
        let store = PostgresStore {
            requests: Some(requests),
            thread: Some(thread),
            news,
            next: Instant::now(),
        };
        let group = answer(&is_joined)??;
        Ok((store, group))
    }

    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Result<T, Failure> {
        let (sender, receiver) = channel();
        if let Some(requests) = &self.requests {
            // Where the thread has died, so has the sender.
            let _ = requests.send(request(sender));
        }
        answer(&receiver)
    }
}

/// What the thread of the store answers.
fn answer<T>(receiver: &Receiver<T>) -> Result<T, Failure> {
    receiver
        .recv()
        .map_err(|_| Failure::Wrong("the thread of the store died: its error is above".into()))
}

impl Store for PostgresStore {
    /// None: which users are known is decided by the database.
    fn users(&mut self, _: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
        Ok(())
    }

    fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<Outcome, Failure> {
        self.next = Instant::now() + TRANSACTION;
        self.ask(|sender| Request::Commit(Box::new(state.clone()), new_users.clone(), sender))?
    }

    fn read(&mut self) -> Result<Option<Group>, Failure> {
        self.next = self.next.max(Instant::now()) + TRANSACTION;
        self.ask(Request::Read)?.map(Some)
    }

    fn news(&self) -> Option<News> {
        Some(News { wakeup: Arc::clone(&self.news), every: HEARTBEAT })
    }

    fn introduce(&mut self, name: &str) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(Request::Introduce(name.into()));
        }
    }

    fn pace(&mut self) {
        std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.requests = None;
        // It ends soon, whatever the database does. If it panicked, that has been reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Joins the group, says what came of that, and serves requests until nobody can send one anymore.
async fn serve(
    mut member: Member<Postgres>,
    sweeper: Sweeper,
    timeout: Duration,
    joined: Sender<Result<Group, Failure>>,
    mut requests: UnboundedReceiver<Request>,
) {
    let result = member.join(timeout).await;
    let has_joined = result.is_ok();
    let _ = joined.send(result);
    if !has_joined {
        return;
    }
    tokio::task::spawn_local(sweeper.run());
    while let Some(request) = requests.recv().await {
        // Where nobody waits for an answer anymore, the process ends.
        match request {
            Request::Introduce(name) => member.introduce(name).await,
            Request::Commit(state, new_users, sender) => {
                let _ = sender.send(member.commit(&state, &new_users).await);
            }
            Request::Read(sender) => {
                let _ = sender.send(member.read().await);
            }
        }
    }
    member.leave().await;
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_io().enable_time().build()
}
