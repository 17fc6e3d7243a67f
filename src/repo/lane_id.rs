//! Names of lanes.

use std::fmt;
use std::str::FromStr;

use crate::pg::system_id::SystemId;

/// `<system-id>-<epoch>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId {
    system_id: SystemId,
    epoch: u32,
}

/// A text that names no lane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a lane; one looks like 7301234567890123456-1")]
pub struct LaneIdError {
    text: String,
}

impl LaneId {
    /// The lane that a server's first push opens.
    pub const fn first(system_id: SystemId) -> Self {
        Self { system_id, epoch: 1 }
    }

    /// The server's system identifier.
    pub const fn system_id(self) -> SystemId {
        self.system_id
    }

    /// 1 for the first lane of a system identifier.
    pub const fn epoch(self) -> u32 {
        self.epoch
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.system_id, self.epoch)
    }
}

impl FromStr for LaneId {
    type Err = LaneIdError;

    fn from_str(text: &str) -> Result<Self, LaneIdError> {
        let parse = || {
            let (system_id, epoch) = text.split_once('-')?;
            let lane = Self { system_id: system_id.parse().ok()?, epoch: epoch.parse().ok()? };
            // One lane has one spelling: no leading zeros, no plus sign.
            (lane.epoch > 0 && lane.to_string() == text).then_some(lane)
        };
        parse().ok_or_else(|| LaneIdError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_has_one_spelling() {
        let lane: LaneId = "7301234567890123456-1".parse().expect("a lane");
        assert_eq!(lane.to_string(), "7301234567890123456-1");
        for text in ["", "7", "7-", "-1", "7-0", "7-01", "07-1", "7-+1", "7-1-1", "7-1/..", "wal"] {
            assert!(text.parse::<LaneId>().is_err(), "{text:?} was taken for a lane");
        }
    }
}
