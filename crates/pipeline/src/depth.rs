//! How deep SQL may be, so that no thread's stack is too small for it: views as well as statements sent to analysis.
//!
//! The invariant: what passes can be parsed, printed, planned, run and dropped on a stack of 2 MiB, which is what the
//! runtime's threads have. All of these walk trees by recursion, and a stack that overflows ends the process. A chain
//! of operators makes a tree as deep as it is long, of which the parser's own limit counts nothing; so the tokens are
//! looked at before there is a tree, and the tree before there is a plan. Deliberately absent: what SQL may say
//! (`inspect`, and `statement` in analysis).
//!
//! Why the limits are safe. DataFusion's `recursive_protection` goes on with a new stack where a function marked for it
//! finds less than 128 KiB left. Dropping, cloning, printing and evaluating are not marked, and may begin where little
//! is left, so no limit leans on it: each one, times the stack of a level, stays well below 2 MiB. A tree that is
//! refused is only dropped, which takes some hundred bytes a level: `MAX_OPERATORS`. Planning is taken to need up to
//! 8 KiB a level in a build that is not optimized, and running less: `MAX_DEPTH`. The parser is taken to need as much
//! where it recurses without counting, into types for one: `MAX_BRACKETS`, `MAX_STEPS`. A table that is joined adds a
//! few operators to the plan, each polled by the one above: `MAX_TABLES`. The tests of this crate and of analysis hold
//! the limits to a stack of 2 MiB.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, Query, TableFactor, Visit, Visitor};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

/// Operators, keywords and brackets that may be below each other. Beside each other, between commas, are any number.
const MAX_OPERATORS: usize = 1_000;
/// Brackets within brackets; more than the parser lets through where it counts.
const MAX_BRACKETS: usize = 64;
/// What makes a tree deeper across commas, or costs the parser much at each level without being counted there.
const MAX_STEPS: usize = 64;
/// How deep an expression may be nested once parsed.
const MAX_DEPTH: usize = 200;
/// How deep the expressions of all queries in a statement may be together: a query that reads another one's columns is
/// merged with it.
const MAX_DEPTH_TOGETHER: usize = 500;
/// Tables that a statement may name: the plan gets deeper with each one that is joined, or read by way of another WITH.
const MAX_TABLES: usize = 128;

const STEPS: [Keyword; 5] = [Keyword::UNION, Keyword::EXCEPT, Keyword::INTERSECT, Keyword::MINUS, Keyword::EXPLAIN];
/// Frequent keywords that make nothing deeper by themselves.
const FLAT: [Keyword; 6] = [Keyword::AS, Keyword::ON, Keyword::NULL, Keyword::WHEN, Keyword::THEN, Keyword::ELSE];

const LISTS: &str = "use IN (…) for long lists of values, or cut it into several";
const SEVERAL: &str = "cut it into several";

/// SQL that is too deep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooDeep {
    /// What there is too much of, as part of a sentence.
    pub message: String,
    /// What to do about it.
    pub help: &'static str,
    /// Where it became too much; absent where only the whole tells.
    pub place: Option<Span>,
}

impl TooDeep {
    fn new(message: String, help: &'static str) -> Self {
        Self { message, help, place: None }
    }
}

/// Refuses what would become a tree too deep to be dropped again. To be asked before there is a tree.
///
/// # Errors
/// [`TooDeep`].
pub fn check_tokens(tokens: &[TokenWithSpan]) -> Result<(), TooDeep> {
    let mut shape = Shape::default();
    for token in tokens {
        shape.take(&token.token);
        shape.check().map_err(|excess| TooDeep { place: Some(token.span), ..excess })?;
    }
    shape.close_all();
    shape.check()
}

/// Refuses what is too deep to be planned and run.
///
/// # Errors
/// [`TooDeep`], without a place.
pub fn check_tree(tree: &impl Visit) -> Result<(), TooDeep> {
    match tree.visit(&mut Walk::default()) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(excess) => Err(excess.refusal()),
    }
}

