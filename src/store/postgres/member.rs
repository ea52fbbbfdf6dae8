//! One server's part in the group: its row, the commits to it, and its behavior while the database is away.
//!
//! Every write of a server to its row has a number, one more than the write before it, and is made only if the row has the
//! preceding number. So a write whose outcome is unknown is repeated as it is: if it was made, the row has its number, and the
//! repetition does not change anything. If it is still in progress on a connection that was lost, the repeated write waits for
//! it, or the original write comes too late. If the row has an older number than a confirmed write, or is missing although
//! nobody may have removed it, the database has an older state. After an hour without contact, a missing row proves nothing:
//! others may have removed it.
//!
//! The number of resets, or the generation, is read and not locked: a commit that read the old generation contained only events
//! received before the reset was acknowledged, and belongs before the reset.
//!
//! Totals that were read are shown only once a write that began after the read has been confirmed. A primary that its standby
//! has replaced can still be read, but that standby never confirms anything written there. And if the totals are not on the
//! standby yet, they get there before the write does.

use super::error::{StoreError, within};
use super::link::{ALIVE, Id, Link, Write};
use super::shares::add_up;
use crate::failure::Failure;
use crate::store::{Group, Outcome};
use crate::tally::{State, UserIds};
use rustix::rand::{GetRandomFlags, getrandom};
use std::time::Duration;

/// The time that a row is kept after its server was last seen, by the clock of the database; and by the clock of the server,
/// which may be slower.
pub(super) const GONE: Duration = Duration::from_secs(3600);
const GONE_AT_LEAST: Duration = Duration::from_secs(3540);

/// The time between checks of whether the others have noticed a reset.
const ADOPTION_POLL: Duration = Duration::from_millis(3);

/// The shortest time limit of an attempt, and the time added for each new user. The limit doubles with each further attempt, so
/// that a slow database eventually gets enough time.
pub(super) const ATTEMPT: Duration = Duration::from_secs(5);
const ATTEMPT_PER_USER: Duration = Duration::from_micros(500);
const ATTEMPT_MAX: Duration = Duration::from_secs(600);

/// The pauses between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A generation before all others, whose commits are superseded.
const NO_GENERATION: i64 = -1;

/// A server of the group.
#[derive(Debug)]
pub struct Member<L> {
    link: L,
    /// The row of this server; another one if this row is lost.
    id: Id,
    has_row: bool,
    name: String,
    /// The number of the last write that was made.
    sequence: i64,
    /// Whether the next write was sent already, with an unknown outcome.
    is_in_doubt: bool,
    /// The start of the last successful write.
    seen_at: Duration,
    /// The group's generation that this server's totals belong to.
    generation: i64,
    /// This server's count of resets at the last commit.
    local_generation: u64,
    /// Whether the last commit was superseded, so that the next state follows the other server's reset.
    is_superseded: bool,
    /// The moment since which the database has been away.
    away_since: Option<Duration>,
}

/// The content of a commit.
struct Change<'a> {
    is_reset: bool,
    state: &'a State,
    /// The new users, sorted.
    users: Vec<&'a [u8]>,
}

/// The result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// It is durable, in this generation of the group.
    In(i64),
    /// The group is in this later generation.
    Superseded(i64),
    /// The row did not exist.
    NotYet,
}

impl<L: Link> Member<L> {
    /// Creates a server that has not joined yet.
    pub fn new(link: L) -> Member<L> {
        Member {
            link,
            id: random_id(),
            has_row: false,
            name: String::new(),
            sequence: 0,
            is_in_doubt: false,
            seen_at: Duration::ZERO,
            generation: NO_GENERATION,
            local_generation: 0,
            is_superseded: false,
            away_since: None,
        }
    }

