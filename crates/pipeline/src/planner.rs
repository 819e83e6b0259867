//! From the query of a view to its branches: one plan per scan, each ending in the view's own columns.
//!
//! Invariant: a branch's plan is projections, filters and aliases over exactly one scan, keeps the order of rows,
//! calls only functions that give the same answer for the same row, and yields exactly the view's schema.
//! Deliberately absent: the optimizer. It runs where the plan does, and it folds `now()` into a constant, which must
//! not happen before it was refused.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{
    Column, DataFusionError, ExprSchema, Result as PlanResult, SchemaError, TableReference, plan_err,
};
use datafusion::logical_expr::logical_plan::builder::LogicalTableSource;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner};
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource, Union, Volatility,
    WindowUDF, cast,
};
use datafusion::sql::planner::{ParserOptions, SqlToRel};
use datafusion::sql::sqlparser::ast::{self, SelectItem, SetExpr, Spanned, Visit, Visitor};
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token};

use crate::inspect::{self, MAX_BRANCHES};
use crate::lex::{Origin, QueryText, lower_first};
use crate::names::fault_of_column;
use crate::near::did_you_mean;
use crate::problem::Problem;
use crate::session::state;
use crate::wire;

/// Functions that the library calls immutable although another build answers differently.
const DIFFER_BY_BUILD: &[&str] = &["version"];

/// A source or view as other views see it.
#[derive(Debug, Clone)]
pub(crate) struct Relation {
    pub(crate) schema: SchemaRef,
    pub(crate) event_time: Option<String>,
}

/// A planned view.
#[derive(Debug)]
pub(crate) struct PlannedView {
    pub(crate) relation: Relation,
    pub(crate) branches: Vec<PlannedBranch>,
}

#[derive(Debug)]
pub(crate) struct PlannedBranch {
    pub(crate) input: String,
    pub(crate) plan: LogicalPlan,
}

/// Plans a view against the relations it may read.
///
/// Errors: what is wrong with the query, each with its place.
pub(crate) fn plan_view(
    origin: &Origin,
    query: &QueryText,
    relations: &BTreeMap<String, Relation>,
) -> Result<PlannedView, Vec<Problem>> {
    let explain = Explain { origin, query };
    explain.check_names()?;
    let plan = to_plan(&query.tree, relations).map_err(|error| explain.all_problems(&error, relations))?;
    explain.check_volatility(&plan)?;
    explain.check_shape(&plan)?;
    let plan = coerce(plan).map_err(|error| explain.problems(&error))?;
    let wire_types = explain.wire_types(&plan)?;
    let branches = split(&plan, relations, &wire_types).map_err(|error| explain.problems(&error))?;
    if branches.len() > MAX_BRANCHES {
        return Err(vec![explain.at_start(format!("the view has more than {MAX_BRANCHES} branches"))]);
    }
    Ok(assemble(branches, &wire_types, relations))
}

// ---- planning ----

fn to_plan(query: &ast::Query, relations: &BTreeMap<String, Relation>) -> PlanResult<LogicalPlan> {
    let tables = Tables::new(relations);
    let options = ParserOptions::from(&state().config_options().sql_parser);
    let planner = SqlToRel::new_with_options(&tables, options);
    planner.sql_statement_to_plan(ast::Statement::Query(Box::new(query.clone())))
}

/// Makes types meet: arguments of functions and operators, and the columns of unions.
fn coerce(plan: LogicalPlan) -> PlanResult<LogicalPlan> {
    state().analyzer().execute_and_check(plan, state().config_options(), |_, _| {})
}

/// The relations of a pipeline, as the SQL planner asks for them.
struct Tables {
    sources: BTreeMap<String, Arc<dyn TableSource>>,
}

impl Tables {
    fn new(relations: &BTreeMap<String, Relation>) -> Tables {
        let as_source = |relation: &Relation| -> Arc<dyn TableSource> {
            Arc::new(LogicalTableSource::new(Arc::clone(&relation.schema)))
        };
        Tables { sources: relations.iter().map(|(name, relation)| (name.clone(), as_source(relation))).collect() }
    }
}

