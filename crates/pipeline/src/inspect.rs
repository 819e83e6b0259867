//! What a view may say: rows in, rows out, one by one.
//!
//! Invariant: a query that passes reads relations only through `FROM` and `UNION ALL`, so its plan is a tree of
//! projections and filters over scans, of which there are not too many, since planning walks each. Everything that
//! needs state or order is refused at the clause that asks for it, as is every clause the planner would silently
//! ignore.
//! Deliberately absent: types and names of columns, which the planner checks.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CharacterLength, Cte, DataType, Distinct, ExactNumberInfo, Expr, Function, FunctionArguments,
    GroupByExpr, LimitClause, ObjectName, Query, Select, SelectItem, SetExpr, SetOperator, SetQuantifier, Spanned,
    TableFactor, TableWithJoins, Value, Visit, Visitor, WildcardAdditionalOptions,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use crate::lex::{QueryText, SourceFile};
use crate::near::did_you_mean;
use crate::problem::Problem;
use crate::session::state;

/// Functions that put rows into windows of time.
pub(crate) const TIME_WINDOWS: &[&str] = &["tumble", "hop", "session", "cumulate"];

/// Branches of one view. Unions of unions multiply, and each branch becomes a plan, and a task for each partition.
pub(crate) const MAX_BRANCHES: usize = 256;

/// What views can do, as help for what they cannot.
pub(crate) const ROW_BY_ROW: &str =
    "a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL";

/// A relation that a query reads, and where it says so.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) span: Span,
}

/// Everything in the query that views cannot do.
pub(crate) fn refusals(source: &SourceFile, query: &QueryText) -> Vec<Problem> {
    inspect(source, query).problems
}

/// The relations that the query reads, as often as it names them; names of `WITH` are resolved.
pub(crate) fn inputs(source: &SourceFile, query: &QueryText) -> Vec<Input> {
    inspect(source, query).inputs
}

/// Places of all calls of functions, with the name as written.
pub(crate) fn calls(query: &QueryText) -> Vec<(String, Span)> {
    let mut calls = Calls(Vec::new());
    let visited = query.tree.visit(&mut calls);
    debug_assert!(visited.is_continue(), "collecting calls never stops early");
    calls.0
}

struct Calls(Vec<(String, Span)>);

impl Visitor for Calls {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr {
            self.0.push((function_name(&function.name), function.name.span()));
        }
        ControlFlow::Continue(())
    }
}

fn inspect<'a>(source: &'a SourceFile, query: &'a QueryText) -> Inspector<'a> {
    let mut inspector =
        Inspector { source, text: query, scope: Vec::new(), scans: 0, inputs: Vec::new(), problems: Vec::new() };
    inspector.query(&query.tree);
    inspector.check_scans("the view", query.start());
    inspector
}

/// A name that `WITH` made, and how many scans are behind it.
struct Named {
    name: String,
    scans: usize,
}

struct Inspector<'a> {
    source: &'a SourceFile,
    text: &'a QueryText,
    /// Names that `WITH` made, innermost last.
    scope: Vec<Named>,
    /// Scans of the query so far, with those of the names it reads. A chain of names doubles them with each link, so
    /// they are counted and never listed.
    scans: usize,
    inputs: Vec<Input>,
    problems: Vec<Problem>,
}

