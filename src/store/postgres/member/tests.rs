//! A server of the group on a clock that only its waits move, with a database of one row that follows a script.

use super::super::shares::Share;
use super::super::{Standing, StoreError};
use super::*;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::pending;
use std::rc::Rc;
use tokio::time::{Instant, sleep};

/// The outcome of a request.
enum Fate {
    Done,
    /// It fails, for this passing reason.
    Fails(&'static str),
    /// A response never comes.
    Silence,
}

/// The database, its next outcomes, and the messages to it and to the operator.
struct Script {
    began: Instant,
    is_connected: Cell<bool>,
    /// The number of the last write to the row, if the row exists.
    row: Cell<Option<i64>>,
    generation: Cell<i64>,
    /// The next attempts to connect. The others succeed.
    connects: RefCell<VecDeque<Fate>>,
    /// Whether the next commit is made, and its connection lost.
    is_commit_cut: Cell<bool>,
    /// The results of asking how many servers are in an older generation. Afterward, none is.
    lagging: RefCell<VecDeque<(Fate, u64)>>,
    said: RefCell<Vec<String>>,
    pauses_ms: RefCell<Vec<u64>>,
}

impl Script {
    fn say(&self, what: String) {
        self.said.borrow_mut().push(what);
    }

    fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn take_said(&self) -> Vec<String> {
        self.said.take()
    }
}

impl Fate {
    async fn meet(self) -> Result<(), StoreError> {
        match self {
            Fate::Done => Ok(()),
            Fate::Fails(why) => Err(StoreError::Passing(why.into())),
            Fate::Silence => pending().await,
        }
    }
}

impl Link for Rc<Script> {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn pause(&self, time: Duration) {
        self.pauses_ms.borrow_mut().push(u64::try_from(time.as_millis()).unwrap());
        sleep(time).await;
    }

    fn target(&self) -> String {
        "scripted".into()
    }

    fn warn(&self, what: &str) {
        self.say(format!("warning: {what}"));
    }

    fn inform(&self, what: &str) {
        self.say(what.into());
    }

    fn hosts(&self) -> u32 {
        2
    }

    async fn connect(&mut self) -> Result<(), StoreError> {
        if !self.is_connected.get() {
            let fate = self.connects.borrow_mut().pop_front();
            fate.unwrap_or(Fate::Done).meet().await?;
            self.is_connected.set(true);
        }
        Ok(())
    }

    fn disconnect(&mut self, leaves: bool) {
        self.is_connected.set(false);
        if leaves {
            self.say("next host".into());
        }
    }

    async fn register(&self, _: &Id, _: &str) -> Result<i64, StoreError> {
        self.row.set(self.row.get().or(Some(0)));
        Ok(self.generation.get())
    }

    async fn commit(&self, write: &Write<'_>) -> Result<Option<i64>, StoreError> {
        let Some(row) = self.row.get() else { return Ok(None) };
        match write.standing(row, self.generation.get()) {
            Standing::Refused => return Ok(None),
            Standing::Made => {}
            Standing::Next => {
                self.row.set(Some(write.sequence));
                self.generation.set(self.generation.get() + i64::from(write.is_reset));
            }
        }
        match self.is_commit_cut.take() {
            true => Err(StoreError::Passing("the connection was lost".into())),
            false => Ok(Some(self.generation.get())),
        }
    }

    async fn look(&self, _: &Id) -> Result<(i64, Option<i64>), StoreError> {
        Ok((self.generation.get(), self.row.get()))
    }

    async fn skip_to(&self, _: &Id, sequence: i64) -> Result<bool, StoreError> {
        let may_skip = self.row.get().is_some_and(|row| row <= sequence);
        if may_skip {
            self.row.set(Some(sequence));
        }
        Ok(may_skip)
    }

    async fn rows(&self, _: &Id) -> Result<Vec<Share>, StoreError> {
        Ok(Vec::new())
    }

    async fn confirm(&self, _: &Id, sequence: i64, is_repeat: bool) -> Result<bool, StoreError> {
        let may_write =
            self.row.get().is_some_and(|row| row == sequence && is_repeat || row == sequence - 1);
        if may_write {
            self.row.set(Some(sequence));
        }
        Ok(may_write)
    }

