//! Faults to plant: each takes away one rule that the protocol rests on. A model that is worth its name finds a
//! way to break the promise that rests on that rule. They exist here alone, never in the product.

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident => $model:literal breaks $promise:literal,)*) => {
        /// A rule that is not kept.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Fault {
            $($(#[$doc])* $fault,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Fault] = &[$(Fault::$fault),*];

            /// The model that finds it at its small size.
            pub const fn found_by(self) -> &'static str {
                match self {
                    $(Fault::$fault => $model,)*
                }
            }

            /// The promise that it breaks there.
            pub const fn breaks(self) -> &'static str {
                match self {
                    $(Fault::$fault => $promise,)*
                }
            }
        }
    };
}

faults! {
    /// A resumed claim is answered without a write, so that its revision does not move.
    ResumeWithoutWrite => "unlapsed" breaks "no two claims live",
    /// A claim that nobody received is given back by its token, whatever its revision is by then.
    ReleaseWithoutRevision => "unlapsed" breaks "no two claims live",
    /// Complete does not compare the token.
    CompleteWithoutToken => "claims" breaks "a stale holder completes nothing",
    /// The revision is compared when the record is read, and not again when it is written.
    CheckThenWrite => "unlapsed" breaks "at most one token completes",
    /// After an unknown outcome, a record with the caller's request id is taken for the caller's own write.
    RecognisedByRequestId => "unlapsed" breaks "who counts its lock as held holds the key",
    /// A resumed claim is given back, too, when its answer is dropped.
    ResumedClaimGivenBack => "unlapsed" breaks "no two claims live",
    /// Who waits in the room with the same request id gets the claim that another call's write armed.
    ClaimSharedInRoom => "unlapsed" breaks "who counts its lock as held holds the key",
    /// A claim is still given back when the connection drops after the answer has left.
    GuardAfterDelivery => "unlapsed" breaks "at most one claim of a request id lives",
    /// The server's own clock says whether a lock has lapsed.
    LapseByServerClock => "unlapsed" breaks "at most one claim of a request id lives",
    /// After an unknown outcome, Renew takes a record with its token for its own write.
    RenewRecognisedByToken => "claims" breaks "who counts its lock as held holds the key",
    /// The lease of a lock is chosen when the call arrives, and kept when it is decided anew.
    OlderLeaseKept => "claims" breaks "who counts its lock as held holds the key",
    /// A caller begins anew with the request id of the claim that it released.
    SameIdAfterRelease => "releases" breaks "no two claims live",
    /// A record may expire while its lock is held.
    HeldRecordExpires => "claims" breaks "who counts its lock as held holds the key",
    /// Tokens count the claims of one life of a key, and so begin anew with the next.
    TokenPerKey => "claims" breaks "tokens strictly increase",
    /// Records that are held for an operator expire like others.
    HoldExpires => "hold" breaks "what is in doubt is not run again",
    /// Complete takes any outcome that it finds for its own.
    AnyOutcomeIsOwn => "claims" breaks "no other outcome is acknowledged",
    /// Begin takes over a completed record.
    OutcomeTakenOver => "unlapsed" breaks "at most one token completes",

    /// Renew saves any checkpoint, also one that is older than what is there.
    CheckpointWithoutSequence => "checkpoints" breaks "a checkpoint never goes back",
    /// Delete does not compare the token.
    DeleteWithoutToken => "operators" breaks "an acknowledged outcome stays",
    /// Resolve does not compare the token.
    ResolveWithoutToken => "operators" breaks "what is in doubt is not run again",
    /// A call is told what a read found that was sent before the call arrived.
    ReadSentBeforeArrival => "rooms" breaks "who is told to wait, or that there is nothing, is told what stood since it came",
    /// When one write of a flat batch loses, all are told that they lost.
    LossFailsNeighbours => "batches" breaks "who lost lost to another write",
    /// A batch takes two writes of one key.
    KeyTwiceInBatch => "batches" breaks "a transaction names no key twice",
    /// When etcd refuses a batch for a lease that has ended, all of its writes fail.
    EndedLeaseFailsBatch => "batches" breaks "a write fails for no other's sake",
    /// When a nested batch has landed, all are told that they were written.
    DoneIsSharedInBatch => "batches" breaks "what is told to be done is done",
    /// A batch of unknown outcome is reported as lost.
    UnknownReportedAsLost => "batches" breaks "what is told to have lost is not written",
    /// The embedded store takes every lock for lapsed when it starts.
    LocksLostAtStart => "restarts" breaks "who counts its lock as held holds the key",
    /// The embedded store counts locks by a wall clock.
    LocksByWallClock => "restarts" breaks "who counts its lock as held holds the key",
    /// The embedded store counts retention by a wall clock.
    RetentionByWallClock => "restarts" breaks "an acknowledged outcome is there for its retention",
    /// The embedded store answers a write before it is durable.
    AnsweredBeforeDurable => "restarts" breaks "an acknowledged outcome is there for its retention",
}
