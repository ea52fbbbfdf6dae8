//! Helpers of all tests: the real program and its clients, fake servers, a disk, a simulated network, and seeds.

pub mod agreement;
pub mod description;
mod directory;
pub mod disk;
pub mod exchange;
pub mod fake;
mod process;
pub mod reference;
mod responses;
pub mod schema;
pub mod seeds;
pub mod simulated;
mod terminal;

use std::io::Read;

pub use directory::Directory;
pub use process::*;
pub use responses::{Response, Totals, post, split_responses, text};
pub use terminal::terminal;

impl Client {
    /// Returns whether the server ends the connection without sending anything more.
    pub fn is_closed(&mut self) -> bool {
        !self.has_part() && matches!(self.stream.read(&mut [0; 64]), Ok(0))
    }
}