impl ContextProvider for Tables {
    fn get_table_source(&self, name: TableReference) -> PlanResult<Arc<dyn TableSource>> {
        match self.sources.get(name.table()) {
            Some(source) => Ok(Arc::clone(source)),
            None => plan_err!("no source or view `{name}`"),
        }
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        state().expr_planners()
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        state().scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        state().higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        state().aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        state().window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        state().config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        state().scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        state().higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}

// ---- branches ----

/// One plan per scan, in the order of the SQL.
fn split(
    plan: &LogicalPlan,
    relations: &BTreeMap<String, Relation>,
    wire_types: &[(String, DataType)],
) -> PlanResult<Vec<Branch>> {
    let mut branches = Vec::new();
    for plan in paths(plan)? {
        branches.push(Branch::finish(plan, relations, wire_types)?);
    }
    Ok(branches)
}

struct Branch {
    input: String,
    plan: LogicalPlan,
    /// For each output column the input column it is an unchanged copy of.
    copies: Vec<Option<String>>,
}

impl Branch {
    fn finish(
        plan: LogicalPlan,
        relations: &BTreeMap<String, Relation>,
        wire_types: &[(String, DataType)],
    ) -> PlanResult<Branch> {
        let input = scanned(&plan).unwrap_or_default();
        let relation = relations.get(&input);
        let copies = (0..wire_types.len()).map(|index| copied_from(&plan, index)).collect::<Vec<_>>();
        let columns = plan.schema().columns();
        let outputs = columns.into_iter().zip(wire_types).map(|(column, (name, data_type))| {
            let is_wire_type =
                plan.schema().field_from_column(&column).is_ok_and(|found| found.data_type() == data_type);
            let value = Expr::Column(column);
            let value = if is_wire_type { value } else { cast(value, data_type.clone()) };
            value.alias(name)
        });
        let outputs: Vec<Expr> = outputs.collect();
        debug_assert!(relation.is_some(), "the scan was planned against these relations");
        let plan = LogicalPlanBuilder::from(plan).project(outputs)?.build()?;
        Ok(Branch { input, plan, copies })
    }
}

fn paths(plan: &LogicalPlan) -> PlanResult<Vec<LogicalPlan>> {
    match plan {
        LogicalPlan::Union(union) => paths_of_union(union),
        LogicalPlan::TableScan(_) => Ok(vec![plan.clone()]),
        _ => {
            let mut all = Vec::new();
            for input in plan.inputs() {
                for path in paths(input)? {
                    all.push(plan.with_new_exprs(plan.expressions(), vec![path])?);
                }
            }
            Ok(all)
        }
    }
}

/// Each path below a union, with the union's own names and types, which the plan above refers to.
fn paths_of_union(union: &Union) -> PlanResult<Vec<LogicalPlan>> {
    let mut all = Vec::new();
    for input in &union.inputs {
        for path in paths(input)? {
            all.push(as_in_union(path, union)?);
        }
    }
    Ok(all)
}

fn as_in_union(path: LogicalPlan, union: &Union) -> PlanResult<LogicalPlan> {
    let columns = path.schema().columns();
    let outputs = columns.into_iter().zip(union.schema.iter()).map(|(column, (qualifier, field))| {
        let is_same_type =
            path.schema().field_from_column(&column).is_ok_and(|found| found.data_type() == field.data_type());
        let value = Expr::Column(column);
        let value = if is_same_type { value } else { cast(value, field.data_type().clone()) };
        value.alias_qualified(qualifier.cloned(), field.name())
    });
    let outputs: Vec<Expr> = outputs.collect();
    LogicalPlanBuilder::from(path).project(outputs)?.build()
}

fn scanned(plan: &LogicalPlan) -> Option<String> {
    match plan {
        LogicalPlan::TableScan(scan) => Some(scan.table_name.table().to_owned()),
        _ => plan.inputs().into_iter().find_map(scanned),
    }
}

/// The input column that output column `index` copies, if it is a plain copy all the way.
fn copied_from(plan: &LogicalPlan, index: usize) -> Option<String> {
    match plan {
        LogicalPlan::TableScan(scan) => Some(scan.projected_schema.field(index).name().clone()),
        LogicalPlan::Projection(projection) => {
            let column = plain_column(projection.expr.get(index)?)?;
            copied_from(&projection.input, projection.input.schema().maybe_index_of_column(column)?)
        }
        LogicalPlan::Filter(filter) => copied_from(&filter.input, index),
        LogicalPlan::SubqueryAlias(alias) => copied_from(&alias.input, index),
        _ => None,
    }
}

fn plain_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => plain_column(&alias.expr),
        _ => None,
    }
}

