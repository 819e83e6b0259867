//! Whole-system tests: real processes, real Kafka, a real S3 server, independent readers.
//!
//! One binary, one module per subject. Tests that need peers fail without them when TAILWATER_REQUIRE_PEERS=1, and
//! say loudly that they are skipped elsewhere. Nothing of ours is linked but what speaks to the outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod bad_input;
mod command_line;
mod deployment;
mod documents;
mod faults;
mod shipped;
mod shop;
mod traces;
mod verify;
