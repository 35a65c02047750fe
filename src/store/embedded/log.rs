//! The log: every commit is one frame, appended and synced before it is answered.
//!
//! It has two halves, each a file that is written from its beginning over what it held before. While the rows
//! of one half are being moved to the tree, the other one is written. A frame is
//!
//! | bytes | |
//! |---|---|
//! | 4 | a CRC-32 of all that follows |
//! | 4 | how many bytes follow this field |
//! | 8 | the generation: one more each time the half is changed |
//! | 8 | its salt, drawn by lot |
//! | 8, 8 | the last revision before this commit, and the last one in it |
//! | 8 | the running time in milliseconds |
//! | the rest | rows: the lengths of name and value (2, 4; 2³² - 1: removed), name and value |
//!
//! Numbers are big-endian. A frame that was cut or torn fails its sum; it was the last one, and nobody was
//! answered. What an earlier generation left behind it has another salt, and so has what a caller may have made
//! up to look like a frame.

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use std::io;
use std::path::Path;

use redb::StorageBackend;

use super::OpenError;
use super::layout::Counters;
use super::recent::RowMap;
use crate::store::Revision;

const SUM: usize = 4;
const HEAD: usize = 48;
const REMOVED: u32 = u32::MAX;
/// The last generation, revision and running time that are believed. None comes so far.
const LAST: u64 = u64::MAX / 2;
/// A file grows in steps of this many bytes.
const GROWTH: u64 = 1 << 20;

/// The names of the halves.
pub(super) const FILES: [&str; 2] = ["onced.log.0", "onced.log.1"];

/// Storage for one half.
pub(super) type Half = Box<dyn StorageBackend>;

pub(super) struct Log {
    halves: [Half; 2],
    generation: u64,
    salt: u64,
    /// Where the next frame goes.
    end: u64,
    /// The frame being made.
    frame: Vec<u8>,
}

/// What a log was found to hold.
pub(super) struct Found {
    /// The counters after the last commit.
    pub counters: Counters,
    pub rows: RowMap,
}

impl Log {
    /// Reads what was committed after `counters`, and goes on in a generation of its own once that has been
    /// made safe. `directory` is for errors alone.
    pub(super) fn open(
        halves: [Half; 2],
        counters: Counters,
        directory: &Path,
    ) -> Result<(Self, Found), OpenError> {
        let mut generations = Vec::new();
        for (half, name) in halves.iter().zip(FILES) {
            let bytes = read(half).map_err(|error| OpenError::Io(directory.join(name), error))?;
            generations.push(frames(&bytes).map_err(|why| OpenError::Damaged(directory.join(name), why))?);
        }
        generations.sort_by_key(|frames| frames.generation);
        let mut found = Found { counters, rows: RowMap::new() };
        let generation = generations.iter().map(|frames| frames.generation).max().unwrap_or_default();
        for frame in generations.into_iter().flat_map(|frames| frames.frames) {
            found.counters.running_ms = found.counters.running_ms.max(frame.counters.running_ms);
            if frame.counters.revision <= counters.revision {
                continue;
            }
            if frame.before != found.counters.revision {
                let why = "a part of the log is missing".to_owned();
                return Err(OpenError::Damaged(directory.to_owned(), why));
            }
            found.counters.revision = frame.counters.revision;
            found.rows.extend(frame.rows);
        }
        // What would be committed after that could not be read again.
        if [generation, found.counters.revision.0, found.counters.running_ms]
            .iter()
            .any(|&count| count >= LAST)
        {
            let why = "its counters are at their end".to_owned();
            return Err(OpenError::Damaged(directory.to_owned(), why));
        }
        let mut log = Self { halves, generation, salt: 0, end: 0, frame: Vec::new() };
        log.change_half();
        Ok((log, found))
    }

    /// Begins a frame, in place of one that was not committed.
    pub(super) fn begin(&mut self) {
        self.frame.clear();
        self.frame.resize(HEAD, 0);
    }

    /// Adds a row to the frame.
    pub(super) fn put(&mut self, row: &[u8], value: Option<&[u8]>) {
        // A row is some hundred bytes long, and a value a little over a mebibyte.
        self.frame.extend_from_slice(&u16::try_from(row.len()).unwrap_or(u16::MAX).to_be_bytes());
        let length = value.map_or(REMOVED, |value| u32::try_from(value.len()).unwrap_or(REMOVED));
        self.frame.extend_from_slice(&length.to_be_bytes());
        self.frame.extend_from_slice(row);
        self.frame.extend_from_slice(value.unwrap_or_default());
    }

