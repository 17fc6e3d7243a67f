//! The plan that a restore leaves for `wal fetch`: which branch recovery is on and where it will stop.
//!
//! Without it `restore_command` sees one name at a time, and cannot tell a segment that must exist from one that recovery
//! will never need. It lies in `pg_wal`, where `pg_verifybackup` looks at nothing and PostgreSQL ignores it.

use serde::{Deserialize, Serialize};

use super::document;
use super::{FormatError, Sha256};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;

/// Where the plan is, relative to the data directory.
pub const RECOVERY_PLAN_PATH: &str = "pg_wal/walvault.plan";

/// Version of the document.
/// - 1: first release.
pub const RECOVERY_PLAN_VERSION: u32 = 1;

/// What a recovery will read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPlan {
    /// [`RECOVERY_PLAN_VERSION`].
    pub version: u32,
    /// The cluster that is being recovered.
    pub system_id: SystemId,
    /// The lane to read from.
    pub lane: String,
    /// The backup that was restored.
    pub backup: String,
    /// Bytes in a segment.
    pub segment_size: u32,
    /// The branch, oldest timeline first.
    pub path: Vec<PlannedStretch>,
    /// No record that starts at or after this position is needed.
    pub needed_before: Lsn,
    /// SHA-256 of the `.partial` that stands for the last segment needed, where that is all that is archived of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<Sha256>,
    /// The line of `postgresql.auto.conf` that sets the target. While it stands there PostgreSQL refuses to open before
    /// the target, and only so long may the plan answer that a segment is not needed.
    pub target: String,
    /// Token of the writer that takes the lane over once this recovery has ended; `None` if none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
}

/// The part of the branch that lies on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStretch {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where the branch enters it.
    pub begin: Lsn,
    /// Where the branch leaves it; the last one is left at the target.
    pub end: Option<Lsn>,
}

/// What the plan says of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    /// Recovery needs it: it must be in the archive.
    Needed,
    /// It lies wholly past the target.
    PastTarget,
    /// Another timeline of the branch holds that part of the log, or none of the branch does.
    OffBranch,
}

