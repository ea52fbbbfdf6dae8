use super::*;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A directory for one test. Dropping it removes the directory.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("ringtally-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn store(&self) -> PathBuf {
        self.0.join("tally.redb")
    }

    /// Returns the names of the files in it.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ids(names: std::ops::Range<u64>) -> UserIds {
    let mut ids = UserIds::default();
    names.for_each(|name| ids.push(format!("user_{name}").as_bytes()));
    ids
}

fn state(generation: u64, events: u64, users: u64) -> State {
    let sum = [events as f64, 0.1, 1e-300].into_iter().collect();
    State { generation, events, users, sum }
}

/// Returns the users of a store, in order.
fn users(store: &mut FileStore) -> Result<Vec<Vec<u8>>, Failure> {
    let mut users = Vec::new();
    store.users(&mut |ids| users.extend(ids.iter().map(<[u8]>::to_vec)))?;
    Ok(users)
}

/// Returns the text of a failure.
fn said<T>(result: Result<T, Failure>) -> String {
    match result {
        Err(Failure::Environment(sentence)) => sentence,
        Err(other) => panic!("{other:?} is not the environment's fault"),
        Ok(_) => panic!("it did not fail"),
    }
}

/// Copies an open store, as a killed process would leave it.
fn killed(store: &Path) -> Vec<u8> {
    fs::read(store).unwrap()
}

#[test]
fn a_store_restores_the_last_state_and_its_users() {
    let directory = Directory::new("restores");
    let (mut store, found) = FileStore::open(&directory.store()).unwrap();
    assert_eq!(found, State::default());
    assert_eq!(users(&mut store).unwrap(), Vec::<Vec<u8>>::new());
    store.commit(&state(0, 10, 3), &ids(0..3)).unwrap();
    store.commit(&state(0, 20, 3), &UserIds::default()).unwrap();
    // This takes several rows.
    store.commit(&state(0, 30_000, 20_000), &ids(3..20_000)).unwrap();
    drop(store);
    let (mut store, found) = FileStore::open(&directory.store()).unwrap();
    assert_eq!(found, state(0, 30_000, 20_000));
    let expected = ids(0..20_000);
    assert!(users(&mut store).unwrap().iter().map(Vec::as_slice).eq(expected.iter()));
    // A reset that has users from the start.
    store.commit(&state(5, 1, 1), &ids(7..8)).unwrap();
    store.commit(&state(5, 2, 2), &ids(8..9)).unwrap();
    let tables = store.database.begin_read().unwrap().list_tables().unwrap().count();
    assert_eq!(tables, 2, "the users of older generations are gone");
    fs::write(directory.0.join("killed"), killed(&directory.store())).unwrap();
    drop(store);
    for name in ["tally.redb", "killed"] {
        let (mut store, found) = FileStore::open(&directory.0.join(name)).unwrap();
        assert_eq!(found, state(5, 2, 2));
        assert_eq!(users(&mut store).unwrap(), [b"user_7", b"user_8"]);
    }
}

#[test]
fn a_store_is_opened_once() {
    let directory = Directory::new("once");
    let (store, _) = FileStore::open(&directory.store()).unwrap();
    assert!(said(FileStore::open(&directory.store())).contains("is in use by another ringtally"));
    assert!(said(inspect(&directory.store())).contains("or read its /stats"));
    drop(store);
    FileStore::open(&directory.store()).unwrap();
}

