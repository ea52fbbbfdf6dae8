//! The origin of the figures of a report, and the command that makes them again.

use super::parts::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// When a run was, and which server it went to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Origin {
    /// When the measured part of the run started.
    pub(super) started: Time,
    /// When its last request had ended.
    pub(super) ended: Time,
    /// The address and port that the client connected to.
    pub(super) address: String,
    /// The version of the server, if its metrics name one, as ringtally's do.
    pub(super) server_version: Option<String>,
    /// The command of the server that a challenge has started, secrets excluded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) server_command: Vec<String>,
}

/// Returns the commands that make a run again, from its report: one, or one per client, each after a comment that names
/// its machine.
///
/// # Errors
///
/// If the report has none.
pub fn commands(report: &Value) -> Result<String, String> {
    let clients = report.get("clients").and_then(Value::as_array).into_iter().flatten();
    let of_clients = clients.map(|client| {
        // A comment ends with its line, and what follows would be a command.
        let of = |key: &str| -> String {
            let text = client.get(key).and_then(Value::as_str).unwrap_or("unknown");
            text.chars().filter(|c| !c.is_control()).collect()
        };
        let line = command(client.get("command"))?;
        Some(format!("# part {} on {}\n{line}\n", of("part"), of("host")))
    });
    let of_clients = of_clients.collect::<Option<String>>().filter(|lines| !lines.is_empty());
    let own = || Some(command(report.pointer("/setup/command"))? + "\n");
    of_clients.or_else(own).ok_or_else(|| "it has no command".into())
}

/// Returns a command as a shell reads it; `None` if there is none.
fn command(words: Option<&Value>) -> Option<String> {
    let words: Option<Vec<String>> =
        words?.as_array()?.iter().map(|word| Some(quoted(word.as_str()?))).collect();
    words.filter(|words| !words.is_empty()).map(|words| words.join(" "))
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

    #[test]
    fn commands_are_read_by_a_shell_as_they_were_given() {
        let words = ["ringtally", "load", "--fail-if", "p99>5ms", "it's", ""];
        let printed = commands(&json!({"setup": {"command": words}})).unwrap();
        let script = format!("printf '%s\\n' {printed}");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), words.join("\n") + "\n");
        let clients = json!([
            {"part": "1/2", "host": "a", "command": ["ringtally", "1"]},
            {"part": "2/2", "host": "b\n", "command": ["ringtally", "2"]},
        ]);
        assert_eq!(
            commands(&json!({"clients": clients, "setup": {}})).unwrap(),
            "# part 1/2 on a\nringtally 1\n# part 2/2 on b\nringtally 2\n"
        );
        assert!(commands(&json!({"setup": {"command": []}})).is_err());
    }
}
