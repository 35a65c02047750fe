//! The slow sweep for expired records. They are absent before it comes by: it only makes room.

use bytes::Bytes;

use super::layout::{self, Row};
use super::reads::Data;
use super::recent::RowMap;
use super::times::expired_by;
use crate::store::Revision;
use crate::store::encoding;

/// The most rows that one step looks at, and how much it reads, in bytes: outcomes may be large.
const STEP_ROWS: usize = 1_024;
const STEP_BYTES: usize = 2 << 20;
/// At least so many steps are made each time.
const STEPS_MIN: usize = 4;
/// Beyond them it looks at so many times what is written: so it comes round before that has become as much again as what is
/// stored, and what expired cannot pile up, however fast records come.
const TIMES_WRITTEN: usize = 2;

/// Goes round all records, a step at a time.
#[derive(Default)]
pub(super) struct Sweep {
    /// The row where the last step ended.
    last: Option<Vec<u8>>,
}

/// What a step saw.
#[derive(Default)]
pub(super) struct Seen {
    /// The expired, with the revision each was written at.
    pub expired: Vec<(Vec<u8>, Revision)>,
    /// It came to the last record.
    pub is_round: bool,
    rows: usize,
    bytes: usize,
}

/// How much is to be looked at.
pub(super) struct Quota {
    rows: usize,
    bytes: usize,
    /// The share of the rows that has been, and that of the bytes. Both count: where small rows lie together, and large
    /// ones, only one of them is made use of at a time.
    used: f64,
}

impl Quota {
    /// That which goes with what is written.
    pub(super) fn beside(written: &RowMap) -> Self {
        let size =
            |(row, value): (&Vec<u8>, &Option<Bytes>)| row.len() + value.as_ref().map_or(0, Bytes::len);
        let bytes: usize = written.iter().map(size).sum();
        Self {
            rows: (TIMES_WRITTEN * written.len()).max(STEPS_MIN * STEP_ROWS),
            bytes: (TIMES_WRITTEN * bytes).max(STEPS_MIN * STEP_BYTES),
            used: 0.0,
        }
    }

    /// Whether nothing is left of it.
    pub(super) fn is_used_up_by(&mut self, seen: &Seen) -> bool {
        self.used += seen.rows as f64 / self.rows as f64 + seen.bytes as f64 / self.bytes as f64;
        self.used >= 2.0
    }
}

impl Sweep {
    /// Looks at the next rows. Expired is what was to be kept until this running time.
    pub(super) fn next(&mut self, data: &Data, running_ms: u64) -> Result<Seen, redb::Error> {
        let table = data.table()?;
        let range = layout::all_rows(self.last.as_deref());
        let range = (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice));
        let mut seen = Seen { is_round: true, ..Seen::default() };
        let mut last = None;
        for entry in table.range::<&[u8]>(range)? {
            let (row, value) = entry?;
            seen.bytes += row.value().len() + value.value().len();
            seen.rows += 1;
            // What cannot be read is kept: for a newer onced, or for whoever looks into it.
            if let Ok(found) = Row::parse(value.value())
                && encoding::decode_keep_until_ms(found.stored)
                    .is_ok_and(|until| expired_by(until, running_ms))
            {
                seen.expired.push((row.value().to_vec(), found.revision));
            }
            if seen.rows >= STEP_ROWS || seen.bytes >= STEP_BYTES {
                last = Some(row.value().to_vec());
                seen.is_round = false;
                break;
            }
        }
        self.last = last;
        Ok(seen)
    }
}
