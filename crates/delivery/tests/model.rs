//! A model of hops 1 to 3, checked exhaustively for small bounds: every interleaving of owners, zombies, crashes,
//! repeats, lost replies and lost or stale checkpoints. `docs/model.md` says what is modelled and what is not.
//!
//! `TAILWATER_MODEL_BOUND=2` (and more) allows as many faults more in every run.

// A panic is how a test fails, and what was explored is for people to read.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "model/check.rs"]
mod check;
#[path = "model/log.rs"]
mod log;
#[path = "model/pipeline.rs"]
mod pipeline;
#[path = "model/reach.rs"]
mod reach;
#[path = "model/setup.rs"]
mod setup;
#[path = "model/storage.rs"]
mod storage;
#[path = "model/task.rs"]
mod task;
#[path = "model/world.rs"]
mod world;

use delivery::Safeguard;

use crate::{
    check::{fails, holds},
    pipeline::{CHANNELS, DONE, GAPS, REJECTED_FIRST, TABLE},
    setup::{
        Fault::{self, *},
        Missing, Setup, View, channel, every_channel, unit, value,
    },
};

/// What a storage owner may meet.
const TABLE_FAULTS: [Fault; 5] = [Crash, Takeover, LostReply, Timeout, ForeignCommit];

/// Ingestion alone: a unit of two rows that may be cut and a rejected one, and a unit that comes to nothing.
fn ingestion(faults: u8, kinds: &[Fault]) -> Setup {
    Setup { sources: vec![vec![unit(2, 1), unit(0, 0)]], faults, kinds: kinds.to_vec(), cuts: true, ..Setup::default() }
}

fn ingestion_restarts() -> Setup {
    ingestion(2, &[Crash, StaleCheckpoint, LostCheckpoint, Duplicate])
}

/// A stateful view over every channel that hop 1 might have written of one unit in two messages.
fn transformation(faults: u8, kinds: &[Fault]) -> Setup {
    let sources = vec![vec![unit(3, 0)]];
    let view = View { filtered: vec![value(0, 0, 0, 0)], rejected: vec![value(0, 0, 0, 1)] };
    let channels = every_channel(&sources, 2);
    Setup { channels, sources, view: Some(view), faults, kinds: kinds.to_vec(), ..Setup::default() }
}

/// A table fed from every channel that a writer might have written of one unit in three messages.
fn storage() -> Setup {
    let sources = vec![vec![unit(2, 0)]];
    let channels = every_channel(&sources, 3);
    Setup { channels, sources, table: true, faults: 2, kinds: TABLE_FAULTS.to_vec(), ..Setup::default() }
}

/// The same with two writers, interleaved in every way.
fn storage_of_two_writers() -> Setup {
    let sources = vec![vec![unit(2, 0)], vec![unit(1, 0)]];
    let channels = every_channel(&sources, 3);
    Setup { channels, sources, table: true, faults: 1, kinds: TABLE_FAULTS.to_vec(), ..Setup::default() }
}

/// Ingestion and the table, without a view.
fn ingestion_to_table() -> Setup {
    let kinds = [&[StaleCheckpoint, LostCheckpoint, Duplicate], &TABLE_FAULTS[..]].concat();
    Setup { sources: vec![vec![unit(1, 0), unit(1, 0)]], table: true, faults: 1, kinds, ..Setup::default() }
}

/// All three hops.
fn end_to_end(units: usize, kinds: &[Fault]) -> Setup {
    Setup {
        sources: vec![vec![unit(1, 0); units]],
        view: Some(View::default()),
        table: true,
        faults: 1,
        kinds: kinds.to_vec(),
        ..Setup::default()
    }
}

/// Any acknowledged message of a channel may be lost, wherever readers are.
fn lost_messages() -> Setup {
    let kinds = vec![Crash, LostMessage, Truncation];
    Setup { sources: vec![vec![unit(1, 0), unit(1, 0)]], table: true, faults: 2, kinds, ..Setup::default() }
}

/// A message with a repeat behind it may be lost; the view that reads the channel has messages for units.
fn lost_message_before_a_view() -> Setup {
    let units = vec![unit(1, 0), unit(1, 0)];
    Setup {
        channels: vec![channel(&units, &[(0, 1), (0, 2)])],
        sources: vec![units],
        view: Some(View::default()),
        table: true,
        faults: 2,
        kinds: vec![Crash, LostMessage],
        audit: true,
        ..Setup::default()
    }
}

/// The last message of a channel may be lost and its offset given to another one, before a view.
fn truncation_before_a_view() -> Setup {
    let units = vec![unit(1, 0); 3];
    Setup {
        channels: vec![channel(&units, &[(0, 1)])],
        rewritten: Some(channel(&units, &[(0, 2), (2, 3)])),
        sources: vec![units],
        kinds: vec![Crash, Truncation],
        ..lost_message_before_a_view()
    }
}

