//! What an apply would change: the pipeline as it should be against the catalog as it is.
//!
//! Invariant: a plan exists only for a pipeline that is right in full; a change upserts every definition whose rows
//! may differ afterwards, which includes everything that reads something changed.
//! Deliberately absent: doing it. The change is a record, and the catalog's log decides whether it happens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use delivery::ErrorClass;
use thiserror::Error;

use crate::catalog::{Catalog, Change};
use crate::names::{fault_of_name, landing_topic};
use crate::problem::{Problem, Problems};
use crate::resolve::resolve;
use crate::spec::{Spec, Statement};

/// Schemas that SQL clients look for and that no pipeline may shadow.
const RESERVED_PIPELINES: [&str; 3] = ["information_schema", "pg_catalog", "tailwater"];

/// The difference that an apply would make.
#[derive(Debug, Clone)]
pub struct ChangePlan {
    pub pipeline: String,
    /// The catalog version the plan was made against.
    pub base: u64,
    pub added: Vec<String>,
    pub changed: Vec<Changed>,
    pub dropped: Vec<String>,
    pub unchanged: Vec<String>,
    statements: BTreeMap<String, Statement>,
    dropped_kinds: BTreeMap<String, &'static str>,
}

/// A definition that gets a new incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub name: String,
    pub reason: Reason,
}

/// Why a definition changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It says something else than before.
    Itself,
    /// Nobody can tell what it said before.
    Unreadable,
    /// It reads something that changes.
    Input(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Itself => f.write_str("its definition changed"),
            Reason::Unreadable => f.write_str("its definition could not be read"),
            Reason::Input(name) => write!(f, "because `{name}` changed"),
        }
    }
}

/// What the user allowed beyond adding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Permissions {
    pub replace: bool,
    pub drop: bool,
}

/// The plan does more than was allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", self.text())]
pub struct Refused {
    /// What would change without permission.
    pub replaced: Vec<String>,
    /// What would be dropped without permission.
    pub dropped: Vec<String>,
}

impl Refused {
    /// Always `Stop`: only the user can allow it.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }

