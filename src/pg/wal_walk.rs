//! The walk over a log: from segment to segment, page to page, record to record, until the log ends.
//!
//! It accepts what PostgreSQL's reader accepts and ends where that one ends; what records mean is read elsewhere.
//!
//! Source: `XLogDecodeNextRecord`, `ValidXLogRecordHeader` and `XLogReaderValidatePageHeader` in
//! `src/backend/access/transam/xlogreader.c`; `CreateOverwriteContrecord` in `src/backend/access/transam/xlog.c`.

pub use segment::SegmentWalk;

use super::wal_page::{u32_at, u64_at};
use super::wal_record::is_switch;
use super::{
    FirstPage, Lsn, NameError, PageError, PageHeader, Record, RecordHeader, RecordPart, SegmentName, SegmentNo,
    SegmentSize, SystemId, TimelineId, WalMagic, record_checksum,
};

mod segment;

/// Walks the records of consecutive segments.
///
/// The first segment may begin inside a record: that record is skipped, its bytes are not checked. From then on every
/// record's checksum is, and that it names the one before it. A clone goes on from the same place, for a log that
/// branches.
#[derive(Clone, Debug)]
pub struct Walker {
    size: SegmentSize,
    system_id: Option<SystemId>,
    form: Option<(WalMagic, u32)>,
    last_segment: Option<(SegmentNo, TimelineId)>,
    last_page_timeline: u32,
    position: Lsn,
    pending: Pending,
    /// The bytes so far of the record that [`Pending::Open`] tells of.
    buffer: Vec<u8>,
    /// The record that began before the first segment, as far as it was skipped.
    skipped: Option<RecordPart>,
    last_complete: Option<(Lsn, Lsn)>,
    stopped: Option<(Lsn, StopReason)>,
}

/// What the next page must begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// Nothing is known: this is the first page.
    Unknown,
    /// A record.
    Nothing,
    /// The rest of a record that began before the first segment.
    Skipped { remaining: u32 },
    /// The rest of a record that began here.
    Open { start: Lsn, total_len: u32 },
    /// A record that declares the one begun here void.
    Void { start: Lsn },
}

/// A record that the walk has seen begin and not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenRecord {
    /// The position of its first byte.
    pub start: Lsn,
    /// Bytes in it, as its first field says; not yet covered by a checksum.
    pub total_len: u32,
    /// The number of its resource manager; `None` if the header is cut before it.
    pub resource_manager: Option<u8>,
    /// Its kind and flags, as [`Record::info`]; `None` likewise.
    pub info: Option<u8>,
}

/// How a segment ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SegmentEnd {
    /// The last record ends with the segment, the next begins in the one after.
    Clean,
    /// The last record goes on in the next segment.
    Open(OpenRecord),
    /// The whole segment lies inside a record that began before the first segment walked.
    Inside,
    /// A switch record ends the segment early; from `at` on it is padding.
    Switched {
        /// The position after the switch record.
        at: Lsn,
    },
    /// The log ends in this segment; the walk takes no further ones.
    Stopped {
        /// Where the next record would begin, or where the unfinished one began: everything before it is valid.
        at: Lsn,
        /// What stands there instead.
        why: StopReason,
    },
}

/// Why a log goes no further. [`StopReason::Nothing`] and a page of another address are the usual marks of its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// Zeros in place of a record.
    #[error("no record follows")]
    Nothing,
    /// The bytes end before the segment does.
    #[error("the bytes end at {found} of the segment's {size}")]
    Cut {
        /// Bytes there are.
        found: u64,
        /// Bytes in a segment.
        size: u64,
    },
    /// More bytes than a segment has.
    #[error("there are {found} bytes, a segment has {size}")]
    Oversized {
        /// Bytes there are.
        found: u64,
        /// Bytes in a segment.
        size: u64,
    },
    /// A segment that does not follow the one before it.
    #[error("{found} does not follow segment {number} of timeline {timeline}")]
    NotNext {
        /// The segment that was offered.
        found: SegmentName,
        /// The number of the segment before, counted in segments of the cluster's size.
        number: u64,
        /// The timeline of the segment before.
        timeline: TimelineId,
    },
    /// The name is none of this segment size.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A segment of a format that is not known; its first page is plausible.
    #[error("WAL of magic {0} is not known to this version")]
    UnknownFormat(WalMagic),
    /// Not the page that belongs there.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The page does not go on with the record before it as it should.
    #[error("the page at {page} continues a record with {found} bytes, missing are {expected}")]
    Continuation {
        /// The page's address.
        page: Lsn,
        /// Bytes that the page says are missing.
        found: u32,
        /// Bytes that are missing; 0 if no record is unfinished.
        expected: u32,
    },
    /// The record that declares an unfinished one void is not there, or names another.
    #[error("the record at {start} is unfinished and what follows does not declare it void")]
    NotVoided {
        /// The start of the unfinished record.
        start: Lsn,
    },
    /// A length that no record has.
    #[error("a record cannot have {0} bytes")]
    Length(u32),
    /// A resource manager that this major does not have.
    #[error("the record is of resource manager {0}")]
    ResourceManager(u8),
    /// The record names another one before it.
    #[error("the record follows the one at {found}, before it stands the one at {expected}")]
    Previous {
        /// The start of the record before, as this one says.
        found: Lsn,
        /// The start of the record before; for the first record walked, its own start, which `found` must not reach.
        expected: Lsn,
    },
    /// The record's checksum does not hold.
    #[error("the record states the checksum {stated:08X}, its bytes have {computed:08X}")]
    Checksum {
        /// The checksum in the record.
        stated: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
}

