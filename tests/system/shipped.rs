//! What ships beside the programs (image, compose file, dashboard, alerts) says only what the programs know.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::{http, repository};

use crate::{
    command_line::{Up, text},
    deployment::START_LIMIT,
};

/// Metrics of things that do not happen in the few seconds of this test.
const NOT_SEEN_HERE: [&str; 1] = ["tailwater_transformation_rows_rejected_total"];

fn read(path: &str) -> Result<String> {
    fs::read_to_string(repository(path)).with_context(|| path.to_owned())
}

#[test]
fn every_variable_in_the_compose_file_is_one_the_config_knows() -> Result<()> {
    let text = read("docker-compose.yml")?;
    let mut variables = Vec::new();
    for line in text.lines() {
        let Some(start) = line.find("TAILWATER__") else { continue };
        let pair = line[start..].trim().trim_end_matches('"');
        if let Some((name, value)) = pair.split_once([':', '=']) {
            variables.push((name.trim().to_owned(), default_of(value.trim().trim_matches('"')).to_owned()));
        }
    }
    assert!(variables.len() >= 4, "the compose file configures the services");
    let options = runtime::config::LoadOptions { env: variables, ..runtime::config::LoadOptions::default() };
    runtime::config::Config::load(options).map(|_| ()).map_err(anyhow::Error::from)
}

/// What compose makes of `${NAME:-default}` where nothing is set.
fn default_of(value: &str) -> &str {
    let inside = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    inside.and_then(|inside| inside.split_once(":-")).map_or(value, |(_, default)| default)
}

#[test]
fn every_file_the_compose_file_mounts_is_there() -> Result<()> {
    let compose = read("docker-compose.yml")?;
    let mounts = compose.lines().filter_map(|line| line.trim().strip_prefix("- ./")?.split(':').next());
    let mounts: Vec<&str> = mounts.collect();
    assert!(mounts.len() >= 5, "{mounts:?}");
    for mount in mounts {
        assert!(repository(mount).exists(), "`{mount}` is mounted and not there");
    }
    Ok(())
}

#[test]
fn the_image_is_built_with_a_profile_and_a_program_that_exist() -> Result<()> {
    let dockerfile = read("Dockerfile")?.replace("\\\n", " ");
    let build = dockerfile.lines().find_map(|line| line.split("cargo build").nth(1)).context("the image runs cargo")?;
    let words: Vec<&str> = build.split("&&").next().unwrap_or_default().split_whitespace().collect();
    let after = |flag: &str| words.iter().position(|word| *word == flag).and_then(|place| words.get(place + 1));
    let profile = after("--profile").context("the image names a profile")?;
    let package = after("-p").context("the image names a package")?;
    ensure!(words.contains(&"--locked"), "the image takes the versions that were tested");
    ensure!(*profile == "dist", "images are built for speed, with the profile `dist`");
    ensure!(read("Cargo.toml")?.contains(&format!("[profile.{profile}]")), "there is no profile `{profile}`");
    let manifest = read(&format!("services/{package}/Cargo.toml"))?;
    ensure!(manifest.contains(&format!("name = \"{package}\"")), "`services/{package}` is another package");
    ensure!(!manifest.contains("[[bin]]"), "the program is not named like its package any more: see the Dockerfile");
    ensure!(dockerfile.contains(&format!("cp target/{profile}/{package} ")), "cargo builds target/{profile}/{package}");
    let copied =
        dockerfile.lines().filter(|line| !line.contains("--from")).filter_map(|line| line.strip_prefix("COPY "));
    for source in copied.filter_map(|line| line.split_whitespace().next()) {
        ensure!(repository(source).exists(), "`{source}` is copied and not there");
    }
    Ok(())
}

#[test]
fn every_metric_of_the_dashboard_and_the_alerts_is_shown_and_described() -> Result<()> {
    let up = busy()?;
    let metrics = http::get(&format!("{}/metrics", up.url))?.1;
    let shown = words_after(&metrics, "# TYPE ");
    let described = words_after(&metrics, "# HELP ");
    let missing: Vec<&String> = shown.difference(&described).filter(|name| name.starts_with("tailwater_")).collect();
    assert!(missing.is_empty(), "shown and not described: {missing:?}");
    for file in ["deploy/grafana/dashboards/tailwater.json", "deploy/alerts.yml"] {
        let wanted = metrics_in(&read(file)?);
        assert!(wanted.len() >= 6, "{file} asks for metrics: {wanted:?}");
        for name in wanted {
            let family = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
            let is_shown = shown.contains(&name) || family.is_some_and(|family| shown.contains(family));
            assert!(is_shown || NOT_SEEN_HERE.contains(&name.as_str()), "{file}: no metric `{name}` in\n{metrics}");
        }
    }
    Ok(())
}

/// A Tailwater that has done everything once: rows read, rejected, transformed, stored, asked for and accounted for.
fn busy() -> Result<Up> {
    let up = Up::start()?;
    for (source, file) in [
        ("shop.lines", "data/shop/lines.ndjson"),
        ("shop.lines", "data/shop/broken.ndjson"),
        ("shop.orders", "data/shop/orders.ndjson"),
    ] {
        let sent = up.tailwater(&["ingest", source, file])?;
        ensure!(sent.status.success(), "{}", text(&sent));
    }
    let asked = up.tailwater(&["sql", "-c", "SELECT count(*) FROM shop.lines"])?;
    ensure!(asked.status.success(), "{}", text(&asked));
    let ledger = "tailwater_analysis_ledger_rows{name=\"shop.orders\",place=\"stored\"} 330";
    let started = std::time::Instant::now();
    loop {
        let metrics = http::get(&format!("{}/metrics", up.url))?.1;
        if metrics.contains(ledger) {
            return Ok(up);
        }
        ensure!(started.elapsed() < START_LIMIT, "no `{ledger}` in\n{metrics}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

fn words_after(text: &str, begin: &str) -> BTreeSet<String> {
    let words = text.lines().filter_map(|line| line.strip_prefix(begin)?.split(' ').next());
    words.map(str::to_owned).collect()
}

fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_part = |character: char| character.is_ascii_lowercase() || character == '_' || character.is_ascii_digit();
    let words = text.split(|character| !is_part(character));
    words.filter(|word| word.starts_with("tailwater_")).map(str::to_owned).collect()
}

#[test]
fn the_dashboard_is_one_that_grafana_finds() -> Result<()> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboards/tailwater.json")?)?;
    let sources = read("deploy/grafana/datasources/tailwater.yml")?;
    let panels = dashboard["panels"].as_array().context("a dashboard has panels")?;
    let mut titles = BTreeSet::new();
    for panel in panels {
        ensure!(titles.insert(panel["title"].as_str().context("a panel has a title")?), "two panels: {panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let source = target["datasource"]["uid"].as_str().context("a target has a source")?;
            ensure!(sources.contains(&format!("uid: {source}\n")), "no data source has the uid `{source}`");
            let query = target["expr"].as_str().context("a target has a query")?;
            ensure!(query.matches('(').count() == query.matches(')').count(), "{query}");
        }
    }
    Ok(())
}