fn assemble(
    branches: Vec<Branch>,
    wire_types: &[(String, DataType)],
    relations: &BTreeMap<String, Relation>,
) -> PlannedView {
    let mut event_time = None;
    let mut fields = Vec::new();
    for (index, (name, data_type)) in wire_types.iter().enumerate() {
        // Only copies keep NOT NULL: what a function says of its nulls is not worth stopping a pipeline for.
        let holds_everywhere = |check: fn(&Relation, &str) -> bool| {
            branches.iter().all(|branch| {
                let copied = branch.copies.get(index).and_then(Option::as_deref);
                let relation = relations.get(&branch.input);
                copied.zip(relation).is_some_and(|(column, relation)| check(relation, column))
            })
        };
        let never_null = holds_everywhere(|relation, column| {
            relation.schema.field_with_name(column).is_ok_and(|field| !field.is_nullable())
        });
        fields.push(Field::new(name, data_type.clone(), !never_null));
        let is_event_time = holds_everywhere(|relation, column| relation.event_time.as_deref() == Some(column));
        if is_event_time && event_time.is_none() {
            event_time = Some(name.clone());
        }
    }
    let branches = branches.into_iter().map(|branch| PlannedBranch { input: branch.input, plan: branch.plan });
    let relation = Relation { schema: Arc::new(Schema::new(fields)), event_time };
    PlannedView { relation, branches: branches.collect() }
}

// ---- problems ----

/// Says what is wrong with a query, at its place.
struct Explain<'a> {
    origin: &'a Origin,
    query: &'a QueryText,
}