    async fn lagging(&self, _: &Id, _: i64) -> Result<u64, StoreError> {
        let next = self.lagging.borrow_mut().pop_front();
        let (fate, servers) = next.unwrap_or((Fate::Done, 0));
        fate.meet().await?;
        Ok(servers)
    }

    async fn rename(&self, _: &Id, name: &str) -> Result<(), StoreError> {
        self.say(format!("this is {name}"));
        Ok(())
    }

    async fn end(&self, _: &Id) -> Result<(), StoreError> {
        self.say("the end".into());
        Ok(())
    }
}

/// Does something with a server and its script, in time that passes only while the server waits.
fn run<T>(test: impl AsyncFnOnce(&mut Member<Rc<Script>>, &Script) -> T) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let script = Rc::new(Script {
            began: Instant::now(),
            is_connected: Cell::new(false),
            row: Cell::new(None),
            generation: Cell::new(7),
            connects: RefCell::default(),
            is_commit_cut: Cell::new(false),
            lagging: RefCell::default(),
            said: RefCell::default(),
            pauses_ms: RefCell::default(),
        });
        test(&mut Member::new(Rc::clone(&script)), &script).await
    })
}

const TIMEOUT: Duration = Duration::from_secs(5);

/// A state after this number of resets.
fn state(resets: u64) -> State {
    State { generation: resets, ..State::default() }
}

async fn commit(member: &mut Member<Rc<Script>>, resets: u64) -> Result<Outcome, Failure> {
    member.commit(&state(resets), &UserIds::default()).await
}

/// Loses the connection of a server that has joined, and lets it commit or read while the next attempts to connect have these
/// outcomes. Returns the seconds that it takes.
async fn outlast(
    member: &mut Member<Rc<Script>>,
    script: &Script,
    connects: impl IntoIterator<Item = Fate>,
    is_read: bool,
) -> f64 {
    script.is_connected.set(false);
    script.connects.borrow_mut().extend(connects);
    script.pauses_ms.borrow_mut().clear();
    let began = script.seconds();
    match is_read {
        true => drop(member.read().await.unwrap()),
        false => assert_eq!(commit(member, 0).await.unwrap(), Outcome::Durable),
    }
    script.seconds() - began
}

#[test]
fn a_start_waits_for_the_database_until_its_time_is_over() {
    let pauses = [20, 40, 80, 160, 320, 500, 500, 500, 500, 500, 500, 500, 500, 380];
    for (failed, is_joined) in [(0, true), (6, true), (14, true), (15, false), (100, false)] {
        run(async |member, script| {
            script.connects.borrow_mut().extend((0..failed).map(|_| Fate::Fails("it starts")));
            let joined = member.join(TIMEOUT).await;
            assert_eq!(joined.is_ok(), is_joined, "{failed} failed attempts");
            assert_eq!(*script.pauses_ms.borrow(), pauses[..failed.min(14)]);
            if let Err(failure) = joined {
                assert_eq!(script.seconds(), 5.0);
                let said = failure.to_string();
                assert!(said.contains("within 5s (it starts)"), "{said}");
            }
        });
    }
}

#[test]
fn a_host_that_is_silent_gets_its_part_of_the_time() {
    run(async |member, script| {
        script.connects.borrow_mut().extend([Fate::Silence]);
        member.join(TIMEOUT).await.unwrap();
        assert_eq!(script.seconds(), 2.52);
        assert_eq!(script.take_said(), ["next host"]);
    });
    run(async |member, script| {
        let fates = [Fate::Fails("it starts"), Fate::Silence, Fate::Silence, Fate::Silence];
        script.connects.borrow_mut().extend(fates);
        let said = member.join(TIMEOUT).await.unwrap_err().to_string();
        // The last attempt gets a little time even if none is left.
        assert!((5.0..5.03).contains(&script.seconds()), "{}", script.seconds());
        assert!(said.contains("; before that: it starts)"), "{said}");
    });
}

#[test]
fn a_server_is_named_and_says_that_it_ends() {
    run(async |member, script| {
        member.join(TIMEOUT).await.unwrap();
        member.introduce("one".into()).await;
        member.leave().await;
        assert_eq!(script.take_said(), ["this is one", "the end"]);
    });
}

