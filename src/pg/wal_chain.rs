//! The changes of consecutive segments, joined into those of a stretch of the log.
//!
//! What one segment tells is believed only in its place: each record names the one before it, so a segment of another
//! history does not fit, and a record that crosses from one to the next is put together from its parts and has to have
//! its checksum. Where anything does not fit, the chain breaks, and nobody may rest on it.

use super::wal_changes::{Beginning, Effect, effects};
use super::{
    ChangesEnd, Lsn, RecordPart, RelationChanges, Run, SegmentChanges, SegmentName, SegmentNo, SegmentSize, TimelineId,
    WalMagic,
};

/// Why a chain of segments does not tell of every change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainBreak {
    /// A segment that is not the next.
    #[error("segment {0} does not follow")]
    NotNext(SegmentName),
    /// A first record that follows another one, or a record that goes on with something else.
    #[error("segment {0} does not go on with what is before it")]
    Other(SegmentName),
    /// A record that crosses into the segment and does not have its checksum, or of which too little was kept.
    #[error("the record that crosses into segment {0} cannot be read")]
    Crossing(SegmentName),
    /// A record of a kind that is not known to change nothing but its blocks.
    #[error("segment {0} has records that are not known")]
    Unknown(SegmentName),
    /// `wal_level` was `minimal`.
    #[error("wal_level was minimal in segment {0}")]
    Minimal(SegmentName),
    /// `full_page_writes` was off.
    #[error("full_page_writes was off in segment {0}")]
    FullPageWritesOff(SegmentName),
    /// The log ends before the stretch does.
    #[error("the log can be read up to {0} only")]
    Short(Lsn),
}

/// A stretch of the log, from which segments are still missing at its end.
#[derive(Clone, Debug)]
pub struct ChangesChain {
    size: SegmentSize,
    timeline: TimelineId,
    next: SegmentNo,
    end: Lsn,
    /// Whether no segment came yet.
    fresh: bool,
    /// Start of the last record that ended.
    last: Option<Lsn>,
    open: Option<Open>,
    /// Up to where everything is told.
    reached: Lsn,
}

#[derive(Clone, Debug)]
struct Open {
    start: Lsn,
    total_len: u32,
    magic: WalMagic,
    part: RecordPart,
}

impl ChangesChain {
    /// Begins a chain that is to tell of all records that begin from `start` on and before `end`; both are beginnings of
    /// records, or the end of the log.
    pub fn new(timeline: TimelineId, start: Lsn, end: Lsn, size: SegmentSize) -> Self {
        let next = size.segment_of(start);
        Self { size, timeline, next, end, fresh: true, last: None, open: None, reached: start }
    }

    /// The segments that it takes, in order.
    pub fn segments(&self) -> Vec<SegmentName> {
        let name = |number| SegmentName::from_number(self.timeline, SegmentNo(number), self.size);
        (self.next.0..=self.last_segment().0).map(name).collect()
    }

    /// The segment with the last record before the end. Where nothing but the header of the first page lies before it,
    /// that is the segment before.
    fn last_segment(&self) -> SegmentNo {
        let number = self.size.segment_of(self.end);
        let empty = self.size.offset_of(self.end) <= super::PageHeader::LONG as u64;
        if empty { SegmentNo(number.0.saturating_sub(1)) } else { number }
    }