    /// Connects for the first time, joins the group, and reads its totals.
    ///
    /// # Errors
    ///
    /// If the database does not respond within `timeout`, does not let this server in, or has another format.
    pub async fn join(&mut self, timeout: Duration) -> Result<Group, Failure> {
        let deadline = self.link.now() + timeout;
        // Leave time for each of the hosts, even if the first one accepts connections and does not confirm anything.
        let limit = timeout / self.link.hosts();
        let mut pause = PAUSE_MIN;
        // The latest reason that an attempt gave. The last attempt may have too little time left to learn it again.
        let mut said = None;
        loop {
            let left = deadline.saturating_sub(self.link.now());
            let (why, is_unconfirmed) =
                match within(left.min(limit).max(PAUSE_MIN), self.try_to_join()).await {
                    Ok(group) => return Ok(group),
                    Err(StoreError::Passing(why)) => (said.insert(why).clone(), false),
                    Err(StoreError::Unconfirmed(why)) => match &said {
                        Some(said) => (format!("{why}; before that: {said}"), true),
                        None => (why, true),
                    },
                    Err(error) => return Err(self.failure(&error)),
                };
            self.link.disconnect(is_unconfirmed);
            let left = deadline.saturating_sub(self.link.now());
            if left.is_zero() {
                let (target, timeout) = (self.link.target(), humantime::format_duration(timeout));
                return Err(Failure::Environment(format!(
                    "the store {target} could not be used within {timeout} ({why}): start the database, check \
                     the host and the port, or raise --store-timeout"
                )));
            }
            self.link.pause(pause.min(left)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn try_to_join(&mut self) -> Result<Group, StoreError> {
        self.link.connect().await?;
        if !self.has_row {
            self.generation = self.register().await?;
        }
        match self.try_to_read().await? {
            Some(group) => Ok(group),
            None => Err(StoreError::Passing("the row of this server was removed".into())),
        }
    }

    /// Sets the name of this server.
    pub async fn introduce(&mut self, name: String) {
        self.name = name;
        // If that fails, only a name is missing.
        let _ = within(ATTEMPT, self.link.rename(&self.id, &self.name)).await;
    }

    /// Makes a state durable, however long that takes.
    ///
    /// # Errors
    ///
    /// If an error occurs that no further attempt can overcome.
    pub async fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<Outcome, Failure> {
        let resets = state.generation - self.local_generation;
        if self.is_superseded && resets == 0 {
            return Ok(Outcome::Superseded);
        }
        let mut users: Vec<&[u8]> = new_users.iter().collect();
        users.sort_unstable();
        let is_reset = resets > u64::from(self.is_superseded);
        let change = Change { is_reset, state, users };
        let (mut attempts, mut pause) = (0, PAUSE_MIN);
        let made = loop {
            let limit = attempt_limit(attempts, change.users.len());
            attempts += 1;
            match within(limit, self.attempt(&change)).await {
                Ok(Made::In(generation)) => break Ok(generation),
                Ok(Made::Superseded(generation)) => break Err(generation),
                Ok(Made::NotYet) => {}
                Err(error) => self.stand(error, &mut pause).await?,
            }
        };
        self.note_back();
        self.local_generation = state.generation;
        self.is_superseded = made.is_err();
        match made {
            Ok(generation) => {
                self.generation = generation;
                if is_reset {
                    self.wait_for_adoption().await;
                }
                Ok(Outcome::Durable)
            }
            Err(generation) => {
                self.generation = generation;
                Ok(Outcome::Superseded)
            }
        }
    }

    /// Returns the totals of the group at a moment after the call, which nothing can undo.
    ///
    /// # Errors
    ///
    /// The errors of [`Member::commit`].
    pub async fn read(&mut self) -> Result<Group, Failure> {
        let (mut attempts, mut pause) = (0, PAUSE_MIN);
        loop {
            let limit = attempt_limit(attempts, 0);
            attempts += 1;
            match within(limit, self.try_to_read()).await {
                Ok(Some(group)) => {
                    self.note_back();
                    return Ok(group);
                }
                Ok(None) => {}
                Err(error) => self.stand(error, &mut pause).await?,
            }
        }
    }

    /// Notes that this server has ended, so that no reset waits for it.
    pub async fn leave(&mut self) {
        // If that fails, it counts as alive for a few more seconds.
        let _ = within(Duration::from_millis(500), self.link.end(&self.id)).await;
    }

    fn failure(&self, error: &StoreError) -> Failure {
        Failure::Environment(format!("the store {}: {error}", self.link.target()))
    }

    /// Prepares another attempt after a failed one, or gives up.
    async fn stand(&mut self, error: StoreError, pause: &mut Duration) -> Result<(), Failure> {
        // Whatever was in progress on the old connection, the next attempt begins on a new one.
        self.link.disconnect(matches!(error, StoreError::Unconfirmed(_)));
        match error {
            StoreError::Lasting(_) => return Err(self.failure(&error)),
            StoreError::Passing(why) | StoreError::Unconfirmed(why) | StoreError::Refused(why) => {
                if self.away_since.is_none() {
                    self.away_since = Some(self.link.now());
                    self.link.warn(&format!("{why}: trying again"));
                }
            }
        }
        self.link.pause(pause.mul_f64(fastrand::f64() / 2.0 + 0.5)).await;
        *pause = (*pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    fn note_back(&mut self) {
        if let Some(since) = self.away_since.take() {
            let seconds = self.link.now().saturating_sub(since).as_secs_f64();
            self.link.inform(&format!("it responds again after {seconds:.1} s"));
        }
    }

    /// Adds the row of this server, unless it exists. Returns the row's generation.
    async fn register(&mut self) -> Result<i64, StoreError> {
        let began = self.link.now();
        let generation = self.link.register(&self.id, &self.name).await?;
        (self.has_row, self.seen_at) = (true, began);
        Ok(generation)
    }

    /// Notes that a write is about to be sent. Returns whether it was sent before.
    fn begin_write(&mut self) -> bool {
        std::mem::replace(&mut self.is_in_doubt, true)
    }

    /// Notes that a write that began at this time was made.
    fn note_made(&mut self, began: Duration) {
        (self.is_in_doubt, self.seen_at) = (false, began);
        self.sequence += 1;
    }

    async fn attempt(&mut self, change: &Change<'_>) -> Result<Made, StoreError> {
        self.link.connect().await?;
        if !self.has_row {
            // The totals of this server belong to the row that it had, and to the generation of that row.
            self.register().await?;
        }
        let began = self.link.now();
        let is_repeat = self.begin_write();
        let write = Write {
            id: &self.id,
            sequence: self.sequence + 1,
            is_repeat,
            generation: self.generation,
            is_reset: change.is_reset,
            state: change.state,
            users: &change.users,
        };
        if let Some(generation) = self.link.commit(&write).await? {
            self.note_made(began);
            return Ok(Made::In(generation));
        }
        self.is_in_doubt = is_repeat;
        match self.look().await? {
            // It is unknown whether the reset was made, and another one would discard the events counted since.
            None if change.is_reset && is_repeat => Ok(Made::Superseded(NO_GENERATION)),
            None => Ok(Made::NotYet),
            Some((of_group, _)) if of_group > self.generation && !change.is_reset => {
                // An attempt may still be in progress on a lost connection, and must not be mistaken for the next commit: this
                // waits for its number and makes it come too late.
                let next = self.sequence + 2;
                if !self.link.skip_to(&self.id, next).await? {
                    return Err(changed());
                }
                (self.sequence, self.is_in_doubt, self.seen_at) = (next, false, began);
                Ok(Made::Superseded(of_group))
            }
            Some((_, sequence)) => Err(self.why_not(sequence)),
        }
    }

    /// Reads the totals, and confirms them. `None` if the row does not exist.
    async fn try_to_read(&mut self) -> Result<Option<Group>, StoreError> {
        self.link.connect().await?;
        if !self.has_row {
            self.register().await?;
        }
        let began = self.link.now();
        let is_repeat = self.begin_write();
        // Both are sent together, and the database begins the second after it has finished the first.
        let reading = self.link.rows(&self.id);
        let confirming = self.link.confirm(&self.id, self.sequence + 1, is_repeat);
        let (rows, is_confirmed) = futures_lite::future::try_zip(reading, confirming).await?;
        if is_confirmed {
            self.note_made(began);
            return Ok(Some(add_up(rows)));
        }
        self.is_in_doubt = is_repeat;
        match self.look().await? {
            None => Ok(None),
            Some((_, sequence)) => Err(self.why_not(sequence)),
        }
    }

    /// Examines the row after a write that has not changed anything. Returns the generation of the group, and the number of the
    /// last write to the row; `None` if the row is gone because this server was not seen for too long.
    async fn look(&mut self) -> Result<Option<(i64, i64)>, StoreError> {
        let older = || {
            StoreError::Lasting(
                "it holds an older state than it had confirmed, as a standby that was not synchronous does, or \
                 a backup: restart the server to go on from that state"
                    .into(),
            )
        };
        let (of_group, sequence) = self.link.look(&self.id).await?;
        let Some(sequence) = sequence else {
            if self.link.now().saturating_sub(self.seen_at) < GONE_AT_LEAST {
                // It is too early for anybody to have removed the row.
                return Err(older());
            }
            // Its totals were added to the totals of ended servers, and this server begins again.
            (self.id, self.has_row) = (random_id(), false);
            (self.sequence, self.is_in_doubt, self.generation) = (0, false, NO_GENERATION);
            return Ok(None);
        };
        if of_group < self.generation || sequence < self.sequence {
            return Err(older());
        }
        Ok(Some((of_group, sequence)))
    }

    /// Returns the reason why a write was not made if the row has a number.
    fn why_not(&self, sequence: i64) -> StoreError {
        // A write that was sent once may have been made in the meantime.
        match sequence > self.sequence + i64::from(self.is_in_doubt) {
            true => StoreError::Lasting(
                "another process writes to the row of this server, as a copy of a virtual machine does: stop it, \
                 and restart this server"
                    .into(),
            ),
            false => changed(),
        }
    }

    /// Waits until every other live server has learned of the reset, so that events sent after its acknowledgement are
    /// counted after it everywhere. A server that does not notice it in time closes the connections of such events and counts
    /// none of them.
    async fn wait_for_adoption(&mut self) {
        let deadline = self.link.now() + ALIVE;
        loop {
            let left = deadline.saturating_sub(self.link.now());
            if left.is_zero() {
                return;
            }
            match within(left, self.link.lagging(&self.id, self.generation)).await {
                Ok(0) => return,
                Ok(_) => self.link.pause(ADOPTION_POLL).await,
                Err(_) => {
                    self.link.disconnect(false);
                    return self.link.pause(deadline.saturating_sub(self.link.now())).await;
                }
            }
        }
    }
}

fn changed() -> StoreError {
    StoreError::Passing("the row of this server changed meanwhile".into())
}

fn attempt_limit(attempts: u32, users: usize) -> Duration {
    let users = u32::try_from(users).unwrap_or(u32::MAX);
    let once = ATTEMPT + ATTEMPT_PER_USER.saturating_mul(users);
    once.saturating_mul(1 << attempts.min(10)).min(ATTEMPT_MAX)
}

/// Returns a number that differs from the number of every other process.
fn random_id() -> Id {
    let mut id = [0; 16];
    let filled = rustix::io::retry_on_intr(|| getrandom(&mut id, GetRandomFlags::empty()));
    assert_eq!(filled, Ok(id.len()), "Linux fills so few bytes at once");
    id
}

#[cfg(test)]
mod tests;