    /// Appends the frame. Durable once this returns.
    pub(super) fn commit(&mut self, before: Counters, after: Counters) -> io::Result<()> {
        let length = u32::try_from(self.frame.len() - 8).map_err(io::Error::other)?;
        let head = [
            u64::from(length).to_be_bytes(),
            self.generation.to_be_bytes(),
            self.salt.to_be_bytes(),
            before.revision.0.to_be_bytes(),
            after.revision.0.to_be_bytes(),
            after.running_ms.to_be_bytes(),
        ];
        self.frame[..HEAD].copy_from_slice(head.as_flattened());
        let sum = crc32fast::hash(&self.frame[SUM..]);
        self.frame[..SUM].copy_from_slice(&sum.to_be_bytes());

        let half = &self.halves[(self.generation % 2) as usize];
        let end = self.end + self.frame.len() as u64;
        if half.len()? < end {
            half.set_len(end.next_multiple_of(GROWTH))?;
        }
        half.write(self.end, &self.frame)?;
        half.sync_data()?;
        self.end = end;
        Ok(())
    }

    /// How many bytes the half that is written holds.
    pub(super) fn bytes(&self) -> u64 {
        self.end
    }

    /// Changes to the other half. What that holds must be in the tree, durably.
    pub(super) fn change_half(&mut self) {
        self.generation += 1;
        self.salt = uuid::Uuid::new_v4().as_u64_pair().0;
        self.end = 0;
    }
}

/// The name of a row and what it holds.
type Entry<'a> = (&'a [u8], Option<&'a [u8]>);

#[derive(Default)]
struct Frames {
    generation: u64,
    frames: Vec<Frame>,
}

struct Frame {
    generation: u64,
    salt: u64,
    before: Revision,
    counters: Counters,
    rows: RowMap,
}

fn read(half: &Half) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(half.len()?).map_err(io::Error::other)?];
    half.read(0, &mut bytes)?;
    Ok(bytes)
}

/// The frames of a half, up to the first that is none of its generation. Each goes on where the last one ended.
fn frames(mut bytes: &[u8]) -> Result<Frames, String> {
    let mut found = Frames::default();
    let mut first = None;
    while let Some((frame, rest)) = frame(bytes, first)? {
        let last = found.frames.last().map_or(frame.before, |last| last.counters.revision);
        if frame.before != last || frame.counters.revision < frame.before {
            return Err("a frame of the log does not follow on the one before it".to_owned());
        }
        first = Some((frame.generation, frame.salt));
        found.generation = frame.generation;
        found.frames.push(frame);
        bytes = rest;
    }
    Ok(found)
}

/// The first frame, if it is whole and of this generation and salt, and what follows it.
fn frame(bytes: &[u8], wanted: Option<(u64, u64)>) -> Result<Option<(Frame, &[u8])>, String> {
    let Some((sum, summed)) = bytes.split_first_chunk::<SUM>() else { return Ok(None) };
    let Some((length, rest)) = summed.split_first_chunk::<4>() else { return Ok(None) };
    let Some((body, rest)) = rest.split_at_checked(u32::from_be_bytes(*length) as usize) else {
        return Ok(None);
    };
    let Some((head, mut body)) = body.split_at_checked(HEAD - 8) else { return Ok(None) };
    let number = |index: usize| {
        head.as_chunks::<8>().0.get(index).map(|bytes| u64::from_be_bytes(*bytes)).unwrap_or_default()
    };
    let (generation, salt) = (number(0), number(1));
    // Before any sense is looked for: what is not of this generation may be what a caller made up.
    if wanted.is_some_and(|wanted| wanted != (generation, salt))
        || crc32fast::hash(&summed[..4 + head.len() + body.len()]) != u32::from_be_bytes(*sum)
    {
        return Ok(None);
    }
    let broken = || "a frame of the log makes no sense".to_owned();
    if [generation, number(3), number(4)].iter().any(|&count| count > LAST) {
        return Err(broken());
    }
    let mut rows = RowMap::new();
    while !body.is_empty() {
        let ((row, value), left) = entry(body).ok_or_else(broken)?;
        rows.insert(row.to_vec(), value.map(|value| value.to_vec().into()));
        body = left;
    }
    let counters = Counters { revision: Revision(number(3)), running_ms: number(4) };
    Ok(Some((Frame { generation, salt, before: Revision(number(2)), counters, rows }, rest)))
}

/// The first row in the rest of a frame, and what follows it.
fn entry(bytes: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let (row, bytes) = bytes.split_first_chunk::<2>()?;
    let (value, bytes) = bytes.split_first_chunk::<4>()?;
    let (row, bytes) = bytes.split_at_checked(usize::from(u16::from_be_bytes(*row)))?;
    match u32::from_be_bytes(*value) {
        REMOVED => Some(((row, None), bytes)),
        length => {
            let (value, bytes) = bytes.split_at_checked(length as usize)?;
            Some(((row, Some(value)), bytes))
        }
    }
}
