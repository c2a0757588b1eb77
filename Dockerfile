# Build: docker build -t ghtap .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY benches ./benches
RUN cargo build --release --locked --bin ghtap \
 && strip -o /ghtap target/release/ghtap

FROM debian:bookworm-slim
# The roots that upstream is verified with: the newest there are, so no version.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 10001 ghtap \
 && useradd --system --uid 10001 --gid ghtap --home-dir /var/lib/ghtap --shell /usr/sbin/nologin ghtap \
 && install -d -o ghtap -g ghtap -m 0700 /var/lib/ghtap \
 && install -d -o ghtap -g ghtap -m 0755 /certs
COPY --from=build /ghtap /usr/local/bin/ghtap
USER 10001:10001
ENV GHTAP_LISTEN=0.0.0.0:3128 \
    GHTAP_ADMIN=0.0.0.0:3180 \
    GHTAP_DATA_DIR=/var/lib/ghtap \
    GHTAP_CERTS_DIR=/certs \
    GHTAP_LOG_FORMAT=json
VOLUME ["/var/lib/ghtap", "/certs"]
EXPOSE 3128 3180
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["ghtap", "health"]
ENTRYPOINT ["ghtap"]
CMD ["serve"]
