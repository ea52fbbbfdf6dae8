//! The command of a server under test: its words, and the values of placeholders such as `{port}`.

use crate::topology::format_cpu_list;
use rustix::fs::{Access, access};
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The most characters in a server's name.
const NAME_MAX: usize = 32;
/// The most characters in a server's command.
const COMMAND_MAX: usize = 4096;
/// The command that stands for this program's own server.
const OWN: &str = "ringtally";

/// A server that `--server` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCommand {
    /// Its name in reports: the name in the flag, or otherwise the last component of the program's path, with a hyphen in place
    /// of each character that a name cannot contain.
    pub name: String,
    /// The command as it was typed.
    text: String,
    /// The program and its arguments, with placeholders.
    words: Vec<String>,
}

/// The port and the CPUs of a server.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) port: u16,
    pub(super) cpus: Vec<usize>,
}

impl Place {
    /// Returns the values of the placeholders and of the environment variables, by name.
    pub(super) fn values(&self) -> [(&'static str, String); 4] {
        [
            ("port", self.port.to_string()),
            ("host", Ipv4Addr::LOCALHOST.to_string()),
            ("threads", self.cpus.len().to_string()),
            ("cpus", format_cpu_list(&self.cpus)),
        ]
    }
}

impl FromStr for ServerCommand {
    type Err = String;

    fn from_str(text: &str) -> Result<ServerCommand, String> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let is_name = |name: &str| !name.is_empty() && name.chars().all(is_part);
        let (name, command) = match text.split_once('=') {
            Some((name, command)) if is_name(name) => (Some(name), command),
            _ => (None, text),
        };
        if let Some(name) = name.filter(|name| name.len() > NAME_MAX) {
            return Err(format!("the name {name} is longer than {NAME_MAX} characters"));
        }
        if command.len() > COMMAND_MAX {
            return Err(format!(
                "the command is longer than {COMMAND_MAX} characters: put it in a script"
            ));
        }
        let words = split(command)?;
        let Some(program) = words.first().filter(|program| !program.is_empty()) else {
            return Err("there is no command: write NAME=COMMAND, or COMMAND".into());
        };
        let file = program.rsplit('/').next().unwrap_or(program);
        let own = file.chars().map(|c| if is_part(c) { c } else { '-' }).take(NAME_MAX).collect();
        let name_or_file = name.map_or(own, str::to_owned);
        Ok(ServerCommand { name: name_or_file, text: command.into(), words })
    }
}

/// Formats the command as `--server` accepts it.
impl fmt::Display for ServerCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.text)
    }
}

impl ServerCommand {
    /// Reports whether it is this program's own server.
    pub fn is_own(&self) -> bool {
        self.words[0] == OWN
    }

    /// Reports whether it is this program's own server with its own store.
    pub fn names_store(&self) -> bool {
        let is_store = |word: &String| word == "--store" || word.starts_with("--store=");
        self.is_own() && self.words.iter().any(is_store)
    }

    /// Returns the program and its arguments for a place. This program's own server also gets `tuning`; flags in the command
    /// come last, so that they win.
    pub(super) fn at(&self, place: &Place, tuning: &[String]) -> Vec<String> {
        let own = ["serve", "--host", "{host}", "--port", "{port}", "--cpus", "{cpus}"];
        let words: Vec<String> = match self.words.get(1).map(String::as_str) {
            _ if !self.is_own() => self.words.clone(),
            // A whole command of this program.
            Some(command) if !command.starts_with('-') => self.words.clone(),
            _ => [OWN]
                .into_iter()
                .chain(own)
                .map(str::to_owned)
                .chain(tuning.iter().cloned())
                .chain(self.words[1..].iter().cloned())
                .collect(),
        };
        let values = place.values();
        let filled = |word: &String| {
            values.iter().fold(word.clone(), |word, (name, value)| {
                word.replace(&format!("{{{name}}}"), value)
            })
        };
        words.iter().map(filled).collect()
    }

    /// Searches for its program as `execvp` does, without running it.
    ///
    /// # Errors
    ///
    /// The error that running it would have. A program that contains a placeholder is not searched for.
    pub(super) fn check_program(&self) -> io::Result<()> {
        let program = &self.words[0];
        if self.is_own() || program.contains('{') {
            return Ok(());
        }
        if program.contains('/') {
            return Ok(access(program, Access::EXEC_OK)?);
        }
        let Some(path) = std::env::var_os("PATH") else { return Ok(()) };
        let mut found = std::env::split_paths(&path).map(|folder| folder.join(program));
        match found.any(|file| file.is_file() && access(&file, Access::EXEC_OK).is_ok()) {
            true => Ok(()),
            false => Err(Errno::NOENT.into()),
        }
    }

    /// Returns the command as it was typed, without the name.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Reports whether the command itself contains the port, in addition to the environment.
    pub(super) fn names_port(&self) -> bool {
        self.is_own() || self.words.iter().any(|word| word.contains("{port}"))
    }
}