impl Explain<'_> {
    fn at(&self, span: Span, message: impl Into<String>) -> Problem {
        self.origin.problem(self.query.or_start(span), message)
    }

    fn at_start(&self, message: impl Into<String>) -> Problem {
        self.at(Span::empty(), message)
    }

    /// Output columns as the SQL lists them, if it lists them one by one.
    fn listed_columns(&self) -> Option<&[SelectItem]> {
        let mut body = self.query.tree.body.as_ref();
        loop {
            match body {
                SetExpr::SetOperation { left, .. } => body = left,
                SetExpr::Query(query) => body = &query.body,
                SetExpr::Select(select) => {
                    let is_wildcard = |item: &SelectItem| {
                        matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(_, _))
                    };
                    let has_wildcard = select.projection.iter().any(is_wildcard);
                    return (!has_wildcard && !select.projection.is_empty()).then_some(&select.projection);
                }
                _ => return None,
            }
        }
    }

    fn column_span(&self, index: usize) -> Span {
        self.listed_columns().and_then(|columns| columns.get(index)).map_or_else(Span::empty, Spanned::span)
    }

    /// Repeated names among the listed columns, which the planner would report without a place.
    fn check_names(&self) -> Result<(), Vec<Problem>> {
        let mut seen: Vec<String> = Vec::new();
        let mut problems = Vec::new();
        for item in self.listed_columns().unwrap_or_default() {
            let Some((name, span)) = output_name(item) else { continue };
            if seen.contains(&name) {
                problems.push(self.repeated(&name, span));
            }
            seen.push(name);
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    fn repeated(&self, name: &str, span: Span) -> Problem {
        self.at(span, format!("two columns of the view are called `{name}`")).with_help("name one of them with AS")
    }

    fn check_volatility(&self, plan: &LogicalPlan) -> Result<(), Vec<Problem>> {
        let volatile = volatile_functions(plan).map_err(|error| self.problems(&error))?;
        let mut problems = Vec::new();
        for name in volatile {
            problems.extend(self.refuse_calls_of(&name));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    fn refuse_calls_of(&self, canonical: &str) -> Vec<Problem> {
        let is_same = |written: &str| {
            written == canonical || state().scalar_functions().get(written).is_some_and(|udf| udf.name() == canonical)
        };
        let calls = inspect::calls(self.query).into_iter().filter(|(written, _)| is_same(written));
        let mut problems: Vec<Problem> = calls.map(|(written, span)| self.not_repeatable(&written, span)).collect();
        if problems.is_empty() {
            problems.push(self.not_repeatable(canonical, Span::empty()));
        }
        problems
    }

    fn not_repeatable(&self, written: &str, span: Span) -> Problem {
        let message = format!("`{written}` is not allowed: a view must give the same rows for the same input");
        self.at(span, message).with_help("use a column of the input, such as the time an event carries")
    }

    /// The net under `inspect`: whatever it let through must still be row-wise.
    fn check_shape(&self, plan: &LogicalPlan) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        let walked = plan.apply_with_subqueries(|node| {
            match node {
                LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => {}
                LogicalPlan::Union(_) | LogicalPlan::TableScan(_) => {}
                other => {
                    let what = other.display().to_string();
                    let what = what.split([':', ' ']).next().unwrap_or_default().to_owned();
                    problems.push(self.at_start(format!("not supported yet: {what} in a view")));
                }
            }
            Ok(TreeNodeRecursion::Continue)
        });
        if let Err(error) = walked {
            problems.extend(self.problems(&error));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// Names and wire types of the view's columns.
    fn wire_types(&self, plan: &LogicalPlan) -> Result<Vec<(String, DataType)>, Vec<Problem>> {
        let mut columns: Vec<(String, DataType)> = Vec::new();
        let mut problems = Vec::new();
        for (index, field) in plan.schema().fields().iter().enumerate() {
            let span = self.column_span(index);
            let name = field.name();
            if let Some(other) = columns.iter().find(|(other, _)| self.origin.source.is_same_name(other, name)) {
                let other = &other.0;
                problems.push(match other == name {
                    true => self.repeated(name, span),
                    false => self
                        .at(
                            span,
                            format!("columns `{other}` and `{name}` differ only in case, which tables cannot hold"),
                        )
                        .with_help("name one of them with AS"),
                });
            }
            if fault_of_column(name).is_some() {
                problems.push(self.unusable_name(index, name, span));
            }
            match self.wire_type(field.data_type()) {
                Ok(data_type) => columns.push((name.clone(), data_type)),
                Err(help) => {
                    let message = format!("column `{name}` is {}, which tables cannot hold", call(field.data_type()));
                    problems.push(self.at(span, message).with_help(help));
                }
            }
        }
        if columns.is_empty() && problems.is_empty() {
            problems.push(self.at_start("the view has no columns"));
        }
        if problems.is_empty() { Ok(columns) } else { Err(problems) }
    }

    /// Errors: the help text for a type that tables cannot hold.
    fn wire_type(&self, data_type: &DataType) -> Result<DataType, String> {
        let data_type = wire::normalise(data_type)?;
        let repeated = wire::repeated_field(&data_type).filter(|_| !self.origin.source.is_stored);
        let fault = repeated.map(|field| format!("field `{field}` is there twice; case does not tell fields apart"));
        fault.map_or(Ok(data_type), Err)
    }

    fn unusable_name(&self, index: usize, name: &str, span: Span) -> Problem {
        let is_named = self.listed_columns().and_then(|columns| columns.get(index)).and_then(output_name).is_some();
        match fault_of_column(name) {
            Some(fault) if is_named => self.at(span, format!("column name `{name}` {fault}")),
            _ => self.at(span, format!("column {} of the view has no name", index + 1)).with_help("add AS and a name"),
        }
    }

    /// The planner stops at the first clause with a fault; the filters are the first, so the rest is tried without.
    fn all_problems(&self, error: &DataFusionError, relations: &BTreeMap<String, Relation>) -> Vec<Problem> {
        let mut problems = self.problems(error);
        let mut unfiltered = self.query.tree.as_ref().clone();
        drop_filters(&mut unfiltered);
        if let Err(error) = to_plan(&unfiltered, relations) {
            problems.extend(self.problems(&error));
        }
        problems
    }

    /// Errors of the planner, one problem each.
    fn problems(&self, error: &DataFusionError) -> Vec<Problem> {
        error.iter().map(|error| self.problem(error)).collect()
    }

    fn problem(&self, error: &DataFusionError) -> Problem {
        let place = error.diagnostic().and_then(|diagnostic| diagnostic.span).map(|span| {
            let start = Location::new(span.start.line, span.start.column);
            Span::new(start, Location::new(span.end.line, span.end.column))
        });
        match error.find_root() {
            DataFusionError::SchemaError(error, _) => self.schema_problem(error, place),
            root => {
                let message = plain_message(root);
                if let Some(name) = repeated_name(&message) {
                    return self.repeated(&name, self.find_name(&name).unwrap_or_else(Span::empty));
                }
                let span = place.or_else(|| self.find_name_in(&message)).unwrap_or_else(Span::empty);
                self.at(span, message)
            }
        }
    }

    fn schema_problem(&self, error: &SchemaError, place: Option<Span>) -> Problem {
        match error {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let span = place.or_else(|| self.find_word(&field.name)).unwrap_or_else(Span::empty);
                self.missing_column(field, valid_fields, span)
            }
            other => {
                let message = lower_first(&other.to_string());
                let span = place.or_else(|| self.find_name_in(&message)).unwrap_or_else(Span::empty);
                self.at(span, message)
            }
        }
    }

    fn missing_column(&self, column: &Column, known: &[Column], span: Span) -> Problem {
        let relations = known.iter().filter_map(|known| known.relation.as_ref()).map(TableReference::table);
        if let Some(relation) = column.relation.as_ref().map(TableReference::table)
            && !relations.clone().any(|known| known == relation)
        {
            let help = did_you_mean(relation, relations);
            return self.at(span, format!("nothing is called `{relation}` in FROM")).with_optional_help(help);
        }
        let written = column.flat_name().replace('"', "");
        let names = known.iter().map(|known| known.name.as_str());
        self.at(span, format!("no column `{written}`")).with_optional_help(did_you_mean(&column.name, names))
    }

    /// The first name that the message mentions and the query has, or else the first word.
    fn find_name_in(&self, message: &str) -> Option<Span> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let words: Vec<&str> = message.split(|c| !is_word(c)).filter(|word| word.len() > 1).collect();
        let name = words.iter().find_map(|word| self.find_name(word));
        name.or_else(|| words.iter().find_map(|word| self.find_word(word)))
    }

    /// Like `find_word`, but only identifiers: messages are full of words that are also keywords.
    fn find_name(&self, word: &str) -> Option<Span> {
        let mut finder = NameFinder { word, found: None };
        let visited = self.query.tree.visit(&mut finder);
        if visited.is_break() { finder.found } else { None }
    }

    fn find_word(&self, word: &str) -> Option<Span> {
        let found = self.query.tokens.iter().find(|token| matches!(&token.token, Token::Word(w) if w.value == word));
        found.map(|token| token.span)
    }
}

struct NameFinder<'a> {
    word: &'a str,
    found: Option<Span>,
}

impl NameFinder<'_> {
    fn check(&mut self, ident: &ast::Ident) -> ControlFlow<()> {
        if !ident.value.eq_ignore_ascii_case(self.word) {
            return ControlFlow::Continue(());
        }
        self.found = Some(ident.span);
        ControlFlow::Break(())
    }
}

