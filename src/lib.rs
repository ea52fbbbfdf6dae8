//! draft
pub mod challenge;
pub mod cli;
pub mod engine;
pub mod event;
pub mod failure;
pub mod http;
pub mod load;
pub mod log;
mod primitives;
pub mod server;
pub mod service;
pub mod tally;
pub mod topology;
