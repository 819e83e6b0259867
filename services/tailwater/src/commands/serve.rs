//! `tailwater serve SERVICE`: one service by itself; what the binaries under `services/` do too.

use runtime::config::Config;

use crate::{arguments::Service, commands::Failure};

pub(crate) async fn run(config: Config, service: Service) -> Result<(), Failure> {
    match service {
        Service::Ingestion => ingestion::serve(config).await,
        Service::Transformation => transformation::serve(config).await,
        Service::Storage => storage::serve(config).await,
        Service::Analysis => analysis::serve(config).await,
    }
    .map_err(Failure::from)
}