impl RecoveryPlan {
    /// Returns the document's bytes.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(self)
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// [`FormatError::Damaged`], [`FormatError::Version`], or [`FormatError::Nonsense`] for a path that is no branch.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let plan: Self = document::decode(bytes, "recovery plan")?;
        if plan.version > RECOVERY_PLAN_VERSION {
            let found = u16::try_from(plan.version).unwrap_or(u16::MAX);
            return Err(FormatError::Version { found, known: RECOVERY_PLAN_VERSION as u16 });
        }
        let ordered =
            plan.path.windows(2).all(|pair| pair[0].timeline < pair[1].timeline && pair[0].end == Some(pair[1].begin));
        if plan.path.is_empty() || !ordered || SegmentSize::new(plan.segment_size).is_err() {
            return Err(FormatError::Nonsense {
                document: "recovery plan",
                problem: "its path is not a branch".to_owned(),
            });
        }
        Ok(plan)
    }

    /// Bytes in a segment.
    pub fn segment_size(&self) -> SegmentSize {
        SegmentSize::new(self.segment_size).expect("checked when it was read")
    }

    /// Returns whether the branch runs through a timeline.
    pub fn passes(&self, timeline: TimelineId) -> bool {
        self.path.iter().any(|stretch| stretch.timeline == timeline)
    }

    /// Returns whether a `postgresql.auto.conf` still sets the target that this plan was made for.
    pub fn is_target_of(&self, auto_conf: &str) -> bool {
        let name = |line: &str| line.split([' ', '=', '\t']).next().unwrap_or_default().to_ascii_lowercase();
        let wanted = name(&self.target);
        let last = auto_conf.lines().map(str::trim).rfind(|line| name(line) == wanted);
        last == Some(self.target.as_str())
    }

    /// Returns what recovery along this plan wants with a segment.
    ///
    /// The segment in which a timeline forks off is the child's: it begins with a copy of the parent's part.
    pub fn segment(&self, name: SegmentName) -> Planned {
        let size = self.segment_size();
        let Ok(number) = name.number(size) else { return Planned::OffBranch };
        let Some(stretch) = self.path.iter().find(|stretch| stretch.timeline == name.timeline()) else {
            return Planned::OffBranch;
        };
        let first = size.segment_of(stretch.begin);
        let left = stretch.end.is_some_and(|end| number >= size.segment_of(end));
        if number < first || left {
            Planned::OffBranch
        } else if number.start(size) >= self.needed_before {
            Planned::PastTarget
        } else {
            Planned::Needed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).expect("not zero")
    }

    /// Timeline 2 forks off at 0/3000500 (in the middle of segment 3), timeline 3 at 0/5000000 (on a boundary); target
    /// in segment 6.
    fn plan() -> RecoveryPlan {
        let stretch = |number, begin, end: Option<u64>| PlannedStretch {
            timeline: timeline(number),
            begin: Lsn::new(begin),
            end: end.map(Lsn::new),
        };
        RecoveryPlan {
            primary: None,
            version: RECOVERY_PLAN_VERSION,
            system_id: SystemId::new(7),
            lane: "7-1".to_owned(),
            backup: "b".to_owned(),
            segment_size: 1 << 24,
            path: vec![
                stretch(1, 0, Some(0x300_0500)),
                stretch(2, 0x300_0500, Some(0x500_0000)),
                stretch(3, 0x500_0000, None),
            ],
            needed_before: Lsn::new(0x600_0100),
            partial: None,
            target: "recovery_target_lsn = '0/60000D8'".to_owned(),
        }
    }

    #[test]
    fn the_fork_segment_is_the_childs() {
        let plan = plan();
        let asked = |text: &str| plan.segment(text.parse().expect("a segment name"));
        assert_eq!(asked("000000010000000000000002"), Planned::Needed);
        assert_eq!(asked("000000010000000000000003"), Planned::OffBranch);
        assert_eq!(asked("000000010000000000000009"), Planned::OffBranch);
        assert_eq!(asked("000000020000000000000002"), Planned::OffBranch);
        assert_eq!(asked("000000020000000000000003"), Planned::Needed);
        assert_eq!(asked("000000020000000000000004"), Planned::Needed);
        assert_eq!(asked("000000020000000000000005"), Planned::OffBranch);
        assert_eq!(asked("000000030000000000000005"), Planned::Needed);
        assert_eq!(asked("000000030000000000000006"), Planned::Needed);
        assert_eq!(asked("000000030000000000000007"), Planned::PastTarget);
        assert_eq!(asked("000000040000000000000006"), Planned::OffBranch);
    }

    #[test]
    fn a_plan_is_void_once_its_target_is_not_the_servers() {
        let aimed = |auto_conf: &str| plan().is_target_of(auto_conf);
        assert!(aimed("port = 1\nrecovery_target_name = ''\nrecovery_target_lsn = '0/60000D8'\n"));
        assert!(!aimed("port = 1\n"));
        assert!(!aimed("recovery_target_lsn = '0/60000D8'\nrecovery_target_lsn = ''\n"));
        assert!(!aimed("recovery_target_lsn = '0/60000D8'\nRecovery_Target_LSN='0/7000000'\n"));
        assert!(!aimed("#recovery_target_lsn = '0/60000D8'\n"));
    }

    #[test]
    fn a_plan_comes_back_and_a_path_that_is_no_branch_is_refused() {
        assert_eq!(RecoveryPlan::decode(&plan().encode()), Ok(plan()));
        let mut gap = plan();
        gap.path.remove(1);
        assert!(RecoveryPlan::decode(&gap.encode()).is_err());
        let mut empty = plan();
        empty.path.clear();
        assert!(RecoveryPlan::decode(&empty.encode()).is_err());
    }
}