/// The largest record taken for one, in bytes: PostgreSQL cannot allocate more for one when it replays it.
///
/// Source: `MaxAllocSize` in `src/include/utils/memutils.h`; `XLogRecordMaxSize` in `xlogrecord.h` since 16.
const RECORD_LIMIT: u32 = 1 << 30;

/// Bytes of buffer kept from one record that crosses pages to the next.
const BUFFER_KEPT: usize = 1 << 20;

/// Where a page left the walk.
enum PageEnd {
    /// At its end.
    Full,
    /// After a switch record.
    Switched,
}

/// Receives every record.
pub type Visit<'v> = dyn FnMut(&Record<'_>) + 'v;

impl Walker {
    /// Makes a walk over segments of this size; the first segment fixes the cluster if `system_id` does not.
    pub fn new(system_id: Option<SystemId>, size: SegmentSize) -> Self {
        Self {
            size,
            system_id,
            form: None,
            last_segment: None,
            last_page_timeline: 1,
            position: Lsn::INVALID,
            pending: Pending::Unknown,
            buffer: Vec::new(),
            skipped: None,
            last_complete: None,
            stopped: None,
        }
    }

    /// Walks one segment, the one after the last, and hands every record that ends in it to `visit`.
    ///
    /// The segment may be of a later timeline than the last: then it is the one in which that timeline begins, or
    /// comes after. Fewer bytes than a segment are walked to their end. Once the log has ended it stays so: every
    /// further call returns the same [`SegmentEnd::Stopped`].
    pub fn segment(&mut self, name: SegmentName, bytes: &[u8], visit: &mut Visit<'_>) -> SegmentEnd {
        let mut walk = SegmentWalk::new(name);
        walk.part(self, bytes, visit);
        walk.end(self)
    }

    fn stop(&mut self, why: StopReason) -> SegmentEnd {
        let at = match self.pending {
            Pending::Open { start, .. } | Pending::Void { start } => start,
            _ => self.position,
        };
        self.stopped = Some((at, why.clone()));
        SegmentEnd::Stopped { at, why }
    }

    /// Returns start and end of the last complete record.
    pub fn last_complete(&self) -> Option<(Lsn, Lsn)> {
        self.last_complete
    }

    /// Returns the record that has begun and not ended, if any.
    pub fn open(&self) -> Option<OpenRecord> {
        let Pending::Open { start, total_len } = self.pending else { return None };
        let (info, resource_manager) = (self.buffer.get(16).copied(), self.buffer.get(17).copied());
        Some(OpenRecord { start, total_len, resource_manager, info })
    }

    /// Returns what there is so far of the record that has begun and not ended.
    pub fn open_part(&self) -> RecordPart {
        RecordPart::of(&self.buffer)
    }

    /// Returns what was skipped of a record that began before the first segment.
    pub fn skipped(&self) -> Option<&RecordPart> {
        self.skipped.as_ref()
    }

    /// Returns the format of the segments walked; `None` before the first.
    pub fn magic(&self) -> Option<WalMagic> {
        self.form.map(|form| form.0)
    }

    /// Checks that the segment may come next, and returns the bytes in a page.
    fn enter(&mut self, name: SegmentName, bytes: &[u8]) -> Result<usize, StopReason> {
        let number = name.number(self.size)?;
        if self.last_segment.is_none() {
            self.position = number.start(self.size);
        }
        if let Some((last, timeline)) = self.last_segment
            && (number != last.next() || name.timeline() < timeline)
        {
            return Err(StopReason::NotNext { found: name, number: last.0, timeline });
        }
        let (found, size) = (bytes.len() as u64, self.size.bytes());
        if found > size {
            return Err(StopReason::Oversized { found, size });
        }
        if bytes.len() < PageHeader::LONG {
            return Err(StopReason::Cut { found, size });
        }
        self.first_page(name, bytes)
    }

