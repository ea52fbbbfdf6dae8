//! The origin of the figures of a report, and the command that repeats their run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::SystemTime;

/// The time of a run, and its server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Origin {
    /// The start of the measured part of the run.
    pub(super) started: Time,
    /// The end of its last request.
    pub(super) ended: Time,
    /// The address and port that the client connected to.
    pub(super) address: String,
    /// The version of the server, if its metrics name one, as ringtally's do.
    pub(super) server_version: Option<String>,
    /// The command of the server that a challenge has started, secrets excluded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) server_command: Vec<String>,
}

/// A time in a file, in RFC 3339 format with nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Time(pub(super) SystemTime);

impl Time {
    pub(crate) fn now() -> Time {
        Time(SystemTime::now())
    }
}

impl From<Time> for String {
    fn from(time: Time) -> String {
        humantime::format_rfc3339_nanos(time.0).to_string()
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Time, String> {
        let time = humantime::parse_rfc3339(&text);
        time.map(Time).map_err(|error| format!("{text} is not a time: {error}"))
    }
}

/// The shell variable that has the start time of all parts.
const START: &str = "start";

/// Returns the commands that repeat a run, from its report: either one, or one per client, each after a comment that
/// names its machine. Each command is printed only if `check` accepts its words.
///
/// # Errors
///
/// Fails if the report does not have a command, or if a command is not accepted or would not be shown by a terminal as
/// it is.
pub fn commands(
    report: &Value,
    check: impl Fn(&[String]) -> Result<(), String>,
) -> Result<String, String> {
    let clients = report.get("clients").and_then(Value::as_array).into_iter().flatten();
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    for client in clients {
        // A comment ends at the end of its line, and the text after that would be a command.
        let of = |key: &str| -> String {
            let text = client.get(key).and_then(Value::as_str).unwrap_or("unknown");
            text.chars().filter(|c| is_shown(*c)).collect()
        };
        let heading = format!("# part {} on {}\n", of("part"), of("host"));
        commands.push((heading, words(client.get("command"))?));
    }
    if commands.is_empty() {
        // A comparison of servers does not have one setup.
        let command = report.pointer("/setup/command").or_else(|| report.get("command"));
        commands.push((String::new(), words(command)?));
    }
    let mut text = String::new();
    for (heading, words) in &commands {
        check(words)?;
        if let Some(word) = words.iter().find(|word| !word.chars().all(is_shown)) {
            return Err(format!("a word of its command has what no terminal shows: {word:?}"));
        }
        text += heading;
        text += &remark(words).unwrap_or_default();
        text += &(line(words) + "\n");
    }
    match text.contains(&format!("\"${START}\"")) {
        true => Ok(format!(
            ": \"${{{START}:?set it to one time on all machines, such as the seconds that date -d +1min +%s prints}}\"\n\
             {text}"
        )),
        false => Ok(text),
    }
}

/// Returns the words of a command.
fn words(command: Option<&Value>) -> Result<Vec<String>, String> {
    let words = command.and_then(Value::as_array).into_iter().flatten();
    let words: Option<Vec<String>> = words.map(|word| Some(word.as_str()?.to_owned())).collect();
    words.filter(|words| !words.is_empty()).ok_or_else(|| "it has no command".into())
}

/// Returns the value of a flag.
fn value_of<'a>(words: &'a [String], flag: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == flag)?;
    words.get(at + 1).map(String::as_str)
}

/// Returns a comment about the requirements of a command, if it has any.
fn remark(words: &[String]) -> Option<String> {
    let is_challenge = words.get(1).is_some_and(|name| name == "challenge");
    let store = value_of(words, "--store").filter(|_| is_challenge)?;
    Some(format!("# begins with an empty store: {store} must not hold events\n"))
}

/// Returns a command as a shell reads it. The command of a part gets a new place for its report. It also takes the
/// common start time from a variable, because the original start time has passed.
fn line(words: &[String]) -> String {
    let is_start = |at: usize| at > 0 && words[at - 1] == "--start-at";
    let word = |(at, word): (usize, &String)| match is_start(at) {
        true => format!("\"${START}\""),
        false => quoted(word),
    };
    let mut line: Vec<String> = words.iter().enumerate().map(word).collect();
    if let Some((number, _)) = value_of(words, "--part").and_then(|part| part.split_once('/')) {
        line.push(quoted(&format!("--json=part-{number}-again.json")));
    }
    line.join(" ")
}

