//! The archived segments of a lane as its listings show them: of a year of log half a million, so each in a few bytes.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::TimelineCatalog;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::repo::StoredName;

/// Segments by name; those of a timeline have the places that they have among [`TimelineCatalog::segments`].
#[derive(Clone, Debug)]
pub(super) struct Segments {
    size: SegmentSize,
    /// In the order of the timelines.
    columns: Vec<Column>,
    /// Each `.partial` that stands for a segment.
    partials: HashMap<SegmentName, StoredName>,
}

/// What is stored of one timeline's segments.
#[derive(Clone, Debug)]
struct Column {
    timeline: TimelineId,
    runs: Vec<Run>,
    listed: Vec<Listed>,
}

/// Consecutive segments.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Number of the first one.
    first: u64,
    /// Place of the first one.
    at: usize,
    count: usize,
}

/// What a listing says of a segment besides its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    pub stored_bytes: u64,
    pub stored_at: DateTime<Utc>,
}

/// Where a segment is among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its timeline's place.
    pub timeline: usize,
    /// Its own place on that timeline.
    pub at: usize,
}

impl Segments {
    /// Takes what was listed of each timeline's segments, in the same order.
    pub fn new(size: SegmentSize, timelines: &[TimelineCatalog], listed: Vec<Vec<Listed>>) -> Self {
        let column = |(timeline, listed): (&TimelineCatalog, Vec<Listed>)| Column {
            timeline: timeline.timeline,
            runs: runs(&timeline.segments, size),
            listed,
        };
        Self { size, columns: timelines.iter().zip(listed).map(column).collect(), partials: HashMap::new() }
    }

    /// Lets a `.partial` stand for a segment that is not archived whole.
    pub fn stand_in(&mut self, name: SegmentName, partial: StoredName) {
        self.partials.insert(name, partial);
    }

    /// Returns where a segment is that is archived whole.
    pub fn place(&self, name: SegmentName) -> Option<Place> {
        self.run(name).map(|(timeline, _, at)| Place { timeline, at })
    }

    /// Returns the place of a segment that is archived whole, and how many there are from it on without a gap.
    pub fn run_from(&self, name: SegmentName) -> Option<(Place, usize)> {
        self.run(name).map(|(timeline, run, at)| (Place { timeline, at }, run.at + run.count - at))
    }

    fn run(&self, name: SegmentName) -> Option<(usize, Run, usize)> {
        let number = name.number(self.size).ok()?.0;
        let timeline = self.columns.binary_search_by_key(&name.timeline(), |column| column.timeline).ok()?;
        let runs = &self.columns[timeline].runs;
        let run = runs[..runs.partition_point(|run| run.first <= number)].last()?;
        let within = usize::try_from(number - run.first).ok().filter(|within| *within < run.count)?;
        Some((timeline, *run, run.at + within))
    }

    /// Whether a segment is there, whole or as a `.partial`.
    pub fn holds(&self, name: SegmentName) -> bool {
        self.run(name).is_some() || self.partials.contains_key(&name)
    }

    /// Returns the `.partial` that stands for a segment.
    pub fn partial(&self, name: SegmentName) -> Option<&StoredName> {
        self.partials.get(&name)
    }

    /// Returns what is stored of a segment.
    pub fn get(&self, name: SegmentName) -> Option<StoredName> {
        match self.place(name) {
            Some(place) => {
                let Listed { stored_bytes, stored_at } = *self.columns[place.timeline].listed.get(place.at)?;
                Some(StoredName::of_segment(name, stored_bytes, stored_at))
            }
            None => self.partials.get(&name).cloned(),
        }
    }
}

/// Names that make no sense with this size are in no run.
fn runs(names: &[SegmentName], size: SegmentSize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let Ok(number) = name.number(size) else { continue };
        match runs.last_mut() {
            Some(run) if run.at + run.count == at && run.first + run.count as u64 == number.0 => run.count += 1,
            _ => runs.push(Run { first: number.0, at, count: 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::segment::SegmentNo;

    fn name(timeline: u32, number: u64) -> SegmentName {
        SegmentName::from_number(TimelineId::new(timeline).unwrap(), SegmentNo(number), SegmentSize::DEFAULT)
    }

    #[test]
    fn what_was_listed_is_found_by_name_and_nothing_else_is() {
        let archived = [(1, vec![3, 4, 5, 9, 255, 256, 257]), (2, vec![]), (7, vec![5, 6])];
        let timeline = |(number, numbers): &(u32, Vec<u64>)| TimelineCatalog {
            timeline: TimelineId::new(*number).unwrap(),
            history: None,
            segments: numbers.iter().map(|one| name(*number, *one)).collect(),
            owner: None,
            waits_for: None,
        };
        let timelines: Vec<TimelineCatalog> = archived.iter().map(timeline).collect();
        let listed = |(timeline, numbers): &(u32, Vec<u64>)| {
            let one = |number: &u64| Listed {
                stored_bytes: u64::from(*timeline) * 1000 + number,
                stored_at: DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(*number as i64),
            };
            numbers.iter().map(one).collect()
        };
        let mut segments =
            Segments::new(SegmentSize::DEFAULT, &timelines, archived.iter().map(listed).collect::<Vec<_>>());
        for timeline in 1..9 {
            for number in 0..300 {
                let held = archived.iter().any(|(one, numbers)| *one == timeline && numbers.contains(&number));
                let name = name(timeline, number);
                let found = segments.get(name);
                assert_eq!((segments.holds(name), segments.place(name).is_some()), (held, held), "{name}");
                let told = found.map(|one| (one.name, one.stored_bytes, one.stored_at.timestamp().cast_unsigned()));
                let stored_bytes = u64::from(timeline) * 1000 + number;
                let expected = (crate::pg::wal_name::WalFileName::Segment(name), stored_bytes, number);
                assert_eq!(told, held.then_some(expected), "{name}");
                if let Some(place) = segments.place(name) {
                    assert_eq!(timelines[place.timeline].segments[place.at], name);
                }
            }
        }
        let run = |timeline, number| segments.run_from(name(timeline, number)).map(|(_, count)| count);
        assert_eq!((run(1, 3), run(1, 5), run(1, 9), run(1, 255), run(7, 6), run(1, 6)), {
            (Some(3), Some(1), Some(1), Some(3), Some(1), None)
        });
        // A name of smaller segments than the lane's is no segment of the log.
        let wrong: SegmentName = "0000000100000000000001FF".parse().unwrap();
        assert!(!segments.holds(wrong));
        segments.stand_in(name(2, 8), StoredName::of_segment(name(2, 8), 5, DateTime::UNIX_EPOCH));
        assert!(segments.holds(name(2, 8)) && segments.place(name(2, 8)).is_none());
        assert_eq!(segments.get(name(2, 8)).unwrap().stored_bytes, 5);
    }
}
