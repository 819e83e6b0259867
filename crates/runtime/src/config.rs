//! How a process runs: `tailwater.toml`, the environment and flags, merged into one checked [`Config`].
//!
//! Defaults < `tailwater.toml` < `TAILWATER__SECTION__KEY` < flags.
//! Invariant: a `Config` that was loaded has no unknown key, no value of a wrong type and no broken relation; otherwise
//! every fault is reported at once, with its place.
//! This is the only module of the project that reads the environment.
//! Deliberately absent: what a pipeline is. No global either: the config is passed down by value.

mod faults;
mod layers;
mod properties;
mod reader;
mod reference;
mod sections;
mod settings;
mod suggest;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use faults::{ConfigFaults, Fault};
use layers::Layers;
pub use properties::{MASK, Properties, is_secret};
use reader::Reader;
pub use sections::{
    AnalysisConfig, HttpConfig, IngestionConfig, LogConfig, LogFormat, LogKind, StorageConfig, StoreConfig,
    TelemetryConfig, TransformationConfig,
};
use settings::{Section, SectionInfo};

/// Everything that can be set about a process. One file serves all services; each takes its own section.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub log: LogConfig,
    pub store: StoreConfig,
    pub http: HttpConfig,
    pub ingestion: IngestionConfig,
    pub transformation: TransformationConfig,
    pub storage: StorageConfig,
    pub analysis: AnalysisConfig,
    pub telemetry: TelemetryConfig,
}

/// All sections, in the order of the reference file.
const SECTIONS: [SectionInfo; 8] = [
    LogConfig::INFO,
    StoreConfig::INFO,
    HttpConfig::INFO,
    IngestionConfig::INFO,
    TransformationConfig::INFO,
    StorageConfig::INFO,
    AnalysisConfig::INFO,
    TelemetryConfig::INFO,
];

/// Where to take a config from.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// The file the user named. Without one, `tailwater.toml` in `folder` is used if it exists.
    pub file: Option<PathBuf>,
    /// The working folder: relative `file`s, and relative paths in variables and flags, start here.
    pub folder: PathBuf,
    /// Environment variables; those that do not start with `TAILWATER__` are ignored.
    pub env: Vec<(String, String)>,
    /// Flags, in the order given; later ones win.
    pub overrides: Vec<Override>,
}

/// One key set by a flag.
#[derive(Clone, PartialEq, Eq)]
pub struct Override {
    /// The flag as the user wrote it, for naming the place of a fault.
    pub flag: String,
    /// `section.key`, or `section.key.name` for the names in `log.properties` and `store.options`.
    pub key: String,
    pub value: String,
}

/// The text of a `--set` flag has no `=`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected `section.key=value`, for instance `storage.flush_age=5s`, found no `=`")]
pub struct NoEqualsSign;

impl LoadOptions {
    /// The environment and working folder of this process.
    pub fn from_process() -> LoadOptions {
        let ours = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.to_str()?.to_owned();
            let ours = name.starts_with(layers::ENV_PREFIX);
            ours.then(|| (name, value.to_string_lossy().into_owned()))
        });
        LoadOptions {
            file: None,
            folder: std::env::current_dir().unwrap_or_default(),
            env: ours.collect(),
            overrides: Vec::new(),
        }
    }
}

impl Override {
    pub fn new(flag: impl Into<String>, key: impl Into<String>, value: impl Into<String>) -> Override {
        Override { flag: flag.into(), key: key.into(), value: value.into() }
    }
}

impl FromStr for Override {
    type Err = NoEqualsSign;

    /// The text of a `--set section.key=value` flag.
    fn from_str(text: &str) -> Result<Override, NoEqualsSign> {
        let (key, value) = text.split_once('=').ok_or(NoEqualsSign)?;
        Ok(Override::new("--set", key.trim(), value.trim()))
    }
}

impl fmt::Debug for Override {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if is_secret(&self.key) { MASK } else { &self.value };
        write!(out, "{} {}={value}", self.flag, self.key)
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: BTreeSet<&String> = self.env.iter().map(|(name, _)| name).collect();
        out.debug_struct("LoadOptions")
            .field("file", &self.file)
            .field("folder", &self.folder)
            .field("env", &names)
            .field("overrides", &self.overrides)
            .finish()
    }
}

impl Config {
    /// Merges all layers and checks the result.
    ///
    /// **Errors**: every fault there is, sorted by key. Exit with code 64.
    pub fn load(options: LoadOptions) -> Result<Config, ConfigFaults> {
        let mut faults = Vec::new();
        let layers = Layers::collect(&options, &mut faults);
        let mut reader = Reader::new(&layers);
        let config = Config::read(&mut reader);
        faults.extend(reader.into_faults());
        if !layers.unreadable {
            let unusable = reader::keys_of(&faults);
            let broken = validate::faults(&config, &unusable);
            faults.extend(broken.into_iter().map(|fault| {
                let place = layers.place_of(fault.key());
                fault.at(place)
            }));
        }
        if !faults.is_empty() {
            return Err(ConfigFaults::new(faults));
        }
        Ok(config.with_absolute_paths(&layers))
    }

    fn read(reader: &mut Reader<'_>) -> Config {
        Config {
            log: LogConfig::read(reader),
            store: StoreConfig::read(reader),
            http: HttpConfig::read(reader),
            ingestion: IngestionConfig::read(reader),
            transformation: TransformationConfig::read(reader),
            storage: StorageConfig::read(reader),
            analysis: AnalysisConfig::read(reader),
            telemetry: TelemetryConfig::read(reader),
        }
    }

    fn with_absolute_paths(mut self, layers: &Layers) -> Config {
        self.log.path = absolute(layers.folder_for("log.path"), &self.log.path);
        if !self.store.url.contains("://") {
            let folder = layers.folder_for("store.url");
            let path = absolute(folder, Path::new(&self.store.url));
            self.store.url = path.to_string_lossy().into_owned();
        }
        self
    }

    /// Checks all relations between values.
    ///
    /// **Errors**: every fault there is, sorted by key, without places, which only `load` knows.
    pub fn validate(&self) -> Result<(), ConfigFaults> {
        match validate::faults(self, &BTreeSet::new()) {
            faults if faults.is_empty() => Ok(()),
            faults => Err(ConfigFaults::new(faults)),
        }
    }

    /// What works, but is probably not meant; to be logged at the start.
    pub fn warnings(&self) -> Vec<String> {
        validate::warnings(self)
    }

    /// The config in force as TOML, with secrets masked; to be logged and printed.
    pub fn to_toml_masked(&self) -> String {
        reference::masked_toml(self)
    }

    /// A config file with every key, its default and the reason for it.
    pub fn reference_toml() -> String {
        reference::reference_toml()
    }
}

/// Whether the user asked for no colours, see <https://no-color.org>.
pub fn colour_refused() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// The path without `.` parts, starting at the root. Where the working folder is gone it stays as it was written.
fn absolute(folder: &Path, path: &Path) -> PathBuf {
    let joined = folder.join(path);
    std::path::absolute(&joined).unwrap_or(joined)
}
