//! Checks of the things that a store in PostgreSQL depends on: the connection, the durability of a commit, and the rights of
//! the role.

use super::Check;
use crate::store::postgres::{Database, RIGHTS, Target, examine};

/// Checks a store in the database of `target`.
pub(super) fn checks(target: &Target) -> Vec<Check> {
    match examine(target) {
        Ok(database) => of_database(&database),
        Err(failure) => {
            let fix = "fix what the message names, and run ringtally doctor again";
            vec![Check::warn("store database", failure.to_string().replace('\n', " "), fix)]
        }
    }
}

fn of_database(database: &Database) -> Vec<Check> {
    let round_trip = format!("{:.2} ms", database.round_trip.as_secs_f64() * 1e3);
    let encrypted = if database.is_encrypted { "encrypted" } else { "not encrypted" };
    vec![
        match &database.no_primary {
            None => Check::ok("store database", format!("{}, {encrypted}", database.about)),
            Some(why) => Check::warn(
                "store database",
                format!("{}, {encrypted}: no host can be written ({why})", database.about),
                "name the primary in the URL, or promote a standby",
            ),
        },
        Check::ok("store round trip", round_trip).momentary(),
        settings(database),
        standbys(database),
        rights(database),
    ]
}

fn settings(database: &Database) -> Check {
    let name = "store settings";
    match database.unsafe_settings.is_empty() {
        true => Check::ok(name, "fsync and full_page_writes are on"),
        false => Check::warn(
            name,
            format!(
                "{}: a power failure can take back what was acknowledged",
                database.unsafe_settings.join(", ")
            ),
            "turn them on in postgresql.conf, and reload it",
        ),
    }
}

fn standbys(database: &Database) -> Check {
    let (name, standbys) = ("store standbys", &database.standbys);
    match (standbys.as_str(), database.standbys_waited_for) {
        ("", _) => Check::ok(
            name,
            "synchronous_standby_names is empty: what is acknowledged is on this server alone",
        ),
        (_, 0) => Check::warn(
            name,
            format!("commits wait for {standbys}, and none of them is connected"),
            "start the standby, or change synchronous_standby_names",
        ),
        (_, count) => Check::ok(name, format!("commits wait for {standbys}; connected: {count}")),
    }
}

fn rights(database: &Database) -> Check {
    let name = "store rights";
    match (database.has_tables, database.has_rights) {
        (true, true) => Check::ok(name, "the role may use the schema ringtally"),
        (false, true) => {
            Check::ok(name, "there is no schema ringtally yet, and the role may create it")
        }
        (true, false) => Check::warn(
            name,
            "the role may not write the tables of the schema ringtally",
            format!("grant it {RIGHTS}"),
        ),
        (false, false) => Check::warn(
            name,
            "there is no schema ringtally, and the role may not create it",
            "run CREATE SCHEMA ringtally AUTHORIZATION with the name of the role",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use std::time::Duration;

    fn database() -> Database {
        Database {
            about: "PostgreSQL 15.4 on db:5432".into(),
            no_primary: None,
            round_trip: Duration::from_micros(234),
            is_encrypted: true,
            unsafe_settings: Vec::new(),
            standbys: String::new(),
            standbys_waited_for: 0,
            has_tables: true,
            has_rights: true,
        }
    }

    fn warnings(database: &Database) -> Vec<String> {
        let checks = of_database(database).into_iter();
        checks.filter(|check| check.verdict == Verdict::Warn).map(|check| check.value).collect()
    }

    #[test]
    fn a_database_that_may_lose_something_is_warned_of() {
        assert_eq!(warnings(&database()), [""; 0]);
        let standby = Database { no_primary: Some("it is a standby".into()), ..database() };
        assert!(warnings(&standby)[0].contains("no host can be written (it is a standby)"));
        let lossy = Database { unsafe_settings: vec!["fsync = off".into()], ..database() };
        assert!(warnings(&lossy)[0].contains("fsync = off"));
        let waiting = Database { standbys: "s1".into(), ..database() };
        assert!(warnings(&waiting)[0].contains("none of them is connected"));
        let synchronous = Database { standbys_waited_for: 1, ..waiting };
        assert_eq!(warnings(&synchronous), [""; 0]);
        for has_tables in [true, false] {
            let refused = Database { has_tables, has_rights: false, ..database() };
            assert!(warnings(&refused)[0].contains("may not"));
        }
    }
}