/// Reports whether a character is shown as itself, and does not change how its neighbors are shown. No argument of this
/// program needs other characters.
fn is_shown(c: char) -> bool {
    let changes_direction = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    !c.is_control() && !changes_direction
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn commands(report: &Value) -> Result<String, String> {
        super::commands(report, |_| Ok(()))
    }

    /// Returns the words that a shell reads from a command.
    fn read_by_a_shell(command: &str, start: &str) -> String {
        let script = format!("start={start}; printf '%s\\n' {command}");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn commands_are_read_by_a_shell_as_they_were_given() {
        let every: String = (' '..='~').chain(['é', '\u{1f980}']).collect();
        let words = ["ringtally", "load", "--fail-if", "p99>5ms", "it's", "", "~", "-", &every];
        let printed = commands(&json!({"setup": {"command": words}})).unwrap();
        assert_eq!(read_by_a_shell(&printed, ""), words.join("\n") + "\n");
        for c in (' '..='~').map(String::from) {
            let printed = commands(&json!({"setup": {"command": ["ringtally", c]}})).unwrap();
            assert_eq!(read_by_a_shell(&printed, ""), format!("ringtally\n{c}\n"));
        }
        assert!(commands(&json!({"setup": {"command": []}})).is_err());
    }

    #[test]
    fn what_a_terminal_would_not_show_as_it_is_is_refused() {
        for word in ["a\nrm -rf /", "a\u{1b}[2K", "a\0", "a\u{85}", "a\u{202e}b", "a\u{2066}"] {
            let said = commands(&json!({"setup": {"command": ["ringtally", word]}})).unwrap_err();
            assert!(said.contains("no terminal shows"), "{said}");
        }
        let refused = |_: &[String]| Err("not ours".to_owned());
        let report = json!({"setup": {"command": ["rm", "-rf", "/"]}});
        assert_eq!(super::commands(&report, refused), Err("not ours".into()));
    }

    #[test]
    fn parts_start_together_again_and_write_their_reports() {
        let part = |number: &str| {
            let part = format!("{number}/2");
            json!(["ringtally", "load", "--part", part, "--start-at", "2026-11-24T12:00:00Z"])
        };
        let clients = json!([
            {"part": "1/2", "host": "a", "command": part("1")},
            {"part": "2/2", "host": "b\nrm -rf /", "command": part("2")},
        ]);
        let printed = commands(&json!({"clients": clients, "setup": {}})).unwrap();
        let (first, rest) = printed.split_once('\n').unwrap();
        assert!(first.starts_with(": \"${start:?set it to one time on all machines"), "{first}");
        assert_eq!(
            rest,
            "# part 1/2 on a\n\
             ringtally load --part 1/2 --start-at \"$start\" --json=part-1-again.json\n\
             # part 2/2 on brm -rf /\n\
             ringtally load --part 2/2 --start-at \"$start\" --json=part-2-again.json\n"
        );
        let sh =
            |script: &str| std::process::Command::new("sh").args(["-c", script]).output().unwrap();
        // Without a start time, nothing runs.
        let output = sh(&printed.replace("ringtally", "echo"));
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        let output = sh(&format!("start=17; {}", printed.replace("ringtally", "echo")));
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains("--start-at 17 --json=part-2-again.json"), "{told}");
        let own = json!({"setup": {"command": ["ringtally", "load", "--part", "2/3", "--start-in", "5s"]}});
        let printed = commands(&own).unwrap();
        assert_eq!(printed, "ringtally load --part 2/3 --start-in 5s --json=part-2-again.json\n");
    }

    #[test]
    fn a_challenge_with_a_store_says_what_it_needs() {
        let words = ["ringtally", "challenge", "--store", "tally.redb"];
        let printed = commands(&json!({"setup": {"command": words}})).unwrap();
        assert!(printed.starts_with("# begins with an empty store: tally.redb must"), "{printed}");
        assert!(printed.ends_with("\nringtally challenge --store tally.redb\n"), "{printed}");
    }
}
