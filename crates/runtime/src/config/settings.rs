//! The macro that makes one section of the config from one description, and what it records about each key.
//!
//! Invariant: a key's name, type, default and explanation are written once; the struct, the reader, the reference file
//! and the "did you mean" all come from that one place, so they cannot disagree.
//! Deliberately absent: relations between keys (see `validate.rs`).

use super::reader::Reader;

/// What is known about one key without reading any config.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// Lines of explanation, as written in the doc comment.
    pub(super) docs: &'static [&'static str],
    /// A TOML value to show for a key that has no default.
    pub(super) example: Option<&'static str>,
}

/// What is known about one section.
#[derive(Clone, Copy, Debug)]
pub(super) struct SectionInfo {
    pub(super) name: &'static str,
    pub(super) about: &'static [&'static str],
    pub(super) keys: &'static [Key],
}

impl SectionInfo {
    pub(super) fn has_key(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name == name)
    }
}

/// One table of `tailwater.toml`.
pub(super) trait Section: Default {
    const INFO: SectionInfo;

    /// Takes each key from what was configured, or its default. Faults go to the reader.
    fn read(reader: &mut Reader<'_>) -> Self;
}

/// Declares a section: `pub struct Name["section"] { /// why … pub key: Type = default, }`.
/// A key without a default value names an example instead: `= None; example "\"10GiB\""`.
macro_rules! settings {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident[$section:literal] {
            $(
                $(#[doc = $doc:literal])*
                pub $key:ident: $type:ty = $default:expr $(; example $example:literal)?,
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $key: $type, )*
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $( $key: $default, )* }
            }
        }

        impl $crate::config::settings::Section for $name {
            const INFO: $crate::config::settings::SectionInfo = $crate::config::settings::SectionInfo {
                name: $section,
                about: &[$($about),*],
                keys: &[$(
                    $crate::config::settings::Key {
                        name: stringify!($key),
                        docs: &[$($doc),*],
                        example: $crate::config::settings::settings!(@example $($example)?),
                    },
                )*],
            };

            fn read(reader: &mut $crate::config::reader::Reader<'_>) -> $name {
                let defaults = $name::default();
                $name { $( $key: reader.value($section, stringify!($key), defaults.$key), )* }
            }
        }
    };
    (@example) => { None };
    (@example $example:literal) => { Some($example) };
}

pub(super) use settings;