impl Inspector<'_> {
    fn report(&mut self, span: Span, message: impl Into<String>) -> &mut Problem {
        let problem = self.source.problem(self.text.or_start(span), message);
        self.problems.push(problem);
        self.problems.last_mut().expect("a problem was pushed in the line before")
    }

    fn refuse(&mut self, span: Span, what: &str) {
        self.report(span, format!("not supported yet: {what}")).help = Some(ROW_BY_ROW.to_owned());
    }

    fn refuse_with(&mut self, span: Span, what: &str, help: &str) {
        self.report(span, format!("not supported yet: {what}")).help = Some(help.to_owned());
    }

    fn refuse_clause(&mut self, is_there: bool, keywords: &[&str], what: &str, inside: Span) {
        if is_there {
            let span = self.text.keyword_before(keywords, inside);
            self.refuse(span, what);
        }
    }

    fn query(&mut self, query: &Query) {
        let names_outside = self.scope.len();
        if let Some(with) = &query.with {
            if with.recursive {
                self.refuse(with.with_token.0.span, "WITH RECURSIVE");
            }
            with.cte_tables.iter().for_each(|cte| self.cte(cte));
        }
        self.set_expr(&query.body);
        self.tail(query);
        self.scope.truncate(names_outside);
    }

    fn cte(&mut self, cte: &Cte) {
        let scans_outside = std::mem::take(&mut self.scans);
        self.query(&cte.query);
        let name = cte.alias.name.value.clone();
        self.check_scans(&format!("`{name}`"), cte.alias.name.span);
        self.scope.push(Named { name, scans: std::mem::replace(&mut self.scans, scans_outside) });
    }

    /// Refuses as soon as there are too many, and then goes on with none, so that one chain is one problem.
    fn check_scans(&mut self, whose: &str, span: Span) {
        if self.scans > MAX_BRANCHES {
            self.scans = 0;
            let problem = self.report(span, format!("{whose} has more than {MAX_BRANCHES} branches"));
            problem.help = Some("each UNION ALL adds up what it reads; cut it into several views".to_owned());
        }
    }

    /// What may follow the body of a query.
    fn tail(&mut self, query: &Query) {
        let body = query.body.span();
        if let Some(order_by) = &query.order_by {
            self.refuse_clause(true, &["ORDER"], "ORDER BY", order_by.span());
        }
        if let Some(limit) = &query.limit_clause {
            self.limit(limit);
        }
        if query.fetch.is_some() {
            let span = self.text.keyword_after(&["FETCH"], body);
            self.refuse(span, "FETCH");
        }
        if !query.locks.is_empty() || query.for_clause.is_some() {
            let span = self.text.keyword_after(&["FOR"], body);
            self.refuse(span, "FOR after a query");
        }
        if query.settings.is_some() {
            let span = self.text.keyword_after(&["SETTINGS"], body);
            self.refuse(span, "SETTINGS");
        }
        if query.format_clause.is_some() {
            let span = self.text.keyword_after(&["FORMAT"], body);
            self.refuse(span, "FORMAT");
        }
        if !query.pipe_operators.is_empty() {
            self.refuse(body, "pipe operators");
        }
    }

    fn limit(&mut self, limit: &LimitClause) {
        match limit {
            LimitClause::LimitOffset { limit: None, limit_by, .. } if limit_by.is_empty() => {
                self.refuse_clause(true, &["OFFSET"], "OFFSET", limit.span());
            }
            _ => self.refuse_clause(true, &["LIMIT"], "LIMIT", limit.span()),
        }
    }

    fn set_expr(&mut self, body: &SetExpr) {
        match body {
            SetExpr::Select(select) => self.select(select),
            SetExpr::Query(query) => self.query(query),
            SetExpr::SetOperation { left, op, set_quantifier, right } => {
                self.set_expr(left);
                self.set_operation(op, set_quantifier, right);
                self.set_expr(right);
            }
            SetExpr::Values(values) => {
                let span = self.text.keyword_before(&["VALUES"], values.span());
                self.refuse_with(span, "VALUES", "a view must read a source or another view");
            }
            SetExpr::Table(_) => self.refuse_with(self.text.start(), "TABLE as a query", "write SELECT * FROM …"),
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                self.report(self.text.start(), "a view is made of a query, not of a change");
            }
        }
    }

    fn set_operation(&mut self, op: &SetOperator, quantifier: &SetQuantifier, right: &SetExpr) {
        let span = self.text.keyword_before(&["UNION", "EXCEPT", "INTERSECT", "MINUS"], right.span());
        match (op, quantifier) {
            (SetOperator::Union, SetQuantifier::All | SetQuantifier::AllByName) => {}
            (SetOperator::Union, _) => self.refuse_with(
                span,
                "UNION without ALL",
                "write UNION ALL; to drop repeated rows a view would have to remember all of them",
            ),
            (op, _) => self.refuse(span, &op.to_string()),
        }
    }

    fn select(&mut self, select: &Select) {
        self.select_head(select);
        self.from(select);
        self.after_from(select);
        self.expressions(select);
        for item in &select.projection {
            if let SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) = item {
                self.wildcard(options);
            }
        }
    }

    fn select_head(&mut self, select: &Select) {
        let start = select.select_token.0.span;
        match &select.distinct {
            Some(Distinct::Distinct | Distinct::On(_)) => {
                let span = self.text.keyword_after(&["DISTINCT"], start);
                self.refuse(span, "DISTINCT");
            }
            Some(Distinct::All) | None => {}
        }
        if select.top.is_some() {
            let span = self.text.keyword_after(&["TOP"], start);
            self.refuse(span, "TOP");
        }
        if select.into.is_some() {
            let span = self.text.keyword_after(&["INTO"], start);
            self.refuse(span, "SELECT INTO");
        }
        let has_modifiers = select.select_modifiers.is_some()
            || select.value_table_mode.is_some()
            || !select.optimizer_hints.is_empty();
        if has_modifiers {
            self.refuse(start, "modifiers after SELECT");
        }
        if select.exclude.is_some() {
            let span = self.text.keyword_after(&["EXCLUDE"], start);
            self.refuse_with(span, "EXCLUDE after a list of columns", "write it after the `*`");
        }
    }

    fn from(&mut self, select: &Select) {
        match select.from.as_slice() {
            [] => {
                let span = select.select_token.0.span;
                self.report(span, "a view must read a source or another view").help = Some("add FROM".to_owned());
            }
            [only] => self.table_with_joins(only),
            [first, second, ..] => {
                self.table_with_joins(first);
                self.refuse(second.span(), "a join (two relations in FROM)");
            }
        }
    }

    fn table_with_joins(&mut self, table: &TableWithJoins) {
        self.table_factor(&table.relation);
        if let Some(join) = table.joins.first() {
            let span = self.text.keyword_before(&["JOIN", "APPLY"], join.relation.span());
            self.refuse(span, "a join");
        }
    }

    fn table_factor(&mut self, factor: &TableFactor) {
        match factor {
            TableFactor::Table { name, args: Some(_), .. } => self.table_function(name),
            TableFactor::Table {
                name,
                alias: _,
                args: None,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                let is_plain = with_hints.is_empty() && version.is_none() && !with_ordinality && partitions.is_empty();
                if !is_plain || json_path.is_some() || sample.is_some() || !index_hints.is_empty() {
                    self.refuse(name.span(), "anything but an alias after the name of a relation");
                }
                self.relation(name);
            }
            TableFactor::Derived { lateral, subquery, alias: _, sample } => {
                if *lateral || sample.is_some() {
                    self.refuse(subquery.span(), "LATERAL and TABLESAMPLE");
                }
                self.query(subquery);
            }
            TableFactor::NestedJoin { table_with_joins, alias: _ } => self.table_with_joins(table_with_joins),
            TableFactor::TableFunction { expr, .. } => self.table_expression(expr),
            TableFactor::Function { name, .. } => self.table_function(name),
            TableFactor::UNNEST { .. } => self.refuse_clause(true, &["UNNEST"], "UNNEST", factor.span()),
            TableFactor::Pivot { .. } => self.refuse(factor.span(), "PIVOT"),
            TableFactor::Unpivot { .. } => self.refuse(factor.span(), "UNPIVOT"),
            TableFactor::MatchRecognize { .. } => self.refuse(factor.span(), "MATCH_RECOGNIZE"),
            _ => self.refuse(factor.span(), "this kind of relation"),
        }
    }

    fn table_expression(&mut self, expr: &Expr) {
        match expr {
            Expr::Function(function) => self.table_function(&function.name),
            other => self.refuse(other.span(), "TABLE(…)"),
        }
    }

    fn table_function(&mut self, name: &ObjectName) {
        let written = function_name(name);
        let what = match TIME_WINDOWS.contains(&written.as_str()) {
            true => format!("windows of time ({})", written.to_uppercase()),
            false => format!("the table function `{written}`"),
        };
        self.refuse(name.span(), &what);
    }

    fn relation(&mut self, name: &ObjectName) {
        let span = name.span();
        let parts: Vec<&str> = name.0.iter().filter_map(|part| part.as_ident()).map(|id| id.value.as_str()).collect();
        match parts.as_slice() {
            [one] => self.read(one, span),
            _ => {
                let problem = self.report(span, "not supported yet: reading from another pipeline");
                problem.help = Some("a view reads sources and views of its own pipeline, without a schema".to_owned());
            }
        }
    }

    fn read(&mut self, name: &str, span: Span) {
        match self.scope.iter().rev().find(|known| known.name == name) {
            Some(known) => self.scans = self.scans.saturating_add(known.scans),
            None => {
                self.scans = self.scans.saturating_add(1);
                self.inputs.push(Input { name: name.to_owned(), span });
            }
        }
    }

    fn after_from(&mut self, select: &Select) {
        let start = select.select_token.0.span;
        match &select.group_by {
            GroupByExpr::Expressions(expressions, modifiers) => {
                let is_there = !expressions.is_empty() || !modifiers.is_empty();
                self.refuse_clause(is_there, &["GROUP"], "GROUP BY", select.group_by.span());
            }
            GroupByExpr::All(_) => {
                let span = self.text.keyword_after(&["GROUP"], start);
                self.refuse(span, "GROUP BY");
            }
        }
        if let Some(having) = &select.having {
            self.refuse_clause(true, &["HAVING"], "HAVING", having.span());
        }
        if let Some(qualify) = &select.qualify {
            self.refuse_clause(true, &["QUALIFY"], "QUALIFY", qualify.span());
        }
        if let Some(prewhere) = &select.prewhere {
            self.refuse_clause(true, &["PREWHERE"], "PREWHERE", prewhere.span());
        }
        let clauses = [
            (!select.named_window.is_empty(), "WINDOW"),
            (!select.lateral_views.is_empty(), "LATERAL"),
            (!select.cluster_by.is_empty(), "CLUSTER"),
            (!select.distribute_by.is_empty(), "DISTRIBUTE"),
            (!select.sort_by.is_empty(), "SORT"),
            (!select.connect_by.is_empty(), "CONNECT"),
        ];
        for (is_there, keyword) in clauses {
            if is_there {
                let span = self.text.keyword_after(&[keyword], start);
                self.refuse(span, keyword);
            }
        }
    }

    fn wildcard(&mut self, options: &WildcardAdditionalOptions) {
        let is_unknown = options.opt_ilike.is_some() || options.opt_rename.is_some() || options.opt_alias.is_some();
        if is_unknown {
            let help = "EXCLUDE, EXCEPT and REPLACE work; otherwise list the columns";
            self.refuse_with(options.wildcard_token.0.span, "this option of `*`", help);
        }
    }

    fn expressions(&mut self, select: &Select) {
        let mut checker = ExpressionChecker { inspector: self, queries: 0 };
        let projection = select.projection.visit(&mut checker);
        let selection = select.selection.visit(&mut checker);
        debug_assert!(projection.is_continue() && selection.is_continue(), "the checker never stops early");
    }

    fn function(&mut self, function: &Function) {
        let name = function_name(&function.name);
        let span = function.name.span();
        let known = state();
        if function.name.0.len() != 1 {
            self.report(span, format!("no function `{name}`")).help = Some("functions have no schema".to_owned());
        } else if function.over.is_some() {
            self.refuse(span, &format!("the window function `{name}` OVER (…)"));
        } else if TIME_WINDOWS.contains(&name.as_str()) {
            self.refuse(span, &format!("windows of time ({})", name.to_uppercase()));
        } else if name == "unnest" {
            self.refuse(span, "UNNEST");
        } else if known.scalar_functions().contains_key(&name) || known.higher_order_functions().contains_key(&name) {
            self.scalar_function(function, &name);
        } else if known.aggregate_functions().contains_key(&name) {
            self.refuse(span, &format!("the aggregate function `{name}`"));
        } else if known.window_functions().contains_key(&name) {
            self.refuse(span, &format!("the window function `{name}`"));
        } else {
            self.unknown_function(&name, span);
        }
    }

    /// The planner takes lengths and means types without any. What was accepted like that keeps its meaning.
    fn cast(&mut self, argument: &Expr, data_type: &DataType) {
        let ignored = ignored_length(data_type).filter(|_| !self.source.is_stored);
        if let Some((keyword, help)) = ignored {
            let span = self.text.keyword_after(&[keyword], argument.span());
            self.refuse_with(span, &format!("a length for {keyword}"), &help);
        }
    }

    fn scalar_function(&mut self, function: &Function, name: &str) {
        let is_plain = match &function.args {
            FunctionArguments::List(list) => list.duplicate_treatment.is_none() && list.clauses.is_empty(),
            // A subquery as argument is reported as such.
            FunctionArguments::None | FunctionArguments::Subquery(_) => true,
        };
        let has_extras = function.filter.is_some()
            || function.null_treatment.is_some()
            || !function.within_group.is_empty()
            || !matches!(function.parameters, FunctionArguments::None);
        if !is_plain || has_extras {
            self.report(function.name.span(), format!("`{name}` takes plain arguments only"));
        }
    }

    fn unknown_function(&mut self, name: &str, span: Span) {
        let known = state();
        let mut names: Vec<&str> = known.scalar_functions().keys().map(String::as_str).collect();
        // Maps have no order of their own, and a message must be the same each time.
        names.sort_unstable();
        let help = did_you_mean(name, names);
        self.report(span, format!("no function `{name}`")).help = help;
    }
}

