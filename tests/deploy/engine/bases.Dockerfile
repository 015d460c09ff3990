# Stand-ins for the images of deploy/Dockerfile and deploy/compose/compose.yaml, for machines that cannot pull them: Debian's
# packages with the same users, directories, variables and entry points. `toolchain` is this machine's Rust installation.
ARG BASE
FROM ${BASE} AS rust
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY --from=toolchain bin/cargo bin/rustc /usr/local/bin/
COPY --from=toolchain lib /usr/local/lib

FROM ${BASE} AS postgres
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql
COPY postgres-entrypoint /usr/local/bin/
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data
RUN mkdir -p $PGDATA /run/postgresql && chown postgres:postgres $PGDATA /run/postgresql
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["postgres-entrypoint"]
CMD ["postgres"]

FROM ${BASE} AS redis
RUN groupadd --gid 1000 redis && useradd --uid 999 --gid 1000 redis && apt-get update && apt-get install --yes --no-install-recommends redis-server
USER 999:1000
WORKDIR /data
CMD ["redis-server"]

FROM ${BASE} AS prometheus
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus wget
RUN mkdir -p /prometheus && chown nobody:nogroup /prometheus
USER nobody
VOLUME /prometheus
WORKDIR /prometheus
ENTRYPOINT ["prometheus"]
