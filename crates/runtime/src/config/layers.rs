//! Where configured values come from: the file, environment variables, flags. Later layers win.
//!
//! Invariant: whatever a layer holds is either a known key or a fault; nothing is skipped in silence.
//! Deliberately absent: types. A layer holds what was written; `reader.rs` says whether it fits.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

use super::faults::Fault;
use super::settings::SectionInfo;
use super::{LoadOptions, SECTIONS, suggest};

/// Variables of the environment that are ours, `TAILWATER__SECTION__KEY`.
pub(super) const ENV_PREFIX: &str = "TAILWATER__";

/// The config file that is used without being named.
pub(super) const DEFAULT_FILE: &str = "tailwater.toml";

/// Keys that hold a table of free-form names. The flag tells whether names contain dots, which no variable can.
const TABLES: [(&str, &str, bool); 2] = [("log", "properties", true), ("store", "options", false)];

/// One place values came from.
#[derive(Debug)]
pub(super) struct Layer {
    /// How people call the place: a file name, a variable, a flag.
    place: String,
    values: Dict,
    /// Line of each `section.key` in a file.
    lines: BTreeMap<String, usize>,
    /// What relative paths written here are relative to.
    folder: PathBuf,
}

/// All layers, weakest first.
#[derive(Debug, Default)]
pub(super) struct Layers {
    layers: Vec<Layer>,
    /// What the default paths are relative to.
    default_folder: PathBuf,
    /// A file that could not be read: relations between keys cannot be judged then.
    pub(super) unreadable: bool,
}

impl Layers {
    pub(super) fn collect(options: &LoadOptions, faults: &mut Vec<Fault>) -> Layers {
        let mut layers = Layers { default_folder: options.folder.clone(), ..Layers::default() };
        if let Some(path) = config_file(options) {
            layers.default_folder = folder_of(&path, &options.folder);
            match file_layer(&path, &layers.default_folder) {
                Ok(layer) => layers.layers.push(layer),
                Err(fault) => {
                    layers.unreadable = true;
                    faults.push(fault);
                }
            }
        }
        layers.add_texts(environment(options), &options.folder, faults);
        layers.add_texts(flags(options), &options.folder, faults);
        for layer in &layers.layers {
            layer.check_names(faults);
        }
        layers
    }

    fn add_texts(&mut self, texts: Vec<Text>, folder: &Path, faults: &mut Vec<Fault>) {
        for text in texts {
            match text.into_layer(folder) {
                Ok(layer) => self.layers.push(layer),
                Err(fault) => faults.push(fault),
            }
        }
    }

    pub(super) fn merged(&self) -> Figment {
        self.layers.iter().fold(Figment::new(), Figment::merge)
    }

    /// Where the value in force came from, with the line for a file. None for a default.
    pub(super) fn place_of(&self, key: &str) -> Option<String> {
        self.winner(key).map(|layer| layer.place_of(key))
    }

    /// What a relative path under this key is relative to.
    pub(super) fn folder_for(&self, key: &str) -> &Path {
        self.winner(key).map_or(&self.default_folder, |layer| &layer.folder)
    }

    fn winner(&self, key: &str) -> Option<&Layer> {
        let (section, name) = key.split_once('.')?;
        self.layers.iter().rev().find(|layer| {
            let table = layer.values.get(section).and_then(Value::as_dict);
            table.is_some_and(|table| table.contains_key(name))
        })
    }
}

impl Provider for &Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.place.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

impl Layer {
    fn place_of(&self, key: &str) -> String {
        match self.lines.get(key) {
            Some(line) => format!("{}, line {line}", self.place),
            None => self.place.clone(),
        }
    }

    fn check_names(&self, faults: &mut Vec<Fault>) {
        for (section, value) in &self.values {
            match (known_section(section), value.as_dict()) {
                (Some(info), Some(table)) => self.check_keys(info, table, faults),
                (Some(_), None) => faults.push(
                    Fault::new(section, format!("is a section; write its keys under [{section}]"))
                        .at(Some(self.place_of(section))),
                ),
                (None, table) => faults.push(self.unknown_section(section, table)),
            }
        }
    }

    fn check_keys(&self, info: &SectionInfo, table: &Dict, faults: &mut Vec<Fault>) {
        for key in table.keys().filter(|key| !info.has_key(key)) {
            let full = format!("{}.{key}", info.name);
            let message = suggest::unknown("key of the config", suggest::nearest_key(info.name, key));
            let place = Some(self.place_of(&full));
            faults.push(Fault::new(full, message).at(place));
        }
    }

    fn unknown_section(&self, section: &str, table: Option<&Dict>) -> Fault {
        let message = match table {
            // A key written before the first [section] looks like a section.
            None => suggest::unknown(
                "section of the config",
                suggest::elsewhere(section).or_else(|| suggest::nearest_section(section)),
            ),
            Some(_) => suggest::unknown("section of the config", suggest::nearest_section(section)),
        };
        // Names the key too where there is one, so that one variable reads as it was written.
        let full = match table.and_then(|table| table.keys().next()) {
            Some(key) if self.lines.is_empty() => format!("{section}.{key}"),
            _ => section.to_owned(),
        };
        let place = self.place_of(section);
        Fault::new(full, message).at(Some(place))
    }
}