    fn text(&self) -> String {
        let mut parts = Vec::new();
        if !self.replaced.is_empty() {
            parts.push(format!("changing {} needs --replace", quoted(&self.replaced)));
        }
        if !self.dropped.is_empty() {
            parts.push(format!("dropping {} needs --drop", quoted(&self.dropped)));
        }
        parts.join("; ")
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Compares a pipeline as it should be with the catalog. `statements` are all of the pipeline; what is not among
/// them is dropped.
///
/// Errors: everything that is wrong with the statements against each other, and every statement that nothing runs yet.
pub fn plan_change(catalog: &Catalog, pipeline: &str, statements: Vec<Statement>) -> Result<ChangePlan, Problems> {
    let idle = statements.iter().filter_map(run_by_nobody).collect();
    plan_beside(idle, catalog, pipeline, statements)
}

/// The plan as it will be on the day everything that parses is run too.
#[cfg(test)]
pub(crate) fn plan_everything(
    catalog: &Catalog,
    pipeline: &str,
    statements: Vec<Statement>,
) -> Result<ChangePlan, Problems> {
    plan_beside(Vec::new(), catalog, pipeline, statements)
}

/// A sink that is accepted and then publishes nothing would be a lie.
fn run_by_nobody(statement: &Statement) -> Option<Problem> {
    let Spec::Sink(_) = statement.spec else { return None };
    let problem = statement.origin.problem(statement.origin.name_span, "not supported yet: CREATE SINK");
    Some(problem.with_help("read the rows by SQL, with `tailwater tail`, or from the Delta table"))
}

/// Compares, where `problems` were found before.
fn plan_beside(
    mut problems: Vec<Problem>,
    catalog: &Catalog,
    pipeline: &str,
    statements: Vec<Statement>,
) -> Result<ChangePlan, Problems> {
    let current = current(catalog, pipeline);
    let wanted: BTreeSet<&str> = statements.iter().map(|statement| statement.name.as_str()).collect();
    let leaving: BTreeSet<String> =
        current.keys().filter(|name| !wanted.contains(*name)).map(|name| (*name).to_owned()).collect();
    let resolved = resolve(&statements.iter().collect::<Vec<_>>(), &leaving);
    problems.extend(resolved.problems);
    problems.extend(fault_of_pipeline(pipeline));
    problems.extend(repeated_names(&statements));
    problems.extend(shared_landing_topics(catalog, pipeline, &statements));
    Problems::check(problems)?;

    let mut plan = ChangePlan::empty(catalog.version(), pipeline);
    for name in &leaving {
        plan.dropped.push(name.clone());
        let known = current.get(name.as_str()).copied().flatten();
        plan.dropped_kinds.insert(name.clone(), known.map_or("broken", |statement| statement.spec.kind()));
    }
    let reasons = reasons(&current, &statements, &resolved.inputs);
    for statement in statements {
        match (current.contains_key(statement.name.as_str()), reasons.get(&statement.name)) {
            (false, _) => plan.added.push(statement.name.clone()),
            (true, Some(reason)) => {
                plan.changed.push(Changed { name: statement.name.clone(), reason: reason.clone() });
            }
            (true, None) => plan.unchanged.push(statement.name.clone()),
        }
        plan.statements.insert(statement.name.clone(), statement);
    }
    plan.added.sort();
    plan.changed.sort_by(|a, b| a.name.cmp(&b.name));
    plan.unchanged.sort();
    Ok(plan)
}

/// What is there now, by name: what each definition says, if this program can read it.
type Current<'a> = BTreeMap<&'a str, Option<&'a Statement>>;

fn current<'a>(catalog: &'a Catalog, pipeline: &str) -> Current<'a> {
    let readable = catalog.of_pipeline(pipeline).map(|known| (known.name.as_str(), Some(&known.statement)));
    readable.chain(catalog.broken_of(pipeline).map(|broken| (broken.name.as_str(), None))).collect()
}

/// Why each definition that stays changes: first by itself, then by what it reads, as far as that reaches.
fn reasons(
    current: &Current<'_>,
    statements: &[Statement],
    inputs: &BTreeMap<String, BTreeSet<String>>,
) -> BTreeMap<String, Reason> {
    let mut reasons = BTreeMap::new();
    let mut moved: BTreeSet<String> = BTreeSet::new();
    for statement in statements {
        let reason = match current.get(statement.name.as_str()) {
            Some(Some(known)) if *known == statement => continue,
            Some(Some(_)) => Reason::Itself,
            Some(None) => Reason::Unreadable,
            None => continue,
        };
        reasons.insert(statement.name.clone(), reason);
        moved.insert(statement.name.clone());
    }
    loop {
        let mut reached = Vec::new();
        for (name, inputs) in inputs {
            if reasons.contains_key(name) {
                continue;
            }
            if let Some(input) = inputs.iter().find(|input| moved.contains(*input)) {
                reached.push((name.clone(), Reason::Input(input.clone())));
            }
        }
        if reached.is_empty() {
            return reasons;
        }
        for (name, reason) in reached {
            moved.insert(name.clone());
            reasons.insert(name, reason);
        }
    }
}

fn fault_of_pipeline(pipeline: &str) -> Option<Problem> {
    let fault = match RESERVED_PIPELINES.contains(&pipeline) {
        true => Some("is reserved".to_owned()),
        false => fault_of_name(pipeline),
    }?;
    let problem = Problem::without_place(pipeline, format!("pipeline name `{pipeline}` {fault}"));
    Some(problem.with_help("the pipeline is named after its folder; rename the folder"))
}

fn repeated_names(statements: &[Statement]) -> Vec<Problem> {
    let mut seen = BTreeSet::new();
    let repeats = statements.iter().filter(|statement| !seen.insert(statement.name.as_str()));
    repeats
        .map(|statement| {
            statement.origin.problem(statement.origin.name_span, format!("`{}` is defined twice", statement.name))
        })
        .collect()
}