#[test]
fn an_outage_is_reported_once_and_its_end_with_its_length() {
    run(async |member, script| {
        member.join(TIMEOUT).await.unwrap();
        for is_read in [false, true] {
            let connects = (0..10).map(|_| Fate::Fails("it is away"));
            let took = outlast(member, script, connects, is_read).await;
            let back = format!("it responds again after {took:.1} s");
            assert_eq!(script.take_said(), ["warning: it is away: trying again", &back]);
            // Each pause is between half of what it may be and all of it.
            let most = [20, 40, 80, 160, 320, 500, 500, 500, 500, 500];
            let pauses = script.pauses_ms.borrow();
            let is_fair = |(pause, most): (&u64, u64)| (most / 2..=most).contains(pause);
            assert!(pauses.len() == 10 && pauses.iter().zip(most).all(is_fair), "{pauses:?}");
        }
    });
}

#[test]
fn a_silent_database_gets_twice_the_time_with_each_attempt() {
    run(async |member, script| {
        member.join(TIMEOUT).await.unwrap();
        for is_read in [false, true] {
            let connects = [Fate::Silence, Fate::Silence, Fate::Silence];
            let took = outlast(member, script, connects, is_read).await;
            assert!((35.0..35.2).contains(&took), "5, 10, and 20 s, and three pauses: {took}");
            assert!(script.take_said().iter().filter(|said| *said == "next host").count() == 3);
        }
    });
}

#[test]
fn a_commit_that_was_made_before_its_connection_was_lost_is_made_once() {
    run(async |member, script| {
        member.join(TIMEOUT).await.unwrap();
        let before = script.row.get().unwrap();
        script.is_commit_cut.set(true);
        assert_eq!(commit(member, 0).await.unwrap(), Outcome::Durable);
        assert_eq!(script.row.get(), Some(before + 1));
        assert_eq!(commit(member, 0).await.unwrap(), Outcome::Durable);
        assert_eq!(script.row.get(), Some(before + 2));
    });
}

#[test]
fn a_row_that_is_missing_means_an_older_database_for_most_of_an_hour() {
    for (seconds, is_older) in [(3539, true), (3540, false), (3541, false)] {
        run(async |member, script| {
            member.join(TIMEOUT).await.unwrap();
            sleep(Duration::from_secs(seconds)).await;
            script.row.set(None);
            let read = member.read().await;
            assert_eq!(read.is_err(), is_older, "after {seconds} s");
            match read {
                Ok(_) => assert_eq!(script.row.get(), Some(1), "a new row, and its first write"),
                Err(failure) => {
                    let said = failure.to_string();
                    assert!(said.contains("the store scripted: it holds an older state"), "{said}");
                }
            }
        });
    }
}

#[test]
fn what_was_in_a_row_that_was_removed_is_not_counted_again() {
    for generation in [0, 1] {
        for resets in [0, 1] {
            run(async |member, script| {
                script.generation.set(generation);
                member.join(TIMEOUT).await.unwrap();
                sleep(GONE).await;
                script.row.set(None);
                assert_eq!(commit(member, 0).await.unwrap(), Outcome::Superseded);
                assert_eq!(commit(member, 1 + resets).await.unwrap(), Outcome::Durable);
                let generations = generation + i64::try_from(resets).unwrap();
                assert_eq!(script.generation.get(), generations, "it follows nobody's reset");
            });
        }
    }
}

/// Another reset would discard the events that were counted after the first one.
#[test]
fn a_reset_that_may_have_been_made_is_not_repeated_after_its_row_was_removed() {
    for (is_reset, is_cut, expected) in [
        (true, true, Made::Superseded(NO_GENERATION)),
        (true, false, Made::NotYet),
        (false, true, Made::NotYet),
        (false, false, Made::NotYet),
    ] {
        run(async |member, script| {
            member.join(TIMEOUT).await.unwrap();
            let change = Change { is_reset, state: &state(0), users: Vec::new() };
            if is_cut {
                script.is_commit_cut.set(true);
                member.attempt(&change).await.unwrap_err();
            }
            sleep(GONE).await;
            script.row.set(None);
            assert_eq!(member.attempt(&change).await, Ok(expected), "{is_reset}, {is_cut}");
        });
    }
}

