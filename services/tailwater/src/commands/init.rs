//! `tailwater init`: a project folder that runs as it is, to be changed from there.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use runtime::config::Config;

use crate::{
    commands::Failure,
    output,
    shop::{self, File},
};

pub(crate) fn run(folder: &Path) -> Result<(), Failure> {
    if folder.join("tailwater.toml").exists() {
        return Err(anyhow!("`{}` has a tailwater.toml already; choose another folder", folder.display()).into());
    }
    write(folder, &[("tailwater.toml", &Config::reference_toml())])?;
    write_files(&folder.join("pipelines/shop"), shop::PIPELINE)?;
    write_files(&folder.join("pipelines/shop/queries"), shop::QUERIES)?;
    write_files(&folder.join("data/shop"), shop::DATA)?;
    write_files(&folder.join("data/shop"), shop::LEGAL)?;
    output::note(format!(
        "made {folder}\n\nnext:\n  cd {folder}\n  tailwater up                                           # all four services, in one process\n  \
         tailwater ingest shop.orders data/shop/orders.ndjson   # in another terminal\n  \
         tailwater sql -c 'SELECT status, count(*) FROM shop.orders GROUP BY status'",
        folder = folder.display()
    ));
    Ok(())
}

fn write_files(folder: &Path, files: &[File]) -> Result<(), Failure> {
    let files: Vec<_> = files.iter().map(|file| (file.name, file.text)).collect();
    write(folder, &files)
}

fn write(folder: &Path, files: &[(&str, &str)]) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).with_context(|| format!("folder `{}`", folder.display()))?;
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("file `{}`", path.display()))?;
    }
    Ok(())
}
