//! A part of a run: the requests of the whole workload that one client sends.

use super::workload::Rest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The most parts that a run may have.
const PARTS_MAX: u64 = 1024;

/// A part of a run, such as `2/3`: it has every `of`-th request and connection.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(into = "String", try_from = "String")]
pub struct Part {
    /// The number of the part, from 1 on.
    number: u64,
    of: u64,
}

impl Part {
    /// The whole run as a single part.
    pub const WHOLE: Part = Part { number: 1, of: 1 };

    /// Returns part `number`, from 1 on, of `of` parts.
    pub(super) fn new(number: u64, of: u64) -> Part {
        assert!((1..=of).contains(&number));
        Part { number, of }
    }

    /// Returns its number, from 1 on.
    pub fn number(self) -> u64 {
        self.number
    }

    /// Returns the number of parts.
    pub fn of(self) -> u64 {
        self.of
    }

    /// Reports whether the part resets the server and reads the totals that the run starts from.
    pub(super) fn leads(self) -> bool {
        self.number == 1
    }

    /// Returns its share of a number of requests or connections.
    pub(super) fn share(self, whole: u64) -> u64 {
        whole.saturating_sub(self.number - 1).div_ceil(self.of)
    }

    /// Returns the number in the whole workload of its nth request, from 0 on.
    pub(super) fn nth(self, nth: u64) -> u64 {
        self.number - 1 + nth * self.of
    }

    /// Reports whether a request of the whole workload is in the part.
    pub(super) fn has(self, request: u64) -> bool {
        request % self.of == self.number - 1
    }

    /// Returns its requests from the nth on.
    pub(super) fn rest(self, nth: u64) -> Rest {
        Rest { start: self.nth(nth), step: self.of }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl From<Part> for String {
    fn from(part: Part) -> String {
        part.to_string()
    }
}

impl TryFrom<String> for Part {
    type Error = String;

    fn try_from(text: String) -> Result<Part, String> {
        text.parse()
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        let number = |text: &str| {
            let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| is_digits)
        };
        text.split_once('/')
            .and_then(|(part, of)| Some(Part { number: number(part)?, of: number(of)? }))
            .filter(|part| (1..=PARTS_MAX).contains(&part.of))
            .filter(|part| (1..=part.of).contains(&part.number))
            .ok_or_else(|| {
                format!("expected a part and the number of parts, at most {PARTS_MAX}, such as 2/3")
            })
    }
}
