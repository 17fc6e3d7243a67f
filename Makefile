# What a fresh machine needs to show, test and check walvault. Installs what is missing (tests/pg/install.sh).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# rustup's folder, for shells older than its installation.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test lint soak recovery fuzz bench dist clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 8

demo: ## run the whole story on a scratch server: backup, accident, recovery, standby
	@tests/pg/install.sh demo
	@cargo build --release --locked
	@$(TARGET)/release/walvault demo

test: ## run every test
	@tests/pg/install.sh test
	@# The examples in the documentation first: what is printed last is the journeys' count.
	@cargo test --locked --quiet --doc
	@# Journeys mostly wait for servers: more of them at once than there are processors.
	@cargo test --locked --lib --bins --test it -- --test-threads 4

lint: ## check format and lints
	@tests/pg/install.sh build
	@cargo fmt --check
	@cargo clippy --all-targets --locked -- -D warnings

soak: ## run the journeys at full size: more seeds, targets and crash points
	@tests/pg/install.sh test
	@WALVAULT_SOAK=1 cargo test --locked --lib --test it -- --test-threads 6

recovery: ## run PostgreSQL's own recovery tests with walvault as archive and restore command: SOURCE=<its source tree>
	@tests/pg/install.sh test
	@cargo build --release --locked
	@tests/pg/recovery.sh $(SOURCE) $(NAMES)

fuzz: ## give every parser bytes that a fuzzer makes up, FUZZ_SECONDS (10) each
	@tests/pg/install.sh build
	@fuzz/run

bench: ## measure beside pgBackRest on a disk and in a bucket: push, agent, backup, restore; takes three quarters of an hour and 15 GB in /var/tmp
	@tests/pg/install.sh bench
	@cargo build --release --locked
	@benches/peers.py
	@benches/agent.py
	@benches/incremental.py
	@benches/s3.py

dist: ## make what is handed out: a static program, manual, completions, notices, in target/dist
	@tests/pg/install.sh dist
	@packaging/dist.sh

clean: ## remove what was built
	@cargo clean