/// Kafka refuses two topics whose names differ only in `.` against `_`, and landing topics have no incarnation to
/// tell `a.b_c` from `a_b.c`.
fn shared_landing_topics(catalog: &Catalog, pipeline: &str, statements: &[Statement]) -> Vec<Problem> {
    let blurred = |pipeline: &str, name: &str| landing_topic(pipeline, name).replace('.', "_");
    let others: BTreeMap<String, String> = catalog
        .definitions()
        .filter(|other| other.pipeline != pipeline && has_landing_topic(&other.statement))
        .map(|other| (blurred(&other.pipeline, &other.name), format!("{}.{}", other.pipeline, other.name)))
        .collect();
    let landing = statements.iter().filter(|statement| has_landing_topic(statement));
    landing
        .filter_map(|statement| {
            let other = others.get(&blurred(pipeline, &statement.name))?;
            let message = format!("the landing topic of `{}` cannot be told from that of `{other}`", statement.name);
            let problem = statement.origin.problem(statement.origin.name_span, message);
            Some(problem.with_help("choose another name, or give the source a topic"))
        })
        .collect()
}

fn has_landing_topic(statement: &Statement) -> bool {
    matches!(&statement.spec, Spec::Source(source) if source.topic.is_none())
}

impl ChangePlan {
    fn empty(base: u64, pipeline: &str) -> ChangePlan {
        ChangePlan {
            pipeline: pipeline.to_owned(),
            base,
            added: Vec::new(),
            changed: Vec::new(),
            dropped: Vec::new(),
            unchanged: Vec::new(),
            statements: BTreeMap::new(),
            dropped_kinds: BTreeMap::new(),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.dropped.is_empty()
    }

    /// The record to append, or `None` if nothing changes.
    ///
    /// Errors: `Refused` if the plan changes or drops something without permission; it names all of it.
    pub fn into_change(self, permissions: Permissions) -> Result<Option<Change>, Refused> {
        let replaced: Vec<String> = self.changed.iter().map(|changed| changed.name.clone()).collect();
        let refused = Refused {
            replaced: if permissions.replace { Vec::new() } else { replaced.clone() },
            dropped: if permissions.drop { Vec::new() } else { self.dropped.clone() },
        };
        if !refused.replaced.is_empty() || !refused.dropped.is_empty() {
            return Err(refused);
        }
        if self.is_empty() {
            return Ok(None);
        }
        let names: BTreeSet<&String> = self.added.iter().chain(&replaced).collect();
        let upserts = names.into_iter().filter_map(|name| self.statements.get(name)).collect();
        Ok(Some(Change::new(self.base, &self.pipeline, upserts, self.dropped.clone())))
    }

    fn kind(&self, name: &str) -> &'static str {
        let kept = self.statements.get(name).map(|statement| statement.spec.kind());
        kept.or_else(|| self.dropped_kinds.get(name).copied()).unwrap_or_default()
    }

    fn write_line(&self, f: &mut fmt::Formatter<'_>, mark: char, name: &str, what: &str) -> fmt::Result {
        let line = format!("  {mark} {:<6} {name:<24} {what}", self.kind(name));
        write!(f, "\n{}", line.trim_end())
    }
}

/// What apply prints before it does anything.
impl fmt::Display for ChangePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "pipeline `{}`: nothing changes ({} definitions)", self.pipeline, self.unchanged.len());
        }
        write!(
            f,
            "pipeline `{}`: {} to add, {} to change, {} to drop, {} unchanged",
            self.pipeline,
            self.added.len(),
            self.changed.len(),
            self.dropped.len(),
            self.unchanged.len()
        )?;
        for name in &self.added {
            self.write_line(f, '+', name, "")?;
        }
        for changed in &self.changed {
            self.write_line(f, '~', &changed.name, &changed.reason.to_string())?;
        }
        for name in &self.dropped {
            self.write_line(f, '-', name, "")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