fn known_section(name: &str) -> Option<&'static SectionInfo> {
    SECTIONS.iter().find(|info| info.name == name)
}

/// The file that was named, or the usual one if it is there.
fn config_file(options: &LoadOptions) -> Option<PathBuf> {
    let usual = || Some(options.folder.join(DEFAULT_FILE)).filter(|path| path.is_file());
    match &options.file {
        Some(named) => Some(options.folder.join(named)),
        None => usual(),
    }
}

fn folder_of(path: &Path, otherwise: &Path) -> PathBuf {
    path.parent().unwrap_or(otherwise).to_owned()
}

fn file_layer(path: &Path, folder: &Path) -> Result<Layer, Fault> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Fault::of_whole(format!(
            "file `{name}` does not exist; name an existing one, or write one with `tailwater init`"
        )),
        _ => Fault::of_whole(format!("file `{name}` is not readable: {error}")),
    })?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| not_toml(path, &text, &error))?;
    Ok(Layer { place: name.to_string(), values: to_dict(&table), lines: key_lines(&text), folder: folder.to_owned() })
}

fn not_toml(path: &Path, text: &str, error: &toml::de::Error) -> Fault {
    let line = line_of(text, error.span().map_or(0, |span| span.start));
    let message = error.message().replace('\n', ", ");
    Fault::of_whole(format!("file `{}` is not TOML: {message}", path.display()))
        .at(Some(format!("{}, line {line}", path.display())))
}

fn to_dict(table: &toml::Table) -> Dict {
    Value::serialize(table).ok().and_then(Value::into_dict).expect("a TOML table has text as keys")
}

/// Lines of sections and keys.
fn key_lines(text: &str) -> BTreeMap<String, usize> {
    let sections = toml::from_str::<BTreeMap<Spanned<String>, Keys>>(text).unwrap_or_default();
    let mut lines = BTreeMap::new();
    for (section, keys) in sections {
        lines.insert(section.get_ref().clone(), line_of(text, section.span().start));
        for key in keys.0 {
            let name = format!("{}.{}", section.get_ref(), key.get_ref());
            lines.insert(name, line_of(text, key.span().start));
        }
    }
    lines
}

/// The keys of a table and where they stand; none for what is no table.
#[derive(Default)]
struct Keys(Vec<Spanned<String>>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
        deserializer.deserialize_any(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut keys = Vec::new();
        while let Some((key, IgnoredAny)) = map.next_entry()? {
            keys.push(key);
        }
        Ok(Keys(keys))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Keys, A::Error> {
        IgnoredAny.visit_seq(seq).map(|_| Keys::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Keys, E> {
        Ok(Keys::default())
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|byte| **byte == b'\n').count()
}

/// One value written as text: a variable or a flag.
struct Text {
    place: String,
    path: Vec<String>,
    value: String,
    /// How the fault for a path without a key tells what to write.
    pattern: &'static str,
}

impl Text {
    fn into_layer(self, folder: &Path) -> Result<Layer, Fault> {
        let [section, key, rest @ ..] = self.path.as_slice() else {
            let message = format!("names no key; write {}", self.pattern);
            return Err(Fault::new(self.path.join("."), message).at(Some(self.place)));
        };
        let value = Value::from(self.value);
        let (key, value) = match rest {
            [] => (key.clone(), value),
            rest if is_table(section, key) => (key.clone(), Value::from(Dict::from([(rest.join("."), value)]))),
            // Not a table: keep the whole name, so that it is reported as unknown.
            rest => (format!("{key}.{}", rest.join(".")), value),
        };
        let values = Dict::from([(section.clone(), Value::from(Dict::from([(key, value)])))]);
        Ok(Layer { place: self.place, values, lines: BTreeMap::new(), folder: folder.to_owned() })
    }
}

pub(super) fn is_table(section: &str, key: &str) -> bool {
    TABLES.iter().any(|(s, k, _)| (*s, *k) == (section, key))
}

fn environment(options: &LoadOptions) -> Vec<Text> {
    let ours = options.env.iter().filter(|(name, _)| name.starts_with(ENV_PREFIX));
    let sorted: BTreeMap<&String, &String> = ours.map(|(name, value)| (name, value)).collect();
    sorted
        .into_iter()
        .map(|(name, value)| Text {
            place: format!("environment variable {name}"),
            path: variable_path(name),
            value: value.clone(),
            pattern: "TAILWATER__SECTION__KEY",
        })
        .collect()
}

fn variable_path(name: &str) -> Vec<String> {
    let name = name.strip_prefix(ENV_PREFIX).unwrap_or(name).to_lowercase();
    let mut path: Vec<String> = name.split("__").map(str::to_owned).collect();
    let dotted = |(section, key, dots): &(&str, &str, bool)| {
        *dots && path.first().is_some_and(|s| s == section) && path.get(1).is_some_and(|k| k == key)
    };
    if TABLES.iter().any(dotted) {
        path.iter_mut().skip(2).for_each(|part| *part = part.replace('_', "."));
    }
    path
}

fn flags(options: &LoadOptions) -> Vec<Text> {
    options
        .overrides
        .iter()
        .map(|flag| Text {
            place: format!("flag {}", flag.flag),
            path: flag.key.split('.').map(str::to_owned).collect(),
            value: flag.value.clone(),
            pattern: "section.key=value",
        })
        .collect()
}
