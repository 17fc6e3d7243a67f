//! Why there is no plan.

use super::Choice;
use crate::error::ErrorKind;
use crate::pg::timeline::TimelineId;
use crate::repo::WaitsFor;
use crate::restore::refusal::Refusal;
use crate::restore::survey::SurveyError;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing fits.
    #[error("the target cannot be reached{}", list(.refusals))]
    Unreachable {
        /// Each branch and what is in the way.
        refusals: Vec<Refusal>,
    },
    /// More than one branch fits.
    #[error("the target lies on more than one timeline; choose one with --timeline: {}", numbers(.choices))]
    Ambiguous {
        /// The branches.
        choices: Vec<Choice>,
    },
    /// The only one that fits may be a stranger's.
    #[error(
        "the target lies on timeline {timeline}, which does not count yet: {}, who writes timeline {}, was at work when it \
         began; choose it with --timeline, or run `walvault lane adopt {timeline}`",
        waits.host, waits.timeline
    )]
    Waiting {
        /// The timeline.
        timeline: TimelineId,
        /// For whom it waits.
        waits: WaitsFor,
    },
    /// The log could not be looked through.
    #[error(transparent)]
    Survey(#[from] SurveyError),
}

fn list(refusals: &[Refusal]) -> String {
    match refusals {
        [] => ": nothing is archived on that timeline".to_owned(),
        [only] => format!(": {}", only.reason),
        several => {
            let lines = several.iter().map(|refusal| format!("; timeline {}: {}", refusal.timeline, refusal.reason));
            lines.collect()
        }
    }
}

fn numbers(choices: &[Choice]) -> String {
    choices.iter().map(|choice| choice.timeline.to_string()).collect::<Vec<_>>().join(" or ")
}

impl PlanError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PlanError::Unreachable { .. } | PlanError::Ambiguous { .. } | PlanError::Waiting { .. } => {
                ErrorKind::NotFound
            }
            PlanError::Survey(source) => source.kind(),
        }
    }
}
