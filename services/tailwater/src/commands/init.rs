//! `tailwater init`: a project folder that runs as it is, to be changed from there.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use runtime::config::Config;

use crate::{commands::Failure, output, shop};

pub(crate) fn run(folder: &Path) -> Result<(), Failure> {
    let files = project(folder);
    refuse_to_overwrite(&files)?;
    for (path, text) in &files {
        write(path, text)?;
    }
    output::note(format!(
        "made {folder}\n\nnext:\n  cd {folder}\n  tailwater up                                           # all four services, in one process\n  \
         tailwater ingest shop.orders data/shop/orders.ndjson   # in another terminal\n  \
         tailwater sql -c 'SELECT status, count(*) FROM shop.orders GROUP BY status'",
        folder = folder.display()
    ));
    Ok(())
}

/// Every file of a project. The config comes last: where it is, everything is.
fn project(folder: &Path) -> Vec<(PathBuf, String)> {
    let shipped = [
        ("pipelines/shop", shop::PIPELINE),
        ("pipelines/shop/queries", shop::QUERIES),
        ("data/shop", shop::DATA),
        ("data/shop", shop::LEGAL),
    ];
    let mut files = Vec::new();
    for (part, shipped) in shipped {
        let part = folder.join(part);
        files.extend(shipped.iter().map(|file| (part.join(file.name), file.text.to_owned())));
    }
    files.push((folder.join("tailwater.toml"), Config::reference_toml()));
    files
}

fn refuse_to_overwrite(files: &[(PathBuf, String)]) -> Result<(), Failure> {
    // A link to nowhere is in the way as well.
    let there = files.iter().filter(|(path, _)| path.symlink_metadata().is_ok());
    let there: Vec<String> = there.map(|(path, _)| format!("`{}`", path.display())).collect();
    if there.is_empty() {
        return Ok(());
    }
    let there = there.join(", ");
    Err(anyhow!("nothing was made: {there} would be overwritten; move them away, or choose another folder").into())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let shown = || format!("file `{}`", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("folder `{}`", folder.display()))?;
    }
    // Never over a file that has come meanwhile.
    let mut file = File::create_new(path).with_context(shown)?;
    Ok(file.write_all(text.as_bytes()).with_context(shown)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_is_named_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let orders = folder.path().join("data/shop/orders.ndjson");
        write(&orders, "mine").unwrap();
        let refused = run(folder.path()).unwrap_err().error.to_string();
        assert!(refused.contains("orders.ndjson") && !refused.contains("tailwater.toml"), "{refused}");
        assert_eq!(std::fs::read_to_string(&orders).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is there");
        std::fs::remove_file(orders).unwrap();
        run(folder.path()).unwrap();
        assert!(run(folder.path()).unwrap_err().error.to_string().contains("tailwater.toml"));
    }
}
