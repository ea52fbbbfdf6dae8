//! Lines for the operator, on standard error, as text or as JSON.

use crate::engine::unix_seconds;
use std::io::Write;

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Log {
    /// One line of text each
    Text,
    /// One JSON object a line
    Json,
}

impl Log {
    /// Says what happened.
    pub fn info(self, message: &str) {
        self.line("info", message);
    }

    /// Says what the operator should look at.
    pub fn warn(self, message: &str) {
        self.line("warning", message);
    }

    /// Says why the program ends.
    pub fn error(self, message: &str) {
        self.line("error", message);
    }

    fn line(self, level: &str, message: &str) {
        let line = match self {
            Log::Text if level == "info" => message.to_owned(),
            Log::Text => format!("{level}: {message}"),
            Log::Json => {
                let time = unix_seconds();
                serde_json::json!({"time": time, "level": level, "message": message}).to_string()
            }
        };
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
