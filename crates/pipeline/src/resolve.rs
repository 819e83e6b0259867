//! All definitions of one pipeline against each other: inputs exist, nothing goes in circles, every view plans.
//!
//! Invariant: a definition is planned only after everything it reads; one that reads something faulty is left out
//! silently, so that one fault is one problem.
//! Deliberately absent: what changed since when; that is `change`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema};

use crate::columns::check_lists;
use crate::inspect::{self, Input};
use crate::names::rejected_table;
use crate::near::did_you_mean;
use crate::planner::{PlannedView, Relation, plan_view};
use crate::problem::Problem;
use crate::spec::{SinkSpec, SourceSpec, Spec, Statement, ViewSpec};

/// What planning a pipeline found out.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) relations: BTreeMap<String, Relation>,
    pub(crate) views: BTreeMap<String, PlannedView>,
    /// What each definition reads, without repeats.
    pub(crate) inputs: BTreeMap<String, BTreeSet<String>>,
    pub(crate) problems: Vec<Problem>,
}

/// Resolves the statements of one pipeline. `leaving` are names that exist now and are not among the statements.
pub(crate) fn resolve(statements: &[&Statement], leaving: &BTreeSet<String>) -> Resolved {
    let by_name: BTreeMap<&str, &Statement> =
        statements.iter().map(|statement| (statement.name.as_str(), *statement)).collect();
    let mut resolver = Resolver { by_name, leaving, done: Resolved::default() };
    resolver.check_rejected_names();
    resolver.check_inputs();
    let circular = resolver.check_cycles();
    resolver.plan_in_order(&circular);
    resolver.check_loops_through_topics();
    resolver.done
}

/// The relations a definition reads, where it says so.
fn inputs_of(statement: &Statement) -> Vec<Input> {
    match &statement.spec {
        Spec::Source(_) => Vec::new(),
        Spec::Sink(sink) => vec![Input { name: sink.from.clone(), span: statement.origin.from_span }],
        Spec::View(_) => match &statement.origin.query {
            Some(query) => inspect::inputs(&statement.origin.source, query),
            None => Vec::new(),
        },
    }
}

struct Resolver<'a> {
    by_name: BTreeMap<&'a str, &'a Statement>,
    leaving: &'a BTreeSet<String>,
    done: Resolved,
}

