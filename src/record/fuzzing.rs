//! What fuzzing enters here.

use super::Disposition;
use super::world::{Step, TokenChoice, play};

/// A history of one key: three bytes a step.
pub fn history(data: &[u8]) {
    let steps: Vec<Step> = data.as_chunks::<3>().0.iter().take(200).map(|bytes| step(*bytes)).collect();
    play(&steps);
}

fn step([what, which, how]: [u8; 3]) -> Step {
    let token = match which % 4 {
        0 | 1 => TokenChoice::Current,
        2 => TokenChoice::Earlier(usize::from(which / 4)),
        _ => TokenChoice::MadeUp(u64::from(which / 4)),
    };
    let response = if how % 2 == 0 { "one" } else { "two" };
    match what % 8 {
        0 => Step::Begin {
            caller: 1 + which % 3,
            fingerprint: [None, Some("red"), Some("blue")][usize::from(how / 2) % 3],
            hold: how % 2 == 1,
        },
        1 => Step::Complete { token, response },
        2 => Step::Renew { token, checkpoint: (how > 0).then(|| u64::from(how)) },
        3 => Step::Release {
            token,
            disposition: [Disposition::Retry, Disposition::InDoubt, Disposition::Unreceived]
                [usize::from(how) % 3],
        },
        4 => Step::Resolve { token, response: (how % 3 > 0).then_some(response) },
        5 => Step::Delete { token, force: how % 2 == 1 },
        6 => Step::Lapse,
        _ => Step::Expire,
    }
}

/// Histories to begin with: a claim that completes; one that lapses, is taken over, and saved to; one in doubt.
pub fn histories() -> Vec<Vec<u8>> {
    let (begin, begin_other, hold) = ([0, 0, 2], [0, 1, 2], [0, 0, 1]);
    let (complete, renew, release) = ([1, 0, 0], [2, 0, 7], [3, 0, 1]);
    let (resolve, delete, lapse, expire) = ([4, 0, 1], [5, 0, 1], [6, 0, 0], [7, 0, 0]);
    [
        &[begin, complete, complete, begin_other, expire, begin][..],
        &[begin, renew, lapse, begin_other, [1, 2, 0], renew, complete],
        &[hold, lapse, begin_other, resolve, begin, release, begin, delete, begin],
    ]
    .map(|steps| steps.concat())
    .into()
}
