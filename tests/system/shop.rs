//! The shop pipeline through four separate processes on real Kafka and a real S3 server.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Result;
use testkit::{python, repository};

use crate::deployment::{Deployment, account, settled};

const FILES: [(&str, &str); 6] = [
    ("customers", "customers.csv"),
    ("products", "products.csv"),
    ("orders", "orders.ndjson"),
    ("lines", "lines.ndjson"),
    ("payments", "payments.ndjson"),
    ("lines", "broken.ndjson"),
];

#[test]
fn the_shop_gives_the_same_answers_through_four_processes_and_to_an_independent_reader() -> Result<()> {
    let Some(mut deployment) = Deployment::prepare()? else { return Ok(()) };
    deployment.start_all()?;
    let folder = repository("pipelines/shop").display().to_string();
    let dry_run = deployment.tailwater("", &["apply", &folder, "--dry-run"])?;
    let plan = deployment.tailwater("", &["apply", &folder])?;
    assert_eq!(dry_run, plan, "the dry run shows what then happens");
    assert_eq!(
        deployment.tailwater("", &["apply", &folder])?.trim().lines().count(),
        1,
        "again there is nothing to do"
    );
    deployment.wait_until_ready()?;
    ingest_all(&deployment)?;

    let ledger = deployment.wait_for_ledger(Duration::from_secs(90), |ledger| {
        settled(ledger)
            && account(ledger, "shop.lines")["read"] == 3004
            && account(ledger, "shop.payments")["read"] == 272
    })?;
    let stored = |name: &str| account(&ledger, name)["stored"].as_u64().unwrap_or(0);
    assert_eq!((stored("shop.orders"), stored("shop.lines"), stored("shop.customers")), (330, 3001, 126));
    assert_eq!(account(&ledger, "shop.lines")["rejected"], 3);
    assert_eq!(stored("shop.money_events"), 3001 + 272, "both branches of the union");

    answers_equal_the_expected_files(&deployment)?;
    an_independent_reader_sees_the_same(&deployment, stored("shop.lines"))
}

fn ingest_all(deployment: &Deployment) -> Result<()> {
    for (source, file) in FILES {
        let path = repository("data/shop").join(file).display().to_string();
        deployment.tailwater("ingestion", &["ingest", &format!("shop.{source}"), &path])?;
    }
    Ok(())
}

fn answers_equal_the_expected_files(deployment: &Deployment) -> Result<()> {
    let mut questions = 0;
    for entry in fs::read_dir(repository("pipelines/shop/queries"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            let answer = deployment.tailwater("analysis", &["sql", "-f", &path.display().to_string(), "-o", "csv"])?;
            let expected = fs::read_to_string(path.with_extension("expected"))?;
            assert_eq!(answer.trim(), expected.trim(), "{}", path.display());
            questions += 1;
        }
    }
    assert!(questions >= 5, "there are questions to answer");
    Ok(())
}

fn an_independent_reader_sees_the_same(deployment: &Deployment, lines: u64) -> Result<()> {
    let names = ["orders", "lines", "customers", "products", "payments", "money_events", "line_amounts"];
    let mut tables = BTreeMap::new();
    for name in names {
        let described = deployment
            .tailwater("analysis", &["sql", "-o", "csv", "-c", &format!("SELECT count(*) FROM shop.{name}")])?;
        let rows: u64 = described.lines().nth(1).unwrap_or_default().parse()?;
        tables.insert(name.to_owned(), (format!("{}/shop/{name}/1", deployment.store.url()), rows));
    }
    let addresses = tables.iter().map(|(name, (address, _))| (name.clone(), address.clone())).collect();
    let Some(facts) = python::read_delta(&addresses, &deployment.store.options())? else { return Ok(()) };
    for (name, (_, rows)) in &tables {
        assert_eq!(facts[name].rows, *rows, "rows of {name}, ours against deltalake's and DuckDB's");
    }
    assert_eq!(facts["lines"].rows, lines);
    let sum = deployment
        .tailwater("analysis", &["sql", "-o", "csv", "-c", "SELECT sum(quantity_ordered) FROM shop.lines"])?;
    assert_eq!(facts["lines"].sums["quantity_ordered"], sum.lines().nth(1).unwrap_or_default());
    Ok(())
}
