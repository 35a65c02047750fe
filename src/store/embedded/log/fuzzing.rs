//! What fuzzing enters here.

use std::path::Path;

use redb::backends::InMemoryBackend;

use super::*;

const NOTHING_MOVED: Counters = Counters { revision: Revision(10), running_ms: 5 };

/// A log as a crash, or somebody, may leave it. The data tells of pieces: two bytes of length, the lowest bit of
/// which says whether the piece gets the head that makes a frame of it, and the second lowest which half it is in.
pub fn log(data: &[u8]) {
    let mut halves = [Vec::new(), Vec::new()];
    let mut rest = data;
    while let Some((length, left)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (piece, left) = left.split_at(left.len().min(length >> 2));
        let half = &mut halves[length >> 1 & 1];
        if length & 1 == 1 {
            let framed = [&u32::try_from(piece.len()).unwrap_or_default().to_be_bytes()[..], piece].concat();
            half.extend_from_slice(&crc32fast::hash(&framed).to_be_bytes());
            half.extend_from_slice(&framed);
        } else {
            half.extend_from_slice(piece);
        }
        rest = left;
    }
    let Ok((log, found)) = Log::open(halves.map(|bytes| filled(&bytes)), NOTHING_MOVED, Path::new("fuzzed"))
    else {
        return;
    };
    assert!(found.counters.revision >= NOTHING_MOVED.revision, "a revision went back");
    assert!(found.counters.running_ms >= NOTHING_MOVED.running_ms, "time went back");
    // After the last ones nothing is opened.
    if log.generation < LAST && found.counters.revision.0 + 1 < LAST {
        goes_on(log, found.counters);
    }
}

fn filled(bytes: &[u8]) -> Half {
    let half = InMemoryBackend::new();
    assert!(half.set_len(bytes.len() as u64).and_then(|()| half.write(0, bytes)).is_ok());
    Box::new(half)
}

/// Whatever was there, what is committed from here on is found again, and nothing else is taken for newer.
fn goes_on(mut log: Log, before: Counters) {
    let after = Counters { revision: Revision(before.revision.0 + 1), ..before };
    log.begin();
    log.put(b"row", Some(b"value"));
    log.put(b"gone", None);
    assert!(log.commit(before, after).is_ok());
    let Ok((_, found)) = Log::open(log.halves, before, Path::new("fuzzed")) else {
        panic!("what was committed cannot be read")
    };
    assert_eq!(found.counters, after);
    let mut rows: Vec<_> = found.rows.into_iter().collect();
    rows.sort();
    assert_eq!(rows, [(b"gone".to_vec(), None), (b"row".to_vec(), Some(b"value"[..].into()))]);
}

/// Logs to begin with: empty, of some commits in one half, of some in both, torn, of the last generation that is
/// gone on with and of two that are not, up to the last revision, and with commits that go far ahead and back.
pub fn logs() -> Vec<Vec<u8>> {
    let frame_to = |generation: u64, before: u64, after: u64| {
        let head = [generation, generation.wrapping_mul(77), before, after, 100 + before];
        let rows = [&[0, 3, 0, 0, 0, 5][..], b"rowvalue", &[0, 4, 0xff, 0xff, 0xff, 0xff], b"gone"].concat();
        [head.map(u64::to_be_bytes).as_flattened(), &rows].concat()
    };
    let frame = |generation, before| frame_to(generation, before, before + 1);
    let piece = |bytes: &[u8], half: usize, framed: bool| {
        let length = bytes.len() << 2 | half << 1 | usize::from(framed);
        [&u16::try_from(length).unwrap_or_default().to_be_bytes()[..], bytes].concat()
    };
    let (one, two, three) = (frame(1, 10), frame(1, 11), frame(2, 12));
    let (far, back) = (frame_to(1, 10, 1_000), frame_to(3, 1_000, 12));
    vec![
        Vec::new(),
        [piece(&one, 1, true), piece(&two, 1, true)].concat(),
        [piece(&one, 1, true), piece(&two, 1, true), piece(&three, 0, true)].concat(),
        [piece(&one, 1, true), piece(&two[..50], 1, true), piece(&three, 0, false)].concat(),
        piece(&frame(LAST - 2, 10), 1, true),
        piece(&frame(LAST, 10), 1, true),
        piece(&frame(LAST + 1, 10), 1, true),
        piece(&frame_to(1, 10, LAST), 1, true),
        [piece(&far, 1, true), piece(&back, 0, true)].concat(),
    ]
}
