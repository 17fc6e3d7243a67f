//! From a backup and a moment to a directory that PostgreSQL recovers to exactly that moment.
//!
//! [`plan`] decides and touches nothing; [`perform`] does what was decided and chooses nothing.

mod backup_manifest;
mod bare_pages;
mod budget;
mod chronicle;
mod configuration;
mod delta;
mod files;
mod glance;
mod hold;
mod leftovers;
mod moment;
mod pace;
mod perform;
mod place;
mod plan;
mod reach;
mod reads;
mod refusal;
mod relation_name;
mod removal;
mod resume;
mod selection;
mod settings;
mod survey;
mod target;
mod window;
mod writer;

pub use budget::Budget;
pub use chronicle::{Chronicle, Event, Gap, Happening, Removal, chronicle};
pub use configuration::{KeptConfiguration, PlacedConfiguration};
pub use files::FilesError;
pub use hold::{Held, Hold, recovery_time};
pub use moment::{TimeError, parse_time};
pub use pace::{Estimate, Measured, Pace, PaceFile};
pub use perform::{Destination, RestoreError, RestoreReport, RestoredConfiguration, perform};
pub use place::{PlaceError, Tablespaces, check_created, check_empty};
pub use plan::{Choice, Plan, PlanError, Point, RemovedTable, Request, choices, plan};
pub use reach::{Reach, ReachEnd, Restorable, reach};
pub use refusal::{Refusal, RefusalReason};
pub use relation_name::{RelationName, RelationNameError};
pub use resume::{Interrupted, interrupted};
pub use selection::{Databases, Selection, SelectionError};
pub use settings::{RecoveryCommand, TargetAction, is_ours};
pub use survey::{EndedTransaction, SurveyError};
pub use target::{Lost, Purpose, Target};
