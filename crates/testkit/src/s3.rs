//! A real S3 server: the Versity gateway over a folder, whose conditional puts are atomic and outlive a kill.
//!
//! Absent on purpose: a client. Tests hand [`VersityGateway::options`] to the crate they test.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::child::GuardedChild;
use crate::peers::{self, Missing};
use crate::ports::free_port;
use crate::{http, peers::run};

/// The first version whose conditional puts are atomic.
pub const VERSION: &str = "1.8.0";

const BUCKET: &str = "lake";
const ACCESS_KEY: &str = "testkey1";
const SECRET_KEY: &str = "testsecret1";
const REGION: &str = "us-east-1";
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running (or stopped) gateway with one bucket.
pub struct VersityGateway {
    binary: PathBuf,
    port: u16,
    // Declared before the folder: the process ends before its files are removed.
    server: Option<GuardedChild>,
    folder: TempDir,
}

impl VersityGateway {
    /// Starts a gateway of its own with an empty bucket. `None`, loudly, where Go is missing.
    pub fn start() -> Result<Option<VersityGateway>> {
        let Some(binary) = peers::present("the Versity S3 gateway", binary())? else {
            return Ok(None);
        };
        let folder = tempfile::Builder::new().prefix("tailwater-s3-").tempdir()?;
        let mut gateway = VersityGateway { binary, port: free_port()?, server: None, folder };
        fs::create_dir_all(gateway.objects().join(BUCKET))?;
        gateway.launch()?;
        Ok(Some(gateway))
    }

    /// The bucket, as a store address. Tests that share a gateway add a prefix of their own.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}")
    }

    /// The address of the server itself.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where a proxy in front of the server passes requests on to.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// What an object store client has to be told to reach [`VersityGateway::url`].
    pub fn options(&self) -> BTreeMap<String, String> {
        self.options_at(&self.endpoint())
    }

    /// As [`VersityGateway::options`], by way of a proxy.
    pub fn options_at(&self, endpoint: &str) -> BTreeMap<String, String> {
        [
            ("aws_endpoint", endpoint),
            ("aws_access_key_id", ACCESS_KEY),
            ("aws_secret_access_key", SECRET_KEY),
            ("aws_region", REGION),
            ("aws_allow_http", "true"),
            ("aws_conditional_put", "etag"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }

    /// Stops the server in good order (SIGTERM). The objects stay.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        server.signal("TERM")?;
        server.wait(STOP_LIMIT).context("stop the S3 gateway")?;
        Ok(())
    }

    /// Kills the server at once (SIGKILL). The objects stay.
    pub fn kill(&mut self) -> Result<()> {
        match self.server.take() {
            Some(mut server) => server.kill(),
            None => Ok(()),
        }
    }

    /// Starts the server again on the same port and objects, after a clean stop if it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command
            .args(["--access", ACCESS_KEY, "--secret", SECRET_KEY, "--region", REGION])
            .args(["--port", &format!("127.0.0.1:{}", self.port), "--health", "/health", "--quiet", "posix"])
            .arg(self.objects());
        let log = self.folder.path().join("gateway.log");
        let mut server = GuardedChild::start(&mut command, &log, Some(self.folder.path()))?;
        let health = format!("{}/health", self.endpoint());
        server.wait_until(&format!("S3 gateway at {}", self.endpoint()), START_LIMIT, || {
            http::get(&health).is_ok_and(|(status, _)| status == 200)
        })?;
        self.server = Some(server);
        Ok(())
    }

    fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }
}

fn binary() -> Result<PathBuf, Missing> {
    let module = format!("github.com/versity/versitygw/cmd/versitygw@v{VERSION}");
    peers::need("go", "version", "Go, 1.26 or later")?;
    let folder = peers::once(&format!("versitygw-{VERSION}"), &module, |folder| {
        run(Command::new("go").args(["install", &module]).env("GOBIN", folder))?;
        Ok(())
    })?;
    Ok(folder.join("versitygw"))
}
