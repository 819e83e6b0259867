//! The one DataFusion session whose functions and settings define the SQL dialect.
//!
//! Invariant: planning a view, running it and querying its table all start from this session, so the same SQL means
//! the same thing everywhere.
//! Deliberately absent: tables, and limits on memory, which belong to whoever executes.

use std::sync::{Arc, LazyLock};

use datafusion::common::Result;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{FunctionRegistry, SessionStateBuilder};
use datafusion::optimizer::analyzer::function_rewrite::ApplyFunctionRewrites;
use datafusion::prelude::SessionConfig;

use crate::exact::ExactCasts;
use crate::json_numbers::ExactJsonNumbers;

static STATE: LazyLock<SessionState> = LazyLock::new(build);

/// A session with every function of the dialect. Building one costs milliseconds and a copy microseconds.
///
/// One partition, because streams keep the order of their input; strings are `Utf8`, because that is what the wire
/// carries and converting to views and back costs more than views save.
pub fn session_state() -> SessionState {
    STATE.clone()
}

pub(crate) fn state() -> &'static SessionState {
    &STATE
}

fn build() -> SessionState {
    let mut config = SessionConfig::new().with_target_partitions(1).with_information_schema(false);
    let parser = &mut config.options_mut().sql_parser;
    parser.collect_spans = true;
    parser.map_string_types_to_utf8view = false;
    let mut state = SessionStateBuilder::new().with_config(config).with_default_features().build();
    add_dialect(&mut state).expect("the functions of the dialect have no name in common with others");
    state
}

/// Adds what the dialect has beyond the library's own functions and rules, for a session with settings of its own.
///
/// Errors: the session refuses a function.
pub fn add_dialect(state: &mut SessionState) -> Result<()> {
    // Before the library's own rewrite, which would leave it no JSON to see.
    state.register_function_rewrite(Arc::new(ExactJsonNumbers))?;
    datafusion_functions_json::register_all(state)?;
    state.add_analyzer_rule(Arc::new(ApplyFunctionRewrites::new(vec![Arc::new(ExactCasts)])));
    Ok(())
}
