//! Keeps the password of a database out of the process's arguments, which every user of the machine can read in
//! /proc.

use crate::failure::Failure;
use crate::store::postgres::{Target, without_password};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The environment variable for the password: only the user of a process and root can read its environment.
const VARIABLE: &str = "PGPASSWORD";

/// If an argument is a URL with a password, executes this program again with the password in the environment instead, and does
/// not return.
///
/// # Errors
///
/// If such a URL cannot be read, or the program cannot be executed again.
pub(super) fn hide() -> Result<(), Failure> {
    let Some((arguments, password)) = split(std::env::args_os())? else { return Ok(()) };
    let mut arguments = arguments.into_iter();
    let name = arguments.next().unwrap_or_else(|| "ringtally".into());
    let error = match std::env::current_exe() {
        Ok(program) => {
            Command::new(program).arg0(name).args(arguments).env(VARIABLE, password).exec()
        }
        Err(error) => error,
    };
    Err(Failure::Environment(format!(
        "cannot hide the password of the store ({error}): leave it out of the URL, and set {VARIABLE} instead"
    )))
}

/// Returns the arguments, with the password removed from one of them, and the password.
fn split(
    arguments: impl Iterator<Item = OsString>,
) -> Result<Option<(Vec<OsString>, String)>, Failure> {
    let mut found = None;
    let mut hidden = Vec::new();
    for argument in arguments {
        // The URL is the whole argument, or follows a flag, as in `--store=URL`.
        let text = argument.to_str().unwrap_or_default();
        let (flag, url) = match text.split_once('=') {
            Some((flag, url)) if Target::is_url(url) => (Some(flag), url),
            _ => (None, text),
        };
        if !Target::is_url(url) {
            hidden.push(argument);
            continue;
        }
        // The argument parser would repeat an invalid URL in its error.
        let parts = Target::parse(url).and_then(|_| without_password(url));
        match parts.map_err(|why| Failure::Usage(format!("the URL of the store {why}")))? {
            None => hidden.push(argument),
            Some((url, password)) => {
                found = Some(password);
                hidden.push(flag.map_or(url.clone(), |flag| format!("{flag}={url}")).into());
            }
        }
    }
    Ok(found.map(|password| (hidden, password)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(text: &str) -> Result<Option<(Vec<OsString>, String)>, Failure> {
        split(text.split(' ').map(OsString::from))
    }

    #[test]
    fn a_password_leaves_the_arguments() {
        for (text, expected) in [
            (
                "r serve --store postgres://u:pw@h/d --port 0",
                "r serve --store postgres://u@h/d --port 0",
            ),
            ("r serve --store=postgresql://u:pw@h/d", "r serve --store=postgresql://u@h/d"),
            ("r store inspect postgres://u@h/d?password=pw", "r store inspect postgres://u@h/d"),
        ] {
            let (arguments, password) = split_words(text).unwrap().unwrap();
            let arguments: Vec<&str> =
                arguments.iter().map(|word| word.to_str().unwrap()).collect();
            assert_eq!((arguments.join(" ").as_str(), password.as_str()), (expected, "pw"));
        }
        for text in
            ["r serve --store tally.redb", "r serve --store postgres://u@h/d", "r load --json=-"]
        {
            assert_eq!(split_words(text).unwrap(), None, "{text}");
        }
        let said = split_words("r serve --store postgres://u:s3cret@x@h").unwrap_err().to_string();
        assert!(said.contains("more than one @") && !said.contains("s3cret"), "{said}");
    }
}
