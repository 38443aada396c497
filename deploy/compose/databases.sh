#!/bin/sh
# Run once, by the image of PostgreSQL on an empty volume: a database for the outbox and one for Dagster's own storage,
# each with a role that owns it. CREATEROLE lets `outbox init` make outbox_producer and outbox_pipeline.
set -eu
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres \
  --set=owner="$OWNER_PASSWORD" --set=dagster="$DAGSTER_PASSWORD" <<'SQL'
CREATE ROLE outbox LOGIN CREATEROLE PASSWORD :'owner';
CREATE ROLE dagster LOGIN PASSWORD :'dagster';
CREATE DATABASE outbox OWNER outbox;
CREATE DATABASE dagster OWNER dagster;
SQL