/// Checks expressions, and only the outermost of nested queries.
struct ExpressionChecker<'i, 'a> {
    inspector: &'i mut Inspector<'a>,
    queries: usize,
}

impl Visitor for ExpressionChecker<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.queries == 0 {
            self.inspector.refuse(query.span(), "a subquery in an expression");
        }
        self.queries += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.queries > 0 {
            return ControlFlow::Continue(());
        }
        match expr {
            Expr::Function(function) => self.inspector.function(function),
            Expr::Cast { expr, data_type, .. } => self.inspector.cast(expr, data_type),
            Expr::Value(value) if matches!(value.value, Value::Placeholder(_)) => {
                self.inspector.report(value.span, "a view has no parameters").help = Some("write the value".to_owned());
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// The word of a type that says how long its values are, and what to write instead.
fn ignored_length(data_type: &DataType) -> Option<(&'static str, String)> {
    let cut = |name: &'static str, length: u64| {
        let help = format!("lengths are not enforced; write left(…, {length}) to cut a text off, or {name} alone");
        Some((name, help))
    };
    match data_type {
        DataType::Varchar(Some(CharacterLength::IntegerLength { length, .. })) => cut("VARCHAR", *length),
        DataType::Char(Some(CharacterLength::IntegerLength { length, .. })) => cut("CHAR", *length),
        DataType::String(Some(length)) => cut("STRING", *length),
        // Up to here a FLOAT is as precise as it says.
        DataType::Float(ExactNumberInfo::None | ExactNumberInfo::Precision(0..=24)) => None,
        DataType::Float(_) => Some(("FLOAT", "FLOAT has 24 bits; write DOUBLE for 53".to_owned())),
        DataType::Array(ArrayElemTypeDef::AngleBracket(item) | ArrayElemTypeDef::SquareBracket(item, _)) => {
            ignored_length(item)
        }
        DataType::Struct(fields, _) => fields.iter().find_map(|field| ignored_length(&field.field_type)),
        _ => None,
    }
}

fn function_name(name: &ObjectName) -> String {
    let parts: Vec<&str> = name.0.iter().filter_map(|part| part.as_ident()).map(|id| id.value.as_str()).collect();
    parts.join(".")
}
