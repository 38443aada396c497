#!/bin/sh
# Run once, by the image of PostgreSQL on an empty volume: a database for the outbox and one for Dagster's own storage,
# each with a role that owns it. CREATEROLE lets `outbox init` make outbox_producer and outbox_pipeline.
set -eu
# psql reads the passwords from its environment, because what stands in a command every list of processes shows.
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<'SQL'
\getenv owner OWNER_PASSWORD
\getenv dagster DAGSTER_PASSWORD
CREATE ROLE outbox LOGIN CREATEROLE PASSWORD :'owner';
CREATE ROLE dagster LOGIN PASSWORD :'dagster';
CREATE DATABASE outbox OWNER outbox;
CREATE DATABASE dagster OWNER dagster;
SQL
