//! The analysis service on an in-memory store, with tables written by the real lake, and over real HTTP.
#![allow(clippy::unwrap_used)]

#[path = "suite/answers.rs"]
mod answers;
#[path = "suite/bounds.rs"]
mod bounds;
#[path = "suite/harness.rs"]
mod harness;
#[path = "suite/http.rs"]
mod http;
#[path = "suite/tails.rs"]
mod tails;
