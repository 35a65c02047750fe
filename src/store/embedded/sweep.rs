//! The slow sweep for expired records. They are absent before it comes by: it only makes room.

use bytes::Bytes;

use super::layout::{self, Row};
use super::reads::Data;
use super::recent::RowMap;
use crate::store::Revision;
use crate::store::encoding;

/// How many rows one step looks at where little is written.
const STEP_ROWS: usize = 4_096;
/// How much it reads then, in bytes: outcomes may be large.
const STEP_BYTES: usize = 8 << 20;
/// Else it looks at so many times what is written. So it has come round before what is stored has grown by half, and what
/// expired cannot pile up, however fast records come.
const TIMES_WRITTEN: usize = 2;

/// Goes round all records, a step at a time.
#[derive(Default)]
pub(super) struct Sweep {
    /// The row where the last step ended.
    last: Option<Vec<u8>>,
}

impl Sweep {
    /// The expired among the next rows, with the revision each was written at. How many it looks at goes by what is
    /// being written.
    pub(super) fn next(
        &mut self,
        data: &Data,
        written: &RowMap,
    ) -> Result<Vec<(Vec<u8>, Revision)>, redb::Error> {
        let rows_max = STEP_ROWS.max(TIMES_WRITTEN * written.len());
        let written_bytes: usize = written.values().flatten().map(Bytes::len).sum();
        let bytes_max = STEP_BYTES.max(TIMES_WRITTEN * written_bytes);
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
            if rows >= rows_max || bytes >= bytes_max {
                last = Some(row.value().to_vec());
                break;
            }
        }
        self.last = last;
        Ok(expired)
    }
}

#[cfg(test)]
mod tests {
    use redb::ReadableTableMetadata as _;
    use redb::backends::InMemoryBackend;

    use super::super::layout::Counters;
    use super::super::mover::{self, Pace};
    use super::super::recent::Recent;
    use super::super::times::Times;
    use super::super::{open, tests};
    use super::*;
    use crate::clock::{Clock, Moment};
    use crate::store::encoding::Placement;

    #[test]
    fn what_expired_does_not_pile_up_however_fast_records_come() {
        const WRITTEN: usize = 2 * STEP_ROWS;
        let clock = Clock::from_fn(|| Moment::from_start(std::time::Duration::ZERO));
        let database = open::on_backend(InMemoryBackend::new()).unwrap();
        // All that is written has expired at once.
        let times = Times::new(clock, Counters { running_ms: 1, ..Counters::NEW });
        let data = Data { database, recent: Recent::default(), times };
        let stored =
            encoding::encode(&tests::claim(), &Placement { keep_until_ms: 1, ..Placement::default() });
        let value = Bytes::from(Row { revision: Revision(1), stored: &stored }.to_value());
        let mut sweep = Sweep::default();
        let mut expired = Vec::new();
        for round in 0..8 {
            let name = |n| [&[1], format!("tests\0{n:06} of round {round}").as_bytes()].concat();
            let written: RowMap = (0..WRITTEN).map(|n| (name(n), Some(value.clone()))).collect();
            mover::write(&data.database, Counters::NEW, &expired, &written, &Pace::Alone).unwrap();
            expired = sweep.next(&data, &written).unwrap();
            let rows = data.table().unwrap().len().unwrap();
            assert!(rows < 4 * WRITTEN as u64, "{rows} rows after {} times {WRITTEN}", round + 1);
        }
    }
}
