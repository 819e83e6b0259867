//! The shop quick start, inside the binary: its pipeline, its data, its questions and the answers they must get.
//!
//! The files are those under `pipelines/shop` and `data/shop`; nothing here is written by hand twice.

/// A file and its text.
pub(crate) struct File {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

macro_rules! files {
    ($folder:literal: $($name:literal),+ $(,)?) => {
        &[$(File { name: $name, text: include_str!(concat!("../../../", $folder, "/", $name)) }),+]
    };
}

/// The pipeline's definitions.
pub(crate) const PIPELINE: &[File] = files!("pipelines/shop": "sources.sql", "views.sql");

/// The data, one file a source; the last one holds rows that are wrong on purpose.
pub(crate) const DATA: &[File] = files!("data/shop":
    "customers.csv", "products.csv", "orders.ndjson", "lines.ndjson", "payments.ndjson", "broken.ndjson",
);

/// The data's licence, which goes wherever the data goes.
pub(crate) const LEGAL: &[File] = files!("data/shop": "LICENSE", "NOTICE");

/// What a shop owner would ask; the first line of each says it in words.
pub(crate) const QUERIES: &[File] = files!("pipelines/shop/queries":
    "ledger.sql", "top_countries.sql", "revenue_per_month.sql", "oversold_products.sql", "open_accounts.sql",
    "large_lines.sql", "late_orders.sql", "valued_customers.sql", "orphan_lines.sql", "rejected_lines.sql",
);

/// The answers to [`QUERIES`], in the same order, as CSV.
pub(crate) const ANSWERS: &[File] = files!("pipelines/shop/queries":
    "ledger.expected", "top_countries.expected", "revenue_per_month.expected", "oversold_products.expected",
    "open_accounts.expected", "large_lines.expected", "late_orders.expected", "valued_customers.expected",
    "orphan_lines.expected", "rejected_lines.expected",
);