#[test]
fn a_row_with_another_number_tells_of_an_older_database_or_of_another_process() {
    let later = |more: i64, is_commit_cut: bool| {
        run(async |member, script| {
            member.join(TIMEOUT).await.unwrap();
            let change = Change { is_reset: false, state: &state(0), users: Vec::new() };
            if is_commit_cut {
                // It is made, and the server does not learn that before the row changes.
                script.is_commit_cut.set(true);
                member.attempt(&change).await.unwrap_err();
            }
            script.row.set(script.row.get().map(|row| row + more));
            member.attempt(&change).await.map_err(|error| error.to_string())
        })
    };
    assert_eq!(later(0, false), Ok(Made::In(7)));
    let older = later(-1, false).unwrap_err();
    assert!(older.contains("older state"), "{older}");
    let copy = later(1, false).unwrap_err();
    assert!(copy.contains("another process writes to the row"), "{copy}");
    assert_eq!(later(0, true), Ok(Made::In(7)));
    let copy = later(1, true).unwrap_err();
    assert!(copy.contains("another process writes to the row"), "{copy}");
}

#[test]
fn a_write_in_doubt_may_be_made_while_the_row_is_examined() {
    run(async |member, _| {
        member.sequence = 5;
        for (is_in_doubt, row, is_copy) in
            [(false, 5, false), (false, 6, true), (true, 6, false), (true, 7, true)]
        {
            member.is_in_doubt = is_in_doubt;
            let is_lasting = matches!(member.why_not(row), StoreError::Lasting(_));
            assert_eq!(is_lasting, is_copy, "{is_in_doubt}, {row}");
        }
    });
}

#[test]
fn a_database_in_an_older_generation_holds_an_older_state() {
    run(async |member, script| {
        member.join(TIMEOUT).await.unwrap();
        script.generation.set(6);
        let said = commit(member, 0).await.unwrap_err().to_string();
        assert!(said.contains("older state"), "{said}");
    });
}

#[test]
fn a_reset_of_another_server_comes_before_the_events_that_follow_it() {
    run(async |member, script| {
        member.join(TIMEOUT).await.unwrap();
        for _ in 0..3 {
            assert_eq!(commit(member, 0).await.unwrap(), Outcome::Durable);
        }
        let before = script.row.get().unwrap();
        script.generation.set(8);
        assert_eq!(commit(member, 0).await.unwrap(), Outcome::Superseded);
        assert_eq!(script.row.get(), Some(before + 2), "an attempt in progress comes too late");
        assert_eq!(commit(member, 0).await.unwrap(), Outcome::Superseded, "it was not followed");
        assert_eq!(commit(member, 1).await.unwrap(), Outcome::Durable);
        assert_eq!(script.generation.get(), 8, "following a reset is not another reset");
        // The server's own reset follows the reset of the other one.
        script.generation.set(9);
        assert_eq!(commit(member, 1).await.unwrap(), Outcome::Superseded);
        assert_eq!(commit(member, 3).await.unwrap(), Outcome::Durable);
        assert_eq!(script.generation.get(), 10);
    });
}

#[test]
fn a_reset_waits_until_the_others_have_noticed_it_or_count_as_ended() {
    let waits = |lagging: Vec<(Fate, u64)>| {
        run(async |member, script| {
            member.join(TIMEOUT).await.unwrap();
            script.lagging.borrow_mut().extend(lagging);
            let began = script.seconds();
            assert_eq!(commit(member, 1).await.unwrap(), Outcome::Durable);
            assert_eq!(script.generation.get(), 8);
            (((script.seconds() - began) * 1000.0).round(), script.is_connected.get())
        })
    };
    assert_eq!(waits(vec![]), (0.0, true));
    assert_eq!(waits(vec![(Fate::Done, 2), (Fate::Done, 1)]), (6.0, true));
    assert_eq!(waits((0..2000).map(|_| (Fate::Done, 1)).collect()), (3000.0, true));
    // It cannot ask them anymore.
    assert_eq!(waits(vec![(Fate::Done, 1), (Fate::Fails("it is away"), 0)]), (3000.0, false));
    assert_eq!(waits(vec![(Fate::Silence, 0)]), (3000.0, false));
}

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