    /// Adds the next segment, and hands over what changes in it.
    ///
    /// # Errors
    /// [`ChainBreak`]; what was handed over then is not all.
    pub fn add(
        &mut self,
        name: SegmentName,
        changes: &SegmentChanges,
        found: &mut dyn FnMut(&RelationChanges),
    ) -> Result<(), ChainBreak> {
        if name != SegmentName::from_number(self.timeline, self.next, self.size) || self.is_complete() {
            return Err(ChainBreak::NotNext(name));
        }
        self.begin(name, changes, found)?;
        if let (Some(stated), Some(last)) = (changes.previous, self.last)
            && stated != last
        {
            return Err(ChainBreak::Other(name));
        }
        match (changes.unknown, changes.minimal, changes.full_page_writes_off) {
            (true, ..) => return Err(ChainBreak::Unknown(name)),
            (_, true, _) => return Err(ChainBreak::Minimal(name)),
            (.., true) => return Err(ChainBreak::FullPageWritesOff(name)),
            _ => {}
        }
        changes.relations.iter().for_each(&mut *found);
        self.last = changes.last.or(self.last);
        self.reached = self.next.end(self.size);
        match &changes.end {
            ChangesEnd::Whole if self.open.is_none() => {}
            ChangesEnd::Inside if self.open.is_some() => {}
            ChangesEnd::Whole | ChangesEnd::Inside => return Err(ChainBreak::Other(name)),
            ChangesEnd::Open { start, total_len, part } => {
                let (start, total_len, part) = (*start, *total_len, part.clone());
                self.open = Some(Open { start, total_len, magic: changes.magic, part });
            }
            ChangesEnd::Stopped { at } if *at >= self.end && self.next == self.last_segment() => self.reached = *at,
            ChangesEnd::Stopped { at } => return Err(ChainBreak::Short(*at)),
        }
        self.next = self.next.next();
        self.fresh = false;
        Ok(())
    }

    /// Goes on with what the segment before left open.
    fn begin(
        &mut self,
        name: SegmentName,
        changes: &SegmentChanges,
        found: &mut dyn FnMut(&RelationChanges),
    ) -> Result<(), ChainBreak> {
        // Of a record that began before the stretch nobody asks.
        if self.fresh {
            return Ok(());
        }
        let Some(lead) = &changes.lead else {
            // What is declared void was not there, or is not replayed.
            return match self.open.take() {
                Some(_) if !changes.overwrites => Err(ChainBreak::Other(name)),
                _ => Ok(()),
            };
        };
        let open = self.open.as_mut().filter(|open| open.magic == changes.magic).ok_or(ChainBreak::Other(name))?;
        open.part.join(lead);
        let missing = u64::from(open.total_len).checked_sub(open.part.len).ok_or(ChainBreak::Other(name))?;
        if missing > 0 {
            return match changes.end {
                ChangesEnd::Inside => Ok(()),
                _ => Err(ChainBreak::Other(name)),
            };
        }
        let open = self.open.take().expect("just joined");
        open.record(self.last, found).ok_or(ChainBreak::Crossing(name))?;
        self.last = Some(open.start);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.next.0 > self.last_segment().0
    }

    /// Ends the chain.
    ///
    /// # Errors
    /// [`ChainBreak::Short`] if a segment is missing, or a record goes on after the end.
    pub fn finish(self) -> Result<(), ChainBreak> {
        // A record that begins before the end also ends before it: the last segment may go on with others.
        let crosses = self.open.as_ref().is_some_and(|open| open.start < self.end);
        if self.fresh || !self.is_complete() || crosses { Err(ChainBreak::Short(self.reached)) } else { Ok(()) }
    }
}

impl Open {
    /// Hands over what the record changes, now that all its parts are there; `None` if it cannot be trusted.
    fn record(&self, last: Option<Lsn>, found: &mut dyn FnMut(&RelationChanges)) -> Option<()> {
        let header = self.part.header()?;
        if last.is_some_and(|last| header.previous != last) {
            return None;
        }
        let record = Beginning {
            magic: self.magic,
            resource_manager: header.resource_manager,
            info: header.info,
            total_len: self.total_len as usize,
            bytes: &self.part.beginning,
        };
        let mut trusted = true;
        effects(&record, &mut |effect| match effect {
            Effect::Block(relation, first) => {
                found(&RelationChanges { relation, limit: None, runs: vec![Run { first, len: 1 }] });
            }
            Effect::From(relation, limit) => {
                found(&RelationChanges { relation, limit: Some(limit), runs: Vec::new() });
            }
            // A few records in a lifetime say that; that one of them crosses is no reason to name it better.
            Effect::Minimal | Effect::FullPageWritesOff => trusted = false,
        })?;
        trusted.then_some(())
    }
}

#[cfg(test)]
mod tests;