impl Visitor for NameFinder<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        match expr {
            ast::Expr::Identifier(ident) => self.check(ident),
            ast::Expr::CompoundIdentifier(parts) => parts.iter().try_for_each(|part| self.check(part)),
            ast::Expr::Function(function) => {
                let mut parts = function.name.0.iter().filter_map(|part| part.as_ident());
                parts.try_for_each(|part| self.check(part))
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

/// The name a listed column has by itself or by `AS`.
fn output_name(item: &SelectItem) -> Option<(String, Span)> {
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some((alias.value.clone(), alias.span)),
        SelectItem::UnnamedExpr(ast::Expr::Identifier(ident)) => Some((ident.value.clone(), ident.span)),
        SelectItem::UnnamedExpr(ast::Expr::CompoundIdentifier(parts)) => {
            // A path of three or more goes into a struct, and its column is not called like the last part.
            let last = parts.last().filter(|_| parts.len() <= 2)?;
            Some((last.value.clone(), last.span))
        }
        _ => None,
    }
}

fn drop_filters(query: &mut ast::Query) {
    fn drop_from(body: &mut SetExpr) {
        match body {
            SetExpr::Select(select) => select.selection = None,
            SetExpr::Query(query) => drop_filters(query),
            SetExpr::SetOperation { left, right, .. } => {
                drop_from(left);
                drop_from(right);
            }
            _ => {}
        }
    }
    drop_from(&mut query.body);
}

/// How a type that tables cannot hold is called in a message.
fn call(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Null => "NULL",
        DataType::Time32(_) | DataType::Time64(_) => "a time of day",
        DataType::Interval(_) | DataType::Duration(_) => "an interval",
        DataType::Map(_, _) => "a map",
        DataType::Union(_, _) => "a JSON value of no fixed type",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// The name in the planner's complaint that two columns have the same.
fn repeated_name(message: &str) -> Option<String> {
    let rest = message.strip_prefix("projections require unique expression names but the expression \"")?;
    let (name, _) = rest.split_once('"')?;
    Some(name.rsplit('.').next().unwrap_or(name).to_owned())
}

/// What the planner said, without its own prefixes, hints and backtrace.
fn plain_message(error: &DataFusionError) -> String {
    let message = error.strip_backtrace();
    let message = message.lines().next().unwrap_or_default();
    let prefixes = ["Error during planning: ", "This feature is not implemented: ", "Execution error: "];
    let message = prefixes.iter().fold(message, |text, prefix| text.trim_start_matches(prefix));
    lower_first(message.trim_end_matches('.'))
}

fn volatile_functions(plan: &LogicalPlan) -> PlanResult<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                let call = match expr {
                    Expr::ScalarFunction(call) => Some((call.func.name(), call.func.signature().volatility)),
                    Expr::HigherOrderFunction(call) => Some((call.func.name(), call.func.signature().volatility)),
                    _ => None,
                };
                if let Some((name, volatility)) = call {
                    let differs = volatility != Volatility::Immutable || DIFFER_BY_BUILD.contains(&name);
                    if differs && !found.iter().any(|known| known == name) {
                        found.push(name.to_owned());
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}
