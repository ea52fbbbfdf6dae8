//! Power failures and failing disks under a store, on a simulated disk: whatever is cut off or lost, a store holds the last
//! state that it reported as durable or has shown, or the state that was being written.
//!
//! A failing seed is printed. `RINGTALLY_SEED=n cargo test --test it store::file` replays it, and `RINGTALLY_SEEDS=n` tries
//! this number of seeds.

use crate::world::disk::{Disk, Faults};
use crate::world::seeds::{for_each_seed, panics};
use fastrand::Rng;
use ringtally::failure::Failure;
use ringtally::store::Store;
use ringtally::store::file::FileStore;
use ringtally::tally::{ExactSum, State, UserIds};
use std::io::ErrorKind;

/// A state with its users, as a store should hold them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    state: State,
    users: Vec<Vec<u8>>,
}

impl Content {
    /// Returns a later content, after events or after a reset, and the users that are new in it.
    fn next(&self, rng: &mut Rng) -> (Content, UserIds) {
        let mut next = self.clone();
        if rng.u8(0..8) == 0 {
            next = Content::default();
            next.state.generation = self.state.generation + 1;
        }
        // Often there are none, and at most enough to fill several rows.
        let new = [0, 0, 0, 1, 1, 20, 300, 3000][rng.usize(0..8)];
        let mut new_users = UserIds::default();
        for _ in 0..new {
            let id = format!("user_{}_{}", next.users.len(), "x".repeat(rng.usize(0..20)));
            new_users.push(id.as_bytes());
            next.users.push(id.into_bytes());
        }
        next.state.users = next.users.len() as u64;
        next.state.events += new + rng.u64(0..1000);
        let added: ExactSum = [rng.f64() * 1e300, -0.1, 1e-300].into_iter().collect();
        next.state.sum.merge(&added);
        (next, new_users)
    }
}

/// Opens the store of a disk and reads all that it holds.
fn open(disk: &Disk) -> Result<(FileStore, Content), Failure> {
    let (mut store, state) = FileStore::on(disk.backend())?;
    let mut users = Vec::new();
    store.users(&mut |ids| users.extend(ids.iter().map(<[u8]>::to_vec)))?;
    Ok((store, Content { state, users }))
}

/// Runs several lives of a store. Each is ended by a power failure at a random operation or by a failed sync, possibly during
/// the recovery from the previous life. Returns an error if the restored state is wrong.
fn lives(seed: u64, image: &[u8], faults: Faults) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    let disk = Disk::with(image);
    disk.set_faults(faults);
    // The durable state, and the state that may be durable instead.
    let (mut durable, mut uncertain) = (Content::default(), None);
    for _ in 0..rng.u8(1..5) {
        let before = disk.operations();
        disk.fail_after([rng.u64(0..8), rng.u64(0..40), rng.u64(0..400)][rng.usize(0..3)]);
        if rng.bool() {
            disk.lose_after(rng.u64(0..20), &mut rng);
        }
        let opened = open(&disk);
        if let Err(failure) = &opened
            && !disk.is_off()
            && !disk.has_lost()
        {
            return Err(failure.to_string());
        }
        if let Ok((mut store, found)) = opened {
            // A state that a start has shown is durable.
            (durable, uncertain) = (judge(&found, durable, uncertain)?, None);
            // A life that ends well closes the store.
            let commits = if rng.bool() { usize::MAX } else { rng.usize(0..8) };
            for _ in 0..commits {
                let (next, new_users) = durable.next(&mut rng);
                if store.commit(&next.state, &new_users).is_err() {
                    uncertain = Some(next);
                    break;
                }
                durable = next;
            }
        }
        assert!(disk.operations() - before < 401, "the power fails in time");
        // Without power, nothing is left to restart.
        if disk.is_off() || rng.bool() { disk.crash(&mut rng) } else { disk.restart(&mut rng) }
    }
    let (mut store, found) = open(&disk).map_err(|failure| failure.to_string())?;
    let durable = judge(&found, durable, uncertain)?;
    // The store can be written after all that.
    let (next, new_users) = durable.next(&mut rng);
    store.commit(&next.state, &new_users).map_err(|failure| failure.to_string())?;
    drop(store);
    let (_, found) = open(&disk).map_err(|failure| failure.to_string())?;
    judge(&found, next, None).map(|_| ())
}

