//! The program starts. What it does is tested with the other programs, in `tests/system`; this test makes
//! `cargo test --workspace` build the binary those tests start.

use std::process::Command;

#[test]
fn the_program_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_tailwater")).arg("--help").output();
    let help = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    assert!(help.contains("Turns event streams into fresh, queryable tables"), "{help}");
}
