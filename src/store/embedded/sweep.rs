//! The slow sweep for expired records. They are absent before it comes by: it only makes room.

use super::layout::{self, Row};
use super::reads::Data;
use crate::store::Revision;
use crate::store::encoding;

/// The most rows that one step looks at.
const STEP_ROWS_MAX: usize = 4_096;
/// The most that one step reads, in bytes: outcomes may be large.
const STEP_BYTES_MAX: usize = 8 << 20;

/// Goes round all records, a step at a time.
#[derive(Default)]
pub(super) struct Sweep {
    /// The row where the last step ended.
    last: Option<Vec<u8>>,
}

impl Sweep {
    /// The expired among the next rows, with the revision each was written at.
    pub(super) fn next(&mut self, data: &Data) -> Result<Vec<(Vec<u8>, Revision)>, redb::Error> {
        let table = data.table()?;
        let range = layout::all_rows(self.last.as_deref());
        let range = (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice));
        let mut expired = Vec::new();
        let (mut bytes, mut rows) = (0, 0);
        let mut last = None;
        for entry in table.range::<&[u8]>(range)? {
            let (row, value) = entry?;
            bytes += value.value().len();
            rows += 1;
            // What cannot be read is kept: for a newer onced, or for whoever looks into it.
            if let Ok(found) = Row::parse(value.value())
                && encoding::decode_keep_until_ms(found.stored)
                    .is_ok_and(|until| data.times.is_expired(until))
            {
                expired.push((row.value().to_vec(), found.revision));
            }
            if rows >= STEP_ROWS_MAX || bytes >= STEP_BYTES_MAX {
                last = Some(row.value().to_vec());
                break;
            }
        }
        self.last = last;
        Ok(expired)
    }
}
