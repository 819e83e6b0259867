# syntax=docker/dockerfile:1.7
# One image for every service: `tailwater serve <service>`, or `tailwater up` for all four in one process.

FROM rust:1.95.0-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Registry and build results stay in the builder's cache, so a change of our code does not build the dependencies anew.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist -p tailwater \
 && cp target/dist/tailwater /tailwater

FROM debian:12.12-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin tailwater \
 && install -d -o tailwater /var/lib/tailwater
COPY --from=build /tailwater /usr/local/bin/tailwater
COPY LICENSE /usr/share/doc/tailwater/LICENSE
COPY data/shop/NOTICE /usr/share/doc/tailwater/NOTICE
COPY pipelines /usr/share/tailwater/pipelines
USER 10001
WORKDIR /var/lib/tailwater
# Inside a container the loopback address would reach nobody.
ENV TAILWATER__HTTP__LISTEN=0.0.0.0:8080 \
    TAILWATER__INGESTION__LISTEN=0.0.0.0:8081 \
    TAILWATER__TRANSFORMATION__LISTEN=0.0.0.0:8082 \
    TAILWATER__STORAGE__LISTEN=0.0.0.0:8083 \
    TAILWATER__ANALYSIS__LISTEN=0.0.0.0:8084 \
    TAILWATER__TELEMETRY__LOGS=json
EXPOSE 8080 8081 8082 8083 8084
STOPSIGNAL SIGTERM
ENTRYPOINT ["tailwater"]
CMD ["up"]
