//! Log lines on standard error, as text or as JSON.

use std::io::Write;
use std::time::SystemTime;

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Log {
    /// Plain text
    Text,
    /// One JSON object per line, with time, level, and message
    Json,
}

impl Log {
    /// Reports an event of normal operation.
    pub fn info(self, message: &str) {
        self.line("info", message);
    }

    /// Reports something that the operator should look into.
    pub fn warn(self, message: &str) {
        self.line("warning", message);
    }

    /// Reports why the program ends.
    pub fn error(self, message: &str) {
        self.line("error", message);
    }

    fn line(self, level: &str, message: &str) {
        let line = match self {
            Log::Text if level == "info" => message.to_owned(),
            Log::Text => format!("{level}: {message}"),
            Log::Json => {
                let time = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
                serde_json::json!({"time": time, "level": level, "message": message}).to_string()
            }
        };
        // If standard error is closed, there is nowhere left to report that.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
