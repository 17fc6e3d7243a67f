//! One segment of a walk, whole or in parts.

use super::{PageEnd, PageError, Pending, SegmentEnd, SegmentName, StopReason, Visit, Walker};

/// One segment on a [`Walker`]'s way, for whoever does not hold all of it at once.
#[derive(Debug)]
pub struct SegmentWalk {
    name: SegmentName,
    /// Bytes walked.
    found: u64,
    /// Bytes in a page, known from the first part.
    block_size: Option<usize>,
    /// Set where the walk needs no further bytes.
    end: Option<SegmentEnd>,
}

impl SegmentWalk {
    /// Begins with the segment after the last.
    pub fn new(name: SegmentName) -> Self {
        Self { name, found: 0, block_size: None, end: None }
    }

    /// Walks the next bytes: whole pages, but for the last part of a segment that is cut.
    pub fn part(&mut self, walker: &mut Walker, bytes: &[u8], visit: &mut Visit<'_>) {
        if self.end.is_none() {
            let stopped = walker.stopped.clone().map(|(at, why)| SegmentEnd::Stopped { at, why });
            self.end = stopped.or_else(|| self.walk(walker, bytes, visit).unwrap_or_else(|why| Some(walker.stop(why))));
        }
    }

    /// Returns how the segment ends, after its last part.
    pub fn end(self, walker: &mut Walker) -> SegmentEnd {
        let (found, size) = (self.found, walker.size.bytes());
        match (self.end, self.name.number(walker.size)) {
            (Some(end), _) => end,
            (None, Ok(number)) if found == size => {
                walker.last_segment = Some((number, self.name.timeline()));
                match walker.pending {
                    Pending::Skipped { .. } => SegmentEnd::Inside,
                    _ => walker.open().map_or(SegmentEnd::Clean, SegmentEnd::Open),
                }
            }
            (None, _) => walker.stop(StopReason::Cut { found, size }),
        }
    }

    fn walk(
        &mut self,
        walker: &mut Walker,
        bytes: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<Option<SegmentEnd>, StopReason> {
        let block_size = match self.block_size {
            Some(known) => known,
            None => *self.block_size.insert(walker.enter(self.name, bytes)?),
        };
        let number = self.name.number(walker.size)?;
        let mut address = number.start(walker.size) + self.found;
        self.found += bytes.len() as u64;
        let (found, size) = (self.found, walker.size.bytes());
        if found > size {
            return Err(StopReason::Oversized { found, size });
        }
        for page in bytes.chunks(block_size) {
            let whole = page.len() == block_size;
            match walker.page(self.name.timeline(), address, page, visit) {
                Ok(PageEnd::Full) if whole => address = address + block_size as u64,
                // The records in a part of a page are walked; what it lacks is the reason to stop.
                Ok(PageEnd::Full) => return Err(StopReason::Cut { found, size }),
                Ok(PageEnd::Switched) => {
                    let at = walker.position;
                    walker.position = number.end(walker.size);
                    walker.last_segment = Some((number, self.name.timeline()));
                    return Ok(Some(SegmentEnd::Switched { at }));
                }
                Err(StopReason::Page(PageError::Short { .. })) => return Err(StopReason::Cut { found, size }),
                Err(why) => return Err(why),
            }
        }
        Ok(None)
    }
}