    /// Checks the segment's first page against the segments before, and returns the bytes in a page.
    fn first_page(&mut self, name: SegmentName, bytes: &[u8]) -> Result<usize, StopReason> {
        let first = FirstPage::parse(bytes)?;
        if first.magic.major().is_none() {
            return Err(StopReason::UnknownFormat(first.magic));
        }
        first.belongs_to(name, self.size, self.system_id)?;
        let form = *self.form.get_or_insert((first.magic, first.block_size));
        if form.0 != first.magic {
            return Err(PageError::Magic { found: first.magic, expected: form.0 }.into());
        }
        if form.1 != first.block_size {
            return Err(PageError::BlockSize { found: first.block_size }.into());
        }
        self.system_id = Some(first.system_id);
        Ok(first.block_size as usize)
    }

    /// Walks one page; it may be cut short.
    fn page(
        &mut self,
        timeline: TimelineId,
        address: Lsn,
        page: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<PageEnd, StopReason> {
        let header = self.page_header(timeline, address, page)?;
        let mut at = header.length();
        if page.len() < at {
            return Err(PageError::Short { found: page.len() }.into());
        }
        self.begin_page(&header)?;
        match self.pending {
            Pending::Skipped { remaining } => {
                let taken = (page.len() - at).min(remaining as usize);
                self.skipped.get_or_insert_default().add(&page[at..at + taken]);
                self.pending = match remaining - taken as u32 {
                    0 => Pending::Nothing,
                    remaining => Pending::Skipped { remaining },
                };
                at = align(at + taken);
                self.position = address + at as u64;
            }
            Pending::Open { start, total_len } => {
                let taken = (page.len() - at).min(total_len as usize - self.buffer.len());
                self.buffer.extend_from_slice(&page[at..at + taken]);
                at = align(at + taken);
                if self.buffer.len() < total_len as usize {
                    return Ok(PageEnd::Full);
                }
                let buffer = std::mem::take(&mut self.buffer);
                let switched = self.record(start, address + at as u64, &buffer, visit)?;
                self.keep(buffer);
                if switched {
                    return Ok(PageEnd::Switched);
                }
            }
            Pending::Unknown | Pending::Nothing | Pending::Void { .. } => self.position = address + at as u64,
        }
        self.records(address, page, at, visit)
    }

    fn page_header(&mut self, timeline: TimelineId, address: Lsn, page: &[u8]) -> Result<PageHeader, PageError> {
        let header = PageHeader::read(page).ok_or(PageError::Short { found: page.len() })?;
        let expected = self.form.map_or(header.magic, |form| form.0);
        if header.magic != expected {
            let empty = header.magic.number() == 0;
            return Err(if empty { PageError::Empty } else { PageError::Magic { found: header.magic, expected } });
        }
        if !header.flags_are_known() || header.is_long() != (self.size.offset_of(address) == 0) {
            return Err(PageError::Flags { magic: header.magic, found: header.info });
        }
        if header.address != address {
            return Err(PageError::Address { found: header.address, expected: address });
        }
        let (least, most) = (self.last_page_timeline, timeline.number());
        if !(least..=most).contains(&header.timeline) {
            return Err(PageError::Timeline { found: header.timeline, least, most });
        }
        self.last_page_timeline = header.timeline;
        Ok(header)
    }

    /// Compares what the page goes on with against what the page before left.
    fn begin_page(&mut self, header: &PageHeader) -> Result<(), StopReason> {
        if header.overwrites() {
            self.buffer.clear();
            self.pending = match self.pending {
                Pending::Open { start, .. } => Pending::Void { start },
                // The record it makes void began before the first segment, or is not there at all.
                _ => Pending::Nothing,
            };
            return Ok(());
        }
        let found = if header.continues() { header.remaining } else { 0 };
        let expected = match self.pending {
            Pending::Unknown if found > RECORD_LIMIT => return Err(StopReason::Length(found)),
            Pending::Unknown => {
                self.pending = if found == 0 { Pending::Nothing } else { Pending::Skipped { remaining: found } };
                found
            }
            Pending::Skipped { remaining } => remaining,
            Pending::Open { total_len, .. } => total_len - self.buffer.len() as u32,
            Pending::Nothing | Pending::Void { .. } => 0,
        };
        if found != expected || header.continues() != (expected != 0) {
            return Err(StopReason::Continuation { page: header.address, found, expected });
        }
        Ok(())
    }

    /// Walks the records that begin in the page, from the offset `at` on.
    fn records(
        &mut self,
        address: Lsn,
        page: &[u8],
        mut at: usize,
        visit: &mut Visit<'_>,
    ) -> Result<PageEnd, StopReason> {
        while let Some(rest) = page.get(at..).filter(|rest| rest.len() >= ALIGNMENT) {
            let start = address + at as u64;
            self.position = start;
            let total_len = u32_at(rest, 0);
            if total_len == 0 {
                return Err(StopReason::Nothing);
            }
            if total_len < RecordHeader::LEN as u32 || total_len > RECORD_LIMIT {
                return Err(StopReason::Length(total_len));
            }
            let Some(data) = rest.get(..total_len as usize) else {
                if let Some(header) = RecordHeader::read(rest) {
                    self.check_header(start, &header)?;
                }
                self.buffer.extend_from_slice(rest);
                self.pending = Pending::Open { start, total_len };
                return Ok(PageEnd::Full);
            };
            at = align(at + data.len());
            if self.record(start, address + at as u64, data, visit)? {
                return Ok(PageEnd::Switched);
            }
        }
        Ok(PageEnd::Full)
    }

    /// Checks a complete record and hands it on; returns whether it is a switch.
    fn record(&mut self, start: Lsn, end: Lsn, data: &[u8], visit: &mut Visit<'_>) -> Result<bool, StopReason> {
        let too_short = StopReason::Length(data.len() as u32);
        let (Some(header), Some(computed)) = (RecordHeader::read(data), record_checksum(data)) else {
            return Err(too_short);
        };
        self.check_header(start, &header)?;
        if header.checksum != computed {
            return Err(StopReason::Checksum { stated: header.checksum, computed });
        }
        let switched = is_switch(header.resource_manager, header.info);
        let record = Record {
            start,
            end: if switched { self.size.segment_ending_at(end).end(self.size) } else { end },
            magic: self.form.map_or(WalMagic::new(0), |form| form.0),
            xid: header.xid,
            resource_manager: header.resource_manager,
            info: header.info,
            data,
        };
        if let Pending::Void { start } = self.pending
            && !voids(&record, start)
        {
            return Err(StopReason::NotVoided { start });
        }
        self.pending = Pending::Nothing;
        self.position = end;
        self.last_complete = Some((start, record.end));
        visit(&record);
        Ok(switched)
    }

    fn check_header(&self, start: Lsn, header: &RecordHeader) -> Result<(), StopReason> {
        let found = header.previous;
        match self.last_complete {
            Some((expected, _)) if found != expected => return Err(StopReason::Previous { found, expected }),
            None if found >= start => return Err(StopReason::Previous { found, expected: start }),
            _ => (),
        }
        let major = self.magic().and_then(WalMagic::major);
        let built_in = if major >= Some(19) { 127 } else { LAST_RESOURCE_MANAGER };
        let custom = major >= Some(15) && header.resource_manager >= 128;
        if header.resource_manager > built_in && !custom {
            return Err(StopReason::ResourceManager(header.resource_manager));
        }
        Ok(())
    }

    /// Takes the buffer back for the next record that crosses pages, unless it has grown large.
    fn keep(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        buffer.shrink_to(BUFFER_KEPT);
        self.buffer = buffer;
    }
}

/// Records begin at multiples of this many bytes, on every platform that runs in 64 bits.
const ALIGNMENT: usize = 8;

const fn align(at: usize) -> usize {
    at.next_multiple_of(ALIGNMENT)
}

/// The highest number of a resource manager that 13 to 18 have built in; 15 and later leave 128 and up to extensions.
///
/// Source: `src/include/access/rmgrlist.h`, `RmgrIdIsValid` in `src/include/access/rmgr.h`.
const LAST_RESOURCE_MANAGER: u8 = 21;

/// Returns whether the record is the one that declares the record begun at `lost` void.
fn voids(record: &Record<'_>, lost: Lsn) -> bool {
    const OVERWRITE_CONTRECORD: u8 = 0xD0;
    let named = record.body().ok().filter(|body| body.main.len() >= 8).map(|body| u64_at(body.main, 0));
    record.resource_manager == 0 && record.kind() == OVERWRITE_CONTRECORD && named == Some(lost.bytes())
}

#[cfg(test)]
mod tests;