/// A bound of how deep the tree of the tokens taken so far is.
#[derive(Debug, Default)]
struct Shape {
    level: Level,
    /// What the brackets around it hold, the outermost first.
    around: Vec<Level>,
    steps: usize,
    /// The token before, where it is a word.
    word: Option<Keyword>,
}

/// What one pair of brackets holds.
#[derive(Debug, Default)]
struct Level {
    /// Tokens of the item that may each be a level of the tree, or the beginning of one.
    operators: usize,
    /// The deepest of the brackets in the item. A chain may go on after one, so the two add up.
    inner: usize,
    /// The deepest of the items before it.
    earlier: usize,
}

impl Level {
    fn depth(&self) -> usize {
        self.earlier.max(self.operators + self.inner)
    }

    fn next_item(&mut self) {
        *self = Self { earlier: self.depth(), ..Self::default() };
    }
}

impl Shape {
    fn take(&mut self, token: &Token) {
        self.steps += usize::from(self.is_step(token));
        match token {
            Token::Whitespace(_) => return,
            Token::Comma => self.level.next_item(),
            Token::LParen | Token::LBracket | Token::LBrace => self.open(),
            Token::RParen | Token::RBracket | Token::RBrace => self.close(),
            token if is_flat(token) => {}
            _ => self.level.operators += 1,
        }
        self.word = keyword_of(token);
    }

    fn open(&mut self) {
        self.level.operators += 1;
        self.around.push(std::mem::take(&mut self.level));
    }

    /// A bracket too many is a mistake that the parser stops at.
    fn close(&mut self) {
        if let Some(mut outer) = self.around.pop() {
            outer.inner = outer.inner.max(self.level.depth());
            self.level = outer;
        }
    }

    fn close_all(&mut self) {
        while !self.around.is_empty() {
            self.close();
        }
    }

    /// Set operations and `|>` chain what has commas in it. The parser recurses into EXPLAIN, an INTERVAL of an
    /// INTERVAL and the types in types without counting; commas do not end these either.
    fn is_step(&self, token: &Token) -> bool {
        match token {
            Token::Word(word) if word.keyword == Keyword::INTERVAL => self.word == Some(Keyword::INTERVAL),
            Token::Word(word) => STEPS.contains(&word.keyword),
            Token::Lt => matches!(self.word, Some(Keyword::ARRAY | Keyword::STRUCT)),
            token => *token == Token::VerticalBarRightAngleBracket,
        }
    }

    fn check(&self) -> Result<(), TooDeep> {
        if self.level.depth() > MAX_OPERATORS {
            return Err(TooDeep::new(format!("an expression has more than {MAX_OPERATORS} operators"), LISTS));
        }
        if self.around.len() > MAX_BRACKETS {
            return Err(TooDeep::new(format!("brackets are nested deeper than {MAX_BRACKETS}"), SEVERAL));
        }
        if self.steps > MAX_STEPS {
            let message = format!("more than {MAX_STEPS} set operations, EXPLAINs or types within types are chained");
            return Err(TooDeep::new(message, "list rows with VALUES, or cut it into several"));
        }
        Ok(())
    }
}

fn keyword_of(token: &Token) -> Option<Keyword> {
    match token {
        Token::Word(word) => Some(word.keyword),
        _ => None,
    }
}

/// Whether a token makes no tree deeper: names, values, and what only sets apart. A period does: it reaches into a
/// value.
fn is_flat(token: &Token) -> bool {
    match token {
        Token::Word(word) => word.keyword == Keyword::NoKeyword || FLAT.contains(&word.keyword),
        Token::Number(..) | Token::SingleQuotedString(_) | Token::Placeholder(_) | Token::SemiColon => true,
        _ => false,
    }
}

/// What a parsed statement has too much of. Small, as the visitor's frames hold it.
#[derive(Clone, Copy, Debug)]
enum Excess {
    Depth,
    DepthTogether,
    Tables,
}