/// Returns the durable state, or an error if it is not as expected.
fn judge(found: &Content, durable: Content, uncertain: Option<Content>) -> Result<Content, String> {
    if *found == durable || uncertain.as_ref() == Some(found) {
        return Ok(found.clone());
    }
    let number = |content: &Content| (content.state.generation, content.state.events);
    Err(format!(
        "restored {:?} with {} users; durable is {:?} with {}, and {:?} was being written",
        number(found),
        found.users.len(),
        number(&durable),
        durable.users.len(),
        uncertain.as_ref().map(number)
    ))
}

/// Returns the bytes of a store without events.
fn image() -> Vec<u8> {
    let disk = Disk::with(&[]);
    drop(FileStore::on(disk.backend()).unwrap());
    disk.bytes()
}

#[test]
fn whatever_a_power_failure_takes_what_was_durable_is_restored() {
    let image = image();
    for_each_seed(300, |seed| lives(seed, &image, Faults::default()).unwrap());
}

#[test]
fn a_disk_that_ignores_syncs_is_found() {
    let (image, faults) = (image(), Faults { ignores_syncs: true, ..Faults::default() });
    // redb panics if pages change while they are read.
    let is_wrong = |seed| {
        let mut is_sound = false;
        panics(|| is_sound = lives(seed, &image, faults) == Ok(())) || !is_sound
    };
    let found = (0..50).filter(|seed| is_wrong(*seed)).count();
    assert!(found > 10, "{found} of 50 seeds found it");
}

#[test]
fn a_commit_that_fails_is_the_last_one() {
    for (faults, expected) in [
        (Faults { write: Some(ErrorKind::StorageFull), ..Faults::default() }, "free some space"),
        (Faults { sync: Some(ErrorKind::StorageFull), ..Faults::default() }, "free some space"),
        (Faults { write: Some(ErrorKind::Other), ..Faults::default() }, "check its disk"),
        (Faults { sync: Some(ErrorKind::Other), ..Faults::default() }, "check its disk"),
    ] {
        let disk = Disk::with(&image());
        let mut rng = Rng::with_seed(1);
        let (mut store, content) = open(&disk).unwrap();
        let (durable, new_users) = content.next(&mut rng);
        store.commit(&durable.state, &new_users).unwrap();
        let (next, new_users) = durable.next(&mut rng);
        disk.set_faults(faults);
        let failure = store.commit(&next.state, &new_users).unwrap_err();
        assert!(failure.to_string().contains(expected), "{faults:?}: {failure}");
        assert_eq!(failure.exit_code(), 3);
        // The disk works again, but nobody knows what it lost.
        disk.set_faults(Faults::default());
        let operations = disk.operations();
        assert_eq!(store.commit(&next.state, &new_users), Err(failure));
        drop(store);
        assert_eq!(disk.operations(), operations, "nothing is written after a failure");
        let (_, found) = open(&disk).unwrap();
        judge(&found, durable, Some(next)).unwrap();
    }
}

#[test]
fn a_disk_that_fails_while_a_store_is_opened_says_so() {
    let disk = Disk::with(&image());
    let (mut store, content) = open(&disk).unwrap();
    let (durable, new_users) = content.next(&mut Rng::with_seed(2));
    store.commit(&durable.state, &new_users).unwrap();
    // The store is not closed, so the next start has to recover it.
    disk.fail_after(0);
    drop(store);
    disk.crash(&mut Rng::with_seed(3));
    for faults in [
        Faults { write: Some(ErrorKind::StorageFull), ..Faults::default() },
        Faults { sync: Some(ErrorKind::StorageFull), ..Faults::default() },
    ] {
        disk.set_faults(faults);
        let failure = open(&disk).unwrap_err();
        assert!(failure.to_string().contains("its disk is full"), "{failure}");
    }
    disk.set_faults(Faults::default());
    assert_eq!(open(&disk).unwrap().1, durable);
}