#[test]
fn a_creation_that_was_cut_off_is_made_again() {
    let directory = Directory::new("cut-off");
    fs::write(directory.store(), "").unwrap();
    fs::set_permissions(directory.store(), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(said(inspect(&directory.store())).contains("is empty"));
    // A leftover of a crash, even under the next name.
    let left = format!(".tally.redb.{}-0.new", std::process::id());
    fs::write(directory.0.join(&left), "half").unwrap();
    let (mut store, _) = FileStore::open(&directory.store()).unwrap();
    store.commit(&state(0, 1, 1), &ids(0..1)).unwrap();
    drop(store);
    assert_eq!(fs::read(directory.0.join(&left)).unwrap(), b"half");
    assert_eq!(FileStore::open(&directory.store()).unwrap().1, state(0, 1, 1));
    let mode = fs::metadata(directory.store()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(directory.files().len(), 2);
}

#[test]
fn a_link_to_a_store_stays_a_link() {
    let directory = Directory::new("link");
    let link = directory.0.join("link");
    std::os::unix::fs::symlink(directory.store(), &link).unwrap();
    let (mut store, _) = FileStore::open(&link).unwrap();
    store.commit(&state(0, 1, 0), &UserIds::default()).unwrap();
    drop(store);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(inspect(&directory.store()).unwrap(), state(0, 1, 0));
}

#[test]
fn nothing_is_acknowledged_once_the_path_names_another_file() {
    for replace in [fs::remove_file, |path: PathBuf| {
        fs::write(path.with_extension("other"), "other")?;
        fs::rename(path.with_extension("other"), path)
    }] {
        let directory = Directory::new("gone");
        let (mut store, _) = FileStore::open(&directory.store()).unwrap();
        store.commit(&state(0, 1, 0), &UserIds::default()).unwrap();
        replace(directory.store()).unwrap();
        let failed = store.commit(&state(0, 2, 0), &UserIds::default());
        assert!(said(failed.clone()).contains("was deleted or replaced"), "{failed:?}");
        assert_eq!(store.commit(&state(0, 2, 0), &UserIds::default()), failed);
    }
}

#[test]
fn what_is_no_store_is_left_alone() {
    let directory = Directory::new("foreign");
    let path = directory.store();
    let refuse = |expected: &str| {
        let before = fs::read(&path).ok();
        for said in [said(FileStore::open(&path)), said(inspect(&path))] {
            assert!(said.contains(expected), "{said}");
        }
        assert_eq!(fs::read(&path).ok(), before);
    };
    fs::write(&path, "a diary").unwrap();
    refuse("was not written by ringtally");
    fs::write(&path, "a diary".repeat(1000)).unwrap();
    refuse("was not written by ringtally");
    fs::remove_file(&path).unwrap();
    // A database of another program.
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table::<u64, u64>(TableDefinition::new("other")).unwrap();
    transaction.commit().unwrap();
    drop(database);
    refuse("was not written by ringtally");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refuse("is a directory");
    fs::remove_dir(&path).unwrap();
    assert!(said(inspect(&path)).contains("does not exist"));
    assert!(said(FileStore::open(&directory.0.join("no/x"))).contains("create it first"));
    assert!(said(FileStore::open(Path::new("/dev/null"))).contains("was not written by ringtally"));
    assert!(said(FileStore::open(Path::new("/dev/null/x"))).contains("is not a directory"));
    assert_eq!(directory.files(), Vec::<String>::new());
}

/// Writes a row of totals as it is given, and a list of users.
fn write_raw(path: &Path, totals: &[u8], users: Option<&[u8]>) {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TOTALS).unwrap().insert((), totals).unwrap();
    if let Some(users) = users {
        let name = users_table(0);
        let table = TableDefinition::<u64, &[u8]>::new(&name);
        transaction.open_table(table).unwrap().insert(0, users).unwrap();
    }
    transaction.commit().unwrap();
}

#[test]
fn another_format_and_contradictions_are_refused() {
    let directory = Directory::new("formats");
    let sound = encode(&state(0, 3, 1));
    let mut newer = sound.clone();
    newer[0] = 2;
    newer.push(0);
    let mut sum = sound.clone();
    sum[TOTALS_BYTES - 1] = 0x7f;
    let list = ids(0..1);
    let list = Some(list.as_bytes());
    for (number, (totals, users, expected)) in [
        (&newer[..], list, "has format 2, which this version of ringtally does not know"),
        (&sound[..40], list, "is damaged, and was left as it is"),
        (&sound[..3], list, "is damaged"),
        (&[&sound[..], &[0]].concat(), list, "is damaged"),
        (&sum, list, "is damaged"),
        (&sound, None, "its totals have 1 users, and its lists 0"),
        (&sound, Some(&[]), "its totals have 1 users, and its lists 0"),
        (&sound, Some(&[9, 0, 1]), "a row holds no list of users"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = directory.0.join(number.to_string());
        write_raw(&path, totals, users);
        let before = fs::read(&path).unwrap();
        assert!(said(inspect(&path)).contains(expected), "{}", said(inspect(&path)));
        let opened = FileStore::open(&path).and_then(|(mut store, _)| users_of(&mut store));
        assert!(said(opened.clone()).contains(expected), "{opened:?}");
        if number < 5 {
            assert_eq!(fs::read(&path).unwrap(), before);
        }
    }
}

fn users_of(store: &mut FileStore) -> Result<Vec<Vec<u8>>, Failure> {
    users(store)
}

#[test]
fn inspecting_changes_nothing_not_even_after_a_crash() {
    let directory = Directory::new("inspect");
    let (mut store, _) = FileStore::open(&directory.store()).unwrap();
    store.commit(&state(0, 9, 2), &ids(0..2)).unwrap();
    let path = directory.0.join("killed");
    fs::write(&path, killed(&directory.store())).unwrap();
    let before = fs::read(&path).unwrap();
    assert_eq!(inspect(&path).unwrap(), state(0, 9, 2));
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(FileStore::open(&path).unwrap().1 == state(0, 9, 2));
    drop(store);
    assert_eq!(inspect(&directory.store()).unwrap(), state(0, 9, 2));
}

/// Returns the bytes of a store with a history: as its server leaves it at the end, and as a kill leaves it.
fn histories(directory: &Directory) -> [Vec<u8>; 2] {
    let (mut store, _) = FileStore::open(&directory.store()).unwrap();
    for commit in 1..=40 {
        store.commit(&state(1, commit, commit), &ids(commit - 1..commit)).unwrap();
    }
    // redb keeps the last two commits.
    store.commit(&state(1, 41, 41), &ids(40..41)).unwrap();
    let killed = killed(&directory.store());
    drop(store);
    [fs::read(directory.store()).unwrap(), killed]
}

/// Opens damaged bytes. Either the content is right, or it returns true and the bytes are as they were.
fn is_refused(bytes: &[u8], what: &str) -> bool {
    let memory = Arc::new(redb::backends::InMemoryBackend::new());
    memory.set_len(bytes.len() as u64).unwrap();
    memory.write(0, bytes).unwrap();
    let shared = Shared::new(Arc::<redb::backends::InMemoryBackend>::clone(&memory));
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        FileStore::on(shared).map(|(mut store, found)| {
            assert_eq!(found, state(1, 41, 41), "{what}");
            let expected = ids(0..41);
            let users = users(&mut store).unwrap();
            assert!(users.iter().map(Vec::as_slice).eq(expected.iter()), "{what}");
            // It can be written to, and opened again.
            store.commit(&state(1, 42, 42), &ids(41..42)).unwrap();
        })
    }));
    let refused = opened.unwrap_or_else(|_| panic!("{what}: it panics")).is_err();
    let mut after = vec![0; usize::try_from(memory.len().unwrap()).unwrap()];
    memory.read(0, &mut after).unwrap();
    if refused {
        assert!(after == bytes, "{what}: it was refused and changed");
    } else {
        let (_, found) =
            FileStore::on(Shared::new(Arc::<redb::backends::InMemoryBackend>::clone(&memory)))
                .unwrap_or_else(|failure| panic!("{what}: then {failure}"));
        assert_eq!(found, state(1, 42, 42), "{what}");
    }
    refused
}

