//! The full config file with every key, its default and its explanation, and the masked one that is logged.
//!
//! Invariant: the reference parses to the defaults, so a file made from it changes nothing.

use std::fmt::Write;

use super::settings::Key;
use super::{Config, SECTIONS};

const HEAD: &str = "\
# How this Tailwater process runs. Every key is here with its default; delete what you do not change.
# Over this file go environment variables (TAILWATER__STORAGE__FLUSH_AGE=5s), and over those flags.
# Sizes: \"64MiB\" (1024²) or \"900kB\" (1000). Times: \"250ms\", \"5s\", \"7d\". Relative paths start at this file's folder.
";

pub(super) fn reference_toml() -> String {
    let defaults = toml::Table::try_from(Config::default()).expect("the config is a TOML table");
    let mut text = HEAD.to_owned();
    for section in SECTIONS {
        text.push('\n');
        section.about.iter().for_each(|line| comment(&mut text, line));
        writeln!(text, "[{}]", section.name).expect("text grows");
        let values = defaults[section.name].as_table().expect("a section is a table");
        for key in section.keys {
            setting(&mut text, key, values.get(key.name));
        }
    }
    text
}

fn setting(text: &mut String, key: &Key, default: Option<&toml::Value>) {
    key.docs.iter().for_each(|line| comment(text, line));
    match default {
        Some(value) => writeln!(text, "{} = {value}", key.name),
        None => writeln!(text, "# {} = {}", key.name, key.example.unwrap_or("\"\"")),
    }
    .expect("text grows");
}

fn comment(text: &mut String, line: &str) {
    writeln!(text, "# {}", line.trim()).expect("text grows");
}

pub(super) fn masked_toml(config: &Config) -> String {
    let mut shown = config.clone();
    shown.log.properties = shown.log.properties.masked();
    shown.store.options = shown.store.options.masked();
    toml::to_string(&shown).expect("the config is a TOML table")
}