impl Excess {
    fn refusal(self) -> TooDeep {
        match self {
            Self::Depth => TooDeep::new(format!("an expression is nested deeper than {MAX_DEPTH}"), LISTS),
            Self::DepthTogether => {
                let message =
                    format!("the expressions of all queries are nested deeper than {MAX_DEPTH_TOGETHER} together");
                TooDeep::new(message, SEVERAL)
            }
            Self::Tables => TooDeep::new(format!("more than {MAX_TABLES} tables are named"), SEVERAL),
        }
    }
}

fn at_most(limit: usize, found: usize, excess: Excess) -> ControlFlow<Excess> {
    if found > limit { ControlFlow::Break(excess) } else { ControlFlow::Continue(()) }
}

/// Measures a parsed statement.
#[derive(Debug, Default)]
struct Walk {
    /// Of the expression being visited.
    depth: usize,
    /// The deepest so far in the query being visited.
    deepest: usize,
    /// The same of the queries around it.
    around: Vec<usize>,
    /// The deepest of each query visited, added up.
    together: usize,
    tables: usize,
}

impl Visitor for Walk {
    type Break = Excess;

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<Excess> {
        self.around.push(std::mem::take(&mut self.deepest));
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<Excess> {
        self.together += self.deepest;
        self.deepest = self.around.pop().unwrap_or_default();
        at_most(MAX_DEPTH_TOGETHER, self.together, Excess::DepthTogether)
    }

    fn pre_visit_table_factor(&mut self, _: &TableFactor) -> ControlFlow<Excess> {
        self.tables += 1;
        at_most(MAX_TABLES, self.tables, Excess::Tables)
    }

    fn pre_visit_expr(&mut self, _: &Expr) -> ControlFlow<Excess> {
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
        at_most(MAX_DEPTH, self.depth, Excess::Depth)
    }

    fn post_visit_expr(&mut self, _: &Expr) -> ControlFlow<Excess> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::tokenizer::{Location, Tokenizer};

    use super::*;

    fn check(sql: &str) -> Result<(), TooDeep> {
        check_tokens(&Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().unwrap())
    }

    fn refusal(sql: &str) -> TooDeep {
        check(sql).unwrap_err()
    }

    #[test]
    fn what_stands_between_commas_is_not_deep() {
        check(&format!("SELECT * FROM t WHERE a IN (-1{})", ", -1".repeat(100_000))).unwrap();
        check(&format!("VALUES (1, 'a'){}", ", (1, 'a')".repeat(50_000))).unwrap();
        check(&format!("SELECT CASE a + 1{} END", " WHEN 1 THEN 'x'".repeat(50_000))).unwrap();
    }

    #[test]
    fn commas_in_the_operands_do_not_hide_a_chain() {
        let error = refusal(&format!("SELECT a{} FROM t", " + f(a, 1)".repeat(1_000)));
        assert!(error.message.contains("operators") && error.help.contains("IN (…)"));
        check(&format!("SELECT a{} FROM t", " + f(a, 1)".repeat(400))).unwrap();
    }

    #[test]
    fn chains_around_brackets_and_within_them_add_up() {
        let chain = " + 1".repeat(400);
        check(&format!("SELECT (a{chain}){chain}")).unwrap();
        refusal(&format!("SELECT ((a{chain}){chain}){chain}"));
        refusal(&format!("SELECT a{chain} + (a{chain} + (a{chain}"));
    }

    #[test]
    fn steps_count_across_commas_and_comments() {
        refusal(&format!("SELECT 1, 2{}", " UNION ALL SELECT 1, 2".repeat(65)));
        refusal(&format!("SELECT CAST(a AS {}INT", "STRUCT<a INT, b ".repeat(65)));
        refusal(&format!("SELECT {}'1 day'", "INTERVAL /* of */ ".repeat(66)));
        check(&format!("SELECT a < 1{}", ", INTERVAL '1 day'".repeat(500))).unwrap();
    }

    #[test]
    fn a_refusal_names_the_place() {
        let error = refusal(&format!("SELECT\n{}", "(".repeat(70)));
        assert_eq!(error.place.unwrap().start, Location::new(2, 65));
    }
}
