//! Journeys: real servers, the real program, and the faults that befall them.

#[path = "../layers.rs"]
mod layers;

mod agent;
mod any_bytes;
mod archiver;
mod backup;
mod backup_options;
mod bad_input;
mod branches;
mod bucket_journeys;
mod buckets;
mod check;
mod check_pooler;
mod check_repository;
mod clone;
mod configuration;
mod crash_points;
mod credentials;
mod damage;
mod demo;
mod deploy;
mod empty_root;
mod exit_status;
mod faults;
mod fetch;
mod fork;
mod harness;
mod kill_restore;
mod links;
mod manual;
mod memory;
mod push;
mod push_kill;
mod reader;
mod readme;
mod restore;
mod resume;
mod settings;
mod standby;
mod start;
mod status;
mod support;
mod tablespaces;
mod targets;
mod workload;
