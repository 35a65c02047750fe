//! The slow sweep for expired records. They are absent before it comes by: it only makes room.

use bytes::Bytes;

use super::layout::{self, Row};
use super::reads::Data;
use super::recent::RowMap;
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
                    .is_ok_and(|until| until != 0 && until <= running_ms)
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
        // More than the least that is looked at: by rows, and by bytes, of which the names have more than the values.
        grows_no_further(8, 3 * STEPS_MIN * STEP_ROWS, 16);
        grows_no_further(7, 10 * STEPS_MIN * STEP_ROWS, 480);
    }

    fn grows_no_further(rounds: usize, written: usize, name: usize) {
        let database = open::on_backend(InMemoryBackend::new()).unwrap();
        let clock = Clock::from_fn(|| Moment::from_start(std::time::Duration::ZERO));
        let times = Times::new(clock, Counters::NEW);
        let data = Data { database, recent: Recent::default(), times };
        let stored =
            encoding::encode(&tests::claim(), &Placement { keep_until_ms: 1, ..Placement::default() });
        let value = Bytes::from(Row { revision: Revision(1), stored: &stored }.to_value());
        let mut sweep = Sweep::default();
        for round in 0..rounds {
            let name = |n| [&[1], format!("tests\0{n:0name$} {round}").as_bytes()].concat();
            let load: RowMap = (0..written).map(|n| (name(n), Some(value.clone()))).collect();
            mover::write(&data.database, Counters::NEW, &load, &Pace::Alone).unwrap();
            let rows = data.table().unwrap().len().unwrap();
            assert!(rows <= 2 * written as u64, "{rows} rows after {} times {written}", round + 1);
            assert!(Sweep::default().next(&data, 0).unwrap().expired.is_empty(), "they are kept until 1");
            let mut quota = Quota::beside(&load);
            loop {
                // All that is written has expired at once.
                let seen = sweep.next(&data, 1).unwrap();
                mover::remove(&data.database, &seen.expired, &Pace::Alone).unwrap();
                if quota.is_used_up_by(&seen) || seen.is_round {
                    break;
                }
            }
        }
    }
}
