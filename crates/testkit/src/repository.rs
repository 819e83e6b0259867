//! Where the repository lies: the one that `cargo` runs in, which need not be the one that built the test.

use std::path::{Path, PathBuf};

/// A file or folder of the repository, by its path from the root.
///
/// # Panics
/// Outside `cargo test` and `cargo run`, which say where they run.
pub fn repository(path: impl AsRef<Path>) -> PathBuf {
    let member = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo"));
    let root = member.ancestors().find(|folder| folder.join("Cargo.lock").is_file());
    root.unwrap_or(Path::new("/")).join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_repository_is_found_by_its_path_from_the_root() {
        assert!(repository("crates/testkit/src/repository.rs").is_file());
    }
}
