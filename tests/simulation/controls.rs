//! The simulation finds what it is there to find: with any one safeguard off, some seed loses, doubles or disorders
//! rows, or shows what must never be seen.
//!
//! A safeguard is switched off for the whole process, so these runs are alone.

use delivery::Safeguard;

use crate::{
    check::shown,
    run::{Options, Outcome, run},
    seeds::SAFEGUARDS,
};

/// Seeds within which one must fail.
const WITHIN: u64 = 60;

/// Runs without safeguards until a run fails for the right reason; that run.
fn fails_without(safeguards: &[Safeguard], options: Options, because: impl Fn(&Outcome) -> bool) {
    let _alone = SAFEGUARDS.write();
    safeguards.iter().for_each(|safeguard| fail::cfg(safeguard.name(), "return").unwrap());
    let failed = (0..WITHIN).map(|seed| run(seed, options)).find(|outcome| because(outcome));
    safeguards.iter().for_each(|safeguard| fail::remove(safeguard.name()));
    match failed {
        Some(outcome) => {
            let Outcome { seed, tally, problems, .. } = outcome;
            eprintln!("without {safeguards:?}: seed {seed}, {tally:?}: {}", shown(&problems));
        }
        None => panic!("{WITHIN} seeds passed without {safeguards:?}: the simulation is blind to it"),
    }
}

fn rows_are_wrong(outcome: &Outcome) -> bool {
    !outcome.tally.is_clean()
}

/// The audit would halt where rows come twice.
#[test]
fn without_slicing_rows_are_doubled() {
    fails_without(&[Safeguard::Slicing, Safeguard::Audit], Options::default(), |outcome| outcome.tally.surplus > 0);
}

/// With all else in place no gap ever arises; so the log has to break its promise. And the audit would halt behind it.
#[test]
fn without_the_gap_check_readers_go_on_behind_what_is_missing() {
    fails_without(
        &[Safeguard::GapCheck, Safeguard::Audit],
        Options { lost_messages: 2, ..Options::default() },
        rows_are_wrong,
    );
}

/// No row is lost by it in the end, since a life that is cut short is done again; but until then readers of the data
/// believe in dead letters that are not there.
#[test]
fn without_rejected_first_data_is_read_whose_dead_letters_are_nowhere() {
    let early = |outcome: &Outcome| outcome.problems.iter().any(|problem| problem.contains("dead letters"));
    fails_without(&[Safeguard::RejectedFirst], Options::default(), early);
}

#[test]
fn without_durable_checkpoints_rows_are_lost() {
    fails_without(&[Safeguard::DurableCheckpoint], Options::default(), |outcome| outcome.tally.lost > 0);
}

#[test]
fn without_the_position_check_two_owners_double_rows() {
    fails_without(&[Safeguard::PositionCheck], Options::default(), |outcome| outcome.tally.surplus > 0);
}

#[test]
fn without_the_reread_a_lost_reply_doubles_rows() {
    fails_without(&[Safeguard::Reread], Options::default(), |outcome| outcome.tally.surplus > 0);
}

#[test]
fn without_the_incarnation_rows_of_two_topics_are_mixed() {
    let options = Options { recreated: true, ..Options::default() };
    fails_without(&[Safeguard::Incarnation], options, rows_are_wrong);
}

// Safeguard::Audit: a message is lost after a view has read it. The log here loses what it loses before anybody reads it;
// the model has the counter-examples.