impl Resolver<'_> {
    fn check_rejected_names(&mut self) {
        for statement in self.by_name.values().filter(|statement| statement.spec.has_rows()) {
            let taken = rejected_table(&statement.name);
            if let Some(clash) = self.by_name.get(taken.as_str()) {
                let message = format!("`{taken}` is the name of the table with what `{}` rejects", statement.name);
                let problem = clash.origin.problem(clash.origin.name_span, message);
                self.done.problems.push(problem.with_help("choose another name"));
            }
        }
    }

    fn check_inputs(&mut self) {
        for (name, statement) in &self.by_name {
            let inputs = inputs_of(statement);
            for input in &inputs {
                self.done.problems.extend(self.missing(statement, input));
            }
            let names = inputs.into_iter().map(|input| input.name).collect();
            self.done.inputs.insert((*name).to_owned(), names);
        }
    }

    fn missing(&self, statement: &Statement, input: &Input) -> Option<Problem> {
        let name = &input.name;
        match self.by_name.get(name.as_str()) {
            Some(found) if found.spec.has_rows() => None,
            Some(_) => {
                let problem = statement.origin.problem(input.span, format!("`{name}` is a sink and has no rows"));
                Some(problem.with_help("read what the sink reads"))
            }
            None if self.leaving.contains(name) => {
                let message = format!("`{name}` would be dropped, but `{}` reads it", statement.name);
                let problem = statement.origin.problem(input.span, message);
                Some(problem.with_help(format!("keep `{name}`, or drop `{}` too", statement.name)))
            }
            None => {
                let problem = statement.origin.problem(input.span, format!("no source or view `{name}`"));
                let known =
                    self.by_name.values().filter(|known| known.spec.has_rows()).map(|known| known.name.as_str());
                Some(problem.with_optional_help(did_you_mean(name, known)))
            }
        }
    }

    /// Names of definitions that read themselves, directly or through others; each circle is one problem.
    fn check_cycles(&mut self) -> BTreeSet<String> {
        let mut circular = BTreeSet::new();
        let names: Vec<String> = self.done.inputs.keys().cloned().collect();
        for name in names {
            if circular.contains(&name) {
                continue;
            }
            let Some(circle) = self.circle_through(&name) else { continue };
            let path: Vec<String> = circle.iter().map(|member| format!("`{member}`")).collect();
            if let Some(statement) = self.by_name.get(name.as_str()) {
                let message = format!("views go in a circle: {} reads `{name}`", path.join(" reads "));
                self.done.problems.push(statement.origin.problem(statement.origin.name_span, message));
            }
            circular.extend(circle);
        }
        circular
    }

    /// A shortest way from `start` back to itself, without the last step.
    fn circle_through(&self, start: &str) -> Option<Vec<String>> {
        let mut ways: Vec<Vec<String>> = vec![vec![start.to_owned()]];
        let mut seen = BTreeSet::new();
        while !ways.is_empty() {
            let mut longer = Vec::new();
            for way in ways {
                let inputs = way.last().and_then(|last| self.done.inputs.get(last));
                for input in inputs.into_iter().flatten() {
                    if input == start {
                        return Some(way);
                    }
                    if seen.insert(input.clone()) {
                        let mut next = way.clone();
                        next.push(input.clone());
                        longer.push(next);
                    }
                }
            }
            ways = longer;
        }
        None
    }

    fn plan_in_order(&mut self, circular: &BTreeSet<String>) {
        let mut waiting: Vec<&Statement> = self.by_name.values().copied().collect();
        waiting.retain(|statement| !circular.contains(&statement.name));
        loop {
            let is_ready = |statement: &&Statement| match self.done.inputs.get(&statement.name) {
                Some(inputs) => inputs.iter().all(|input| self.done.relations.contains_key(input)),
                None => true,
            };
            let (ready, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_ready);
            if ready.is_empty() {
                return;
            }
            for statement in ready {
                self.plan(statement);
            }
            waiting = later;
        }
    }

    fn plan(&mut self, statement: &Statement) {
        match &statement.spec {
            Spec::Source(source) => {
                self.done.relations.insert(statement.name.clone(), relation_of(source));
            }
            Spec::View(view) => self.plan_view(statement, view),
            Spec::Sink(_) => {}
        }
    }

    fn plan_view(&mut self, statement: &Statement, view: &ViewSpec) {
        let Some(query) = &statement.origin.query else { return };
        match plan_view(&statement.origin, query, &self.done.relations) {
            Ok(planned) => {
                let fields = planned.relation.schema.fields();
                let columns: Vec<_> = fields.iter().map(|field| (field.name().as_str(), field.data_type())).collect();
                let options = &view.options;
                let lists = check_lists(
                    &statement.origin,
                    &columns,
                    &options.statistics,
                    &options.bounds,
                    &options.partition_by,
                );
                self.done.problems.extend(lists);
                self.done.relations.insert(statement.name.clone(), planned.relation.clone());
                self.done.views.insert(statement.name.clone(), planned);
            }
            Err(problems) => self.done.problems.extend(problems),
        }
    }

    /// A sink that writes what its own source reads would feed itself for ever.
    fn check_loops_through_topics(&mut self) {
        for statement in self.by_name.values() {
            let Spec::Sink(sink) = &statement.spec else { continue };
            if let Some(source) = self.source_fed_by(sink) {
                let message = format!("the sink writes topic `{}`, which its own input `{source}` reads", sink.topic);
                let span = statement.origin.option_span("topic");
                self.done.problems.push(statement.origin.problem(span, message));
            }
        }
    }

    fn source_fed_by(&self, sink: &SinkSpec) -> Option<String> {
        let mut seen = BTreeSet::new();
        let mut waiting = vec![sink.from.clone()];
        while let Some(name) = waiting.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            if let Some(Spec::Source(source)) = self.by_name.get(name.as_str()).map(|statement| &statement.spec)
                && source.topic.as_deref() == Some(&sink.topic)
            {
                return Some(name);
            }
            waiting.extend(self.done.inputs.get(&name).into_iter().flatten().cloned());
        }
        None
    }
}

fn relation_of(source: &SourceSpec) -> Relation {
    let fields =
        source.columns.iter().map(|column| Field::new(&column.name, column.data_type.clone(), column.nullable));
    Relation {
        schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
        event_time: source.watermark.as_ref().map(|watermark| watermark.column.clone()),
    }
}
