//! What the tests of several modules share.
//!
//! Deliberately absent: expectations; those stay with the tests.

use crate::change::plan_everything;
use crate::{Catalog, ChangePlan, Graph, Permissions, Problems, Replay, SourceText, Statement};

/// A source that most tests read.
pub(crate) const ORDERS: &str = "CREATE SOURCE orders (
  order_id BIGINT NOT NULL, customer_id BIGINT, amount DECIMAL(12,2), country VARCHAR, ordered_at TIMESTAMP NOT NULL,
  tags ARRAY<VARCHAR>, address STRUCT<street VARCHAR, zip INT>, payload VARCHAR,
  WATERMARK FOR ordered_at AS ordered_at - INTERVAL '5 seconds'
) WITH (topic = 'shop.orders', format = 'json');\n";

pub(crate) fn text(sql: &str) -> SourceText {
    SourceText { file: "shop/p.sql".to_owned(), text: sql.to_owned() }
}

pub(crate) fn parse_text(sql: &str) -> Result<Vec<Statement>, Problems> {
    crate::parse(&[text(sql)])
}

pub(crate) fn parsed(sql: &str) -> Vec<Statement> {
    parse_text(sql).unwrap_or_else(|problems| panic!("{problems}\n--- in\n{sql}"))
}

/// Plans the text as pipeline `shop`, with all faults, of the parser or of later checks.
pub(crate) fn planned(catalog: &Catalog, sql: &str) -> Result<ChangePlan, Problems> {
    plan_everything(catalog, "shop", parse_text(sql)?)
}

/// Everything that is wrong with the text as a whole pipeline, as users see it on the day sinks are run.
pub(crate) fn problems_of(sql: &str) -> String {
    match planned(&Catalog::default(), sql) {
        Ok(_) => "no problems".to_owned(),
        Err(problems) => problems.to_string(),
    }
}

/// Applies the text as pipeline `shop`, with every permission.
pub(crate) fn apply(catalog: &mut Catalog, sql: &str) {
    apply_to(catalog, "shop", sql);
}

pub(crate) fn apply_to(catalog: &mut Catalog, pipeline: &str, sql: &str) {
    let plan = plan_everything(catalog, pipeline, parsed(sql)).unwrap_or_else(|problems| panic!("{problems}"));
    let everything = Permissions { replace: true, drop: true };
    if let Some(change) = plan.into_change(everything).expect("everything is allowed") {
        let replay = catalog.replay(&change.to_bytes()).expect("the change was just made");
        assert!(matches!(replay, Replay::Accepted { .. }), "{replay:?}");
    }
}

pub(crate) fn graph_of(sql: &str) -> Graph {
    let mut catalog = Catalog::default();
    apply(&mut catalog, sql);
    crate::compile(&catalog).expect("what was applied compiles")
}

/// Seeds to try: the one from `TAILWATER_SEED`, or a few fixed ones.
pub(crate) fn seeds() -> Vec<u64> {
    match std::env::var("TAILWATER_SEED") {
        Ok(seed) => vec![seed.parse().expect("TAILWATER_SEED is a number")],
        Err(_) => (1..=4).collect(),
    }
}

/// A small generator of numbers (SplitMix64), so that a failing run is a seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).expect("smaller than sides")
    }

    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.roll(all.len())]
    }
}