#[test]
fn a_flipped_bit_is_harmless_or_refused() {
    let directory = Directory::new("flips");
    for (kind, whole) in histories(&directory).into_iter().enumerate() {
        let mut refused = 0;
        // Every bit of the header, and one bit in some bytes of each page with content.
        let header_bytes = usize::try_from(HEADER_BYTES).unwrap();
        let header = 0..header_bytes * 8;
        let others = (header_bytes..whole.len()).filter(|at| whole[*at] != 0);
        let others = others.enumerate().filter(|(number, _)| number % 17 == 0);
        for bit in header.chain(others.map(|(number, at)| at * 8 + number % 8)) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            refused += usize::from(is_refused(&damaged, &format!("file {kind}, bit {bit}")));
        }
        assert!(refused > 100, "{refused}");
    }
}

#[test]
fn a_sector_of_zeros_is_harmless_or_refused() {
    let directory = Directory::new("sectors");
    for (kind, whole) in histories(&directory).into_iter().enumerate() {
        let mut refused = 0;
        for sector in 0..whole.len() / 512 {
            let mut damaged = whole.clone();
            damaged[sector * 512..][..512].fill(0);
            refused += usize::from(is_refused(&damaged, &format!("file {kind}, sector {sector}")));
        }
        assert!(refused > 5, "{refused}");
    }
}

#[test]
fn a_file_that_cannot_be_opened_or_created_says_what_to_do() {
    let name = Named::new(Path::new("x.redb"));
    for (kind, expected) in [
        (ErrorKind::NotFound, "because its directory does not exist: create it first"),
        (ErrorKind::NotADirectory, "because a part of its path is not a directory"),
        (ErrorKind::PermissionDenied, "change their permissions, or pass another path"),
        (ErrorKind::ReadOnlyFilesystem, "see the kernel's log, mount it again, or pass a path on"),
        (ErrorKind::StorageFull, "because its disk is full: free some space"),
        (ErrorKind::QuotaExceeded, "because its disk is full: free some space"),
        (ErrorKind::TimedOut, "(timed out): check its disk and its path"),
    ] {
        for failure in [name.cannot_create(&kind.into()), name.cannot_open(&kind.into())] {
            let sentence = failure.to_string();
            assert!(sentence.starts_with("the store x.redb cannot be "), "{sentence}");
            assert!(sentence.contains(expected), "{sentence}");
        }
    }
}

#[test]
fn a_file_that_ends_early_is_refused() {
    let directory = Directory::new("tails");
    for (kind, whole) in histories(&directory).into_iter().enumerate() {
        let steps = (1..whole.len()).step_by(997).chain((4096..whole.len()).step_by(4096));
        for len in steps {
            assert!(is_refused(&whole[..len], &format!("file {kind} of {len} bytes")), "{len}");
        }
    }
}

#[test]
fn totals_that_nothing_counts_to_are_refused() {
    let state = State { generation: 3, events: 5, users: 5, ..State::default() };
    let row = |state: &State| encode(state)[8..].to_vec();
    assert_eq!(decode(&row(&state)), Some(state.clone()));
    for damaged in [
        State { users: 6, ..state.clone() },
        State { events: NUMBERS_END, ..state.clone() },
        State { generation: NUMBERS_END, ..state.clone() },
    ] {
        assert_eq!(decode(&row(&damaged)), None, "{damaged:?}");
    }
    assert_eq!(decode(&row(&state)[1..]), None);
}
