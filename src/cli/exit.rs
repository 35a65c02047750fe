//! How commands exit, for scripts.

use onced_client::{Begun, Code, Error, ErrorReason, Record};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    InProgress = 3,
    InDoubt = 4,
    NotFound = 5,
    ClaimLost = 6,
    Conflict = 7,
    Unavailable = 8,
    Available = 9,
    Completed = 10,
    NoRoom = 11,
    NotAllowed = 12,
}

/// What `--help` says of the codes. `exec` has its own.
pub const HELP: &str = "\
Exit codes (exec has its own, see onced exec --help):
   0  done; for begin: the claim is yours; for lookup and watch: the key is completed
   1  failed: a fault of the server, of its store or of this program
   2  bad usage, or an argument that the server refused
   3  in progress: somebody else holds the key
   4  in doubt: nobody may run the key until it is resolved
   5  no record of the key
   6  claim lost: taken over, settled or deleted
   7  conflict: the key was used for another request, has another outcome, or is held
   8  unavailable: no answer in time; the same command can be repeated
   9  available (lookup): nobody holds the key, and it has no outcome
  10  completed (begin): the key has its outcome, which is printed
  11  no room in the store or for the namespace
  12  not allowed";

impl Exit {
    /// The process's exit code.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// How a Begin that was answered so ends.
    pub fn of_begun(begun: &Begun) -> Self {
        match begun {
            Begun::Claim(_) => Exit::Done,
            Begun::Completed(_) => Exit::Completed,
            Begun::InProgress(_) => Exit::InProgress,
            Begun::InDoubt(_) => Exit::InDoubt,
        }
    }

    /// How a Lookup that was answered so ends.
    pub fn of_record(record: &Record) -> Self {
        match record {
            Record::Completed(_) => Exit::Done,
            Record::InProgress(_) => Exit::InProgress,
            Record::InDoubt(_) => Exit::InDoubt,
            Record::Available(_) => Exit::Available,
        }
    }

    /// How a call that failed so ends.
    pub fn of_error(error: &Error) -> Self {
        let Some(refusal) = error.refusal() else {
            return match error {
                Error::ServerInvalid { .. }
                | Error::CredentialsInvalid(_)
                | Error::OutcomeTooLarge { .. } => Exit::Usage,
                _ => Exit::Failed,
            };
        };
        if error.is_unavailable() {
            return Exit::Unavailable;
        }
        match (refusal.code, refusal.reason) {
            (_, Some(ErrorReason::ClaimLost)) => Exit::ClaimLost,
            (Code::InvalidArgument | Code::OutOfRange, _) => Exit::Usage,
            (Code::NotFound, _) => Exit::NotFound,
            (Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted, _) => Exit::Conflict,
            (Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled, _) => Exit::Unavailable,
            (Code::ResourceExhausted, _) => Exit::NoRoom,
            (Code::Unauthenticated | Code::PermissionDenied, _) => Exit::NotAllowed,
            (Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss, _) => {
                Exit::Failed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_code() {
        for code in Exit::Done.code()..=Exit::NotAllowed.code() {
            assert!(HELP.lines().any(|line| line.starts_with(&format!("{code:>4}  "))), "{code}");
        }
    }
}