/// Splits a command into words as a shell does: spaces separate them, quotes and backslashes keep them together. Nothing is
/// expanded, so that a command means the same on every machine.
fn split(command: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = command.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            // Within single quotes, a backslash is literal.
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or("the command ends with a backslash")?;
                let is_plain = quote.is_some() && !matches!(next, '"' | '\\' | '$' | '`');
                let word = word.get_or_insert_default();
                word.extend(is_plain.then_some('\\'));
                word.push(next);
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                word.get_or_insert_default();
                quote = Some(c);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c @ ('|' | '&' | ';' | '<' | '>' | '`' | '$')) => {
                return Err(format!(
                    "'{c}' is for a shell, and none runs the command: quote it, or write sh -c '...'"
                ));
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("a {open} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, tuning: &[&str]) -> Vec<String> {
        let command: ServerCommand = text.parse().unwrap();
        let tuning: Vec<String> = tuning.iter().map(|flag| (*flag).to_owned()).collect();
        command.at(&Place { port: 8123, cpus: vec![0, 2] }, &tuning)
    }

    #[test]
    fn a_program_is_found_without_running_it() {
        let check = |text: &str| text.parse::<ServerCommand>().unwrap().check_program();
        let here = std::env::current_exe().unwrap();
        for good in ["sh -c true", "/bin/sh", "ringtally", "./{port}", here.to_str().unwrap()] {
            check(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        let kind = |text: &str| check(text).unwrap_err().kind();
        assert_eq!(kind("no-such-program"), io::ErrorKind::NotFound);
        assert_eq!(kind("./no/such/program"), io::ErrorKind::NotFound);
        assert_eq!(kind("./Cargo.toml"), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn words_are_those_of_a_shell() {
        for (text, words) in [
            ("./a  b\tc", &["./a", "b", "c"][..]),
            ("'a b' \"c 'd'\" e\\ f", &["a b", "c 'd'", "e f"]),
            ("a'b'\"c\"", &["abc"]),
            (r#""a\"b\\c\n" 'd\e'"#, &[r#"a"b\c\n"#, r"d\e"]),
            ("a '' b", &["a", "", "b"]),
            ("sh -c 'a | b > c; $d'", &["sh", "-c", "a | b > c; $d"]),
        ] {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        for (text, says) in [
            ("a | b", "write sh -c"),
            ("a > b", "write sh -c"),
            ("$HOME/a", "write sh -c"),
            ("'a", "a ' is not closed"),
            ("a\\", "ends with a backslash"),
        ] {
            assert!(split(text).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn every_placeholder_is_replaced_wherever_it_is() {
        assert_eq!(
            at("mine=./mine --listen={host}:{port} -j {threads} {cpus} {other}", &[]),
            ["./mine", "--listen=127.0.0.1:8123", "-j", "2", "0,2", "{other}"]
        );
    }

    #[test]
    fn this_program_gets_its_place_and_its_flags() {
        let serve = "ringtally serve --host 127.0.0.1 --port 8123 --cpus 0,2";
        assert_eq!(at("ringtally", &[]).join(" "), serve);
        let tuned = at("a=ringtally --engine streams", &["--engine", "ring"]).join(" ");
        assert_eq!(tuned, format!("{serve} --engine ring --engine streams"));
        assert_eq!(at("ringtally serve --port {port}", &["x"])[1..], ["serve", "--port", "8123"]);
        assert_eq!(at("./ringtally {port}", &["x"]), ["./ringtally", "8123"]);
    }

    #[test]
    fn a_name_comes_first_or_is_the_programs() {
        let name = |text: &str| text.parse::<ServerCommand>().map(|server| server.name);
        assert_eq!(name("mine=./a b=c").unwrap(), "mine");
        assert_eq!(name("./target/release/mine --a=b").unwrap(), "mine");
        assert_eq!(name("java -Dx=y a.jar").unwrap(), "java");
        let odd: ServerCommand = "'./my server+1' {port}".parse().unwrap();
        assert_eq!(odd.name, "my-server-1");
        assert_eq!(odd.to_string().parse(), Ok(odd));
        for (length, is_fine) in [(NAME_MAX - 1, true), (NAME_MAX, true), (NAME_MAX + 1, false)] {
            assert_eq!(name(&format!("{}=./a", "n".repeat(length))).is_ok(), is_fine, "{length}");
        }
        for (length, is_fine) in
            [(COMMAND_MAX - 1, true), (COMMAND_MAX, true), (COMMAND_MAX + 1, false)]
        {
            assert_eq!(name(&"c".repeat(length)).is_ok(), is_fine, "{length}");
        }
        for text in ["", "mine=", "  ", "''"] {
            assert!(name(text).unwrap_err().contains("there is no command"), "{text}");
        }
    }
}