/// Retention overtakes ingestion, which loses its checkpoints.
fn trimmed_input() -> Setup {
    let kinds = vec![Crash, LostCheckpoint, Trim];
    Setup { sources: vec![vec![unit(1, 0), unit(1, 0)]], faults: 3, kinds, ..Setup::default() }
}

/// The user topic is deleted and recreated at any time.
fn recreated_topic() -> Setup {
    let kinds = vec![Crash, StaleCheckpoint, Recreation];
    Setup { sources: vec![vec![unit(1, 0), unit(1, 0)]], table: true, faults: 2, kinds, ..Setup::default() }
}

#[test]
fn hop_1_holds_over_restarts() {
    holds("hop 1, restarts", ingestion_restarts());
}

#[test]
fn hop_1_holds_with_two_owners() {
    holds("hop 1, two owners", ingestion(1, &[Takeover, Crash]));
}

#[test]
fn hop_2_holds_over_restarts() {
    holds("hop 2, restarts", transformation(2, &[Crash, StaleCheckpoint, LostCheckpoint]));
}

#[test]
fn hop_2_holds_with_two_owners() {
    holds("hop 2, two owners", transformation(1, &[Takeover, Crash]));
}

#[test]
fn hop_3_holds() {
    holds("hop 3", storage());
}

#[test]
fn hop_3_holds_with_two_writers() {
    holds("hop 3, two writers", storage_of_two_writers());
}

#[test]
fn hops_1_and_3_hold() {
    holds("hops 1, 3", ingestion_to_table());
}

#[test]
fn hops_1_2_and_3_hold() {
    holds("hops 1, 2, 3", end_to_end(1, &[Crash, Takeover, StaleCheckpoint, LostCheckpoint, LostReply, Duplicate]));
}

#[test]
fn hops_1_2_and_3_hold_when_replies_are_lost() {
    holds("hops 1, 2, 3, two units", end_to_end(2, &[LostReply, Timeout]));
}

#[test]
fn a_lost_message_halts_its_readers() {
    holds("lost messages", lost_messages());
}

#[test]
fn a_lost_message_before_a_view_halts_the_table() {
    holds("lost messages before a view", lost_message_before_a_view());
}

#[test]
fn a_truncated_channel_before_a_view_halts_the_table() {
    holds("truncation before a view", truncation_before_a_view());
}

#[test]
fn a_trimmed_input_halts_its_task() {
    holds("trimmed input", trimmed_input());
}

#[test]
fn a_recreated_topic_halts_its_task() {
    holds("recreated topic", recreated_topic());
}

#[test]
fn without_slicing_rows_double() {
    fails("without slicing", storage().without(Missing::Safeguard(Safeguard::Slicing)), &[TABLE]);
}

#[test]
fn without_the_gap_check_a_lost_message_is_a_lost_row() {
    let mut setup = lost_messages().without(Missing::Safeguard(Safeguard::GapCheck));
    setup.kinds = vec![LostMessage];
    fails("without the gap check", setup, &[TABLE, GAPS]);
}

#[test]
fn without_rejected_first_data_is_there_before_its_dead_letters() {
    let setup = ingestion_restarts().without(Missing::Safeguard(Safeguard::RejectedFirst));
    fails("without rejected first", setup, &[REJECTED_FIRST]);
}

#[test]
fn without_durable_checkpoints_a_crash_leaves_a_gap() {
    let setup = ingestion_restarts().without(Missing::Safeguard(Safeguard::DurableCheckpoint));
    fails("without durable checkpoints", setup, &[GAPS, DONE]);
}

#[test]
fn without_the_position_check_rows_double() {
    fails("without the position check", storage().without(Missing::Safeguard(Safeguard::PositionCheck)), &[TABLE]);
}

#[test]
fn without_reading_again_a_lost_reply_doubles_rows() {
    fails("without the re-read", storage().without(Missing::Safeguard(Safeguard::Reread)), &[TABLE]);
}

#[test]
fn without_incarnations_a_recreated_topic_mixes_with_the_old_one() {
    let setup = recreated_topic().without(Missing::Safeguard(Safeguard::Incarnation));
    fails("without incarnations", setup, &[CHANNELS, TABLE]);
}

#[test]
fn without_the_marker_a_trimmed_input_is_taken_for_a_first_start() {
    fails("without the marker", trimmed_input().without(Missing::Marker), &[CHANNELS]);
}

#[test]
fn without_gapless_appends_a_failed_one_leaves_a_gap() {
    fails("without gapless appends", ingestion_restarts().without(Missing::GaplessAppends), &[GAPS]);
}

#[test]
fn without_the_audit_a_lost_message_before_a_view_doubles_rows() {
    let setup = lost_message_before_a_view().without(Missing::Safeguard(Safeguard::Audit));
    fails("without the audit, lost message", setup, &[TABLE]);
}

#[test]
fn without_the_audit_a_truncated_channel_before_a_view_loses_rows() {
    let setup = truncation_before_a_view().without(Missing::Safeguard(Safeguard::Audit));
    fails("without the audit, truncation", setup, &[TABLE]);
}
