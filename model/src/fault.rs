//! Faults to plant: each takes away one rule that the protocol rests on. A model that is worth its name finds a
//! way to break a promise with any of them. They exist here alone, never in the product.

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident => $model:literal,)*) => {
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
        }
    };
}

faults! {
    /// A resumed claim is answered without a write, so that its revision does not move.
    ResumeWithoutWrite => "unlapsed",
    /// A claim that nobody received is given back by its token, whatever its revision is by then.
    ReleaseWithoutRevision => "unlapsed",
    /// Complete does not compare the token.
    CompleteWithoutToken => "claims",
    /// The revision is compared when the record is read, and not again when it is written.
    CheckThenWrite => "unlapsed",
    /// After an unknown outcome, a record with the caller's request id is taken for the caller's own write.
    RecognisedByRequestId => "unlapsed",
    /// A resumed claim is given back, too, when its answer is dropped.
    ResumedClaimGivenBack => "unlapsed",
    /// Who waits in the room with the same request id gets the claim that another call's write armed.
    ClaimSharedInRoom => "unlapsed",
    /// A claim is still given back when the connection drops after the answer has left.
    GuardAfterDelivery => "unlapsed",
    /// The server's own clock says whether a lock has lapsed.
    LapseByServerClock => "unlapsed",
    /// After an unknown outcome, Renew takes a record with its token for its own write.
    RenewRecognisedByToken => "claims",
    /// The lease of a lock is chosen when the call arrives, and kept when it is decided anew.
    OlderLeaseKept => "claims",
    /// A caller begins anew with the request id of the claim that it released.
    SameIdAfterRelease => "releases",
    /// A record may expire while its lock is held.
    HeldRecordExpires => "claims",
    /// Tokens count the claims of one life of a key, and so begin anew with the next.
    TokenPerKey => "claims",
    /// A cache takes in what was read before the purge that it has already done.
    CacheInsertAfterPurge => "cache",
    /// Records that are held for an operator expire like others.
    HoldExpires => "hold",

    /// Renew saves any checkpoint, also one that is older than what is there.
    CheckpointWithoutSequence => "checkpoints",
    /// Delete does not compare the token.
    DeleteWithoutToken => "operators",
    /// Resolve does not compare the token.
    ResolveWithoutToken => "operators",
    /// A call is told what a read found that was sent before the call arrived.
    ReadSentBeforeArrival => "rooms",
    /// When one write of a flat batch loses, all are told that they lost.
    LossFailsNeighbours => "batches",
    /// A batch takes two writes of one key.
    KeyTwiceInBatch => "batches",
    /// A batch of unknown outcome is reported as lost.
    UnknownReportedAsLost => "batches",
    /// The embedded store takes every lock for lapsed when it starts.
    LocksLostAtStart => "restarts",
    /// The embedded store counts locks by a wall clock.
    LocksByWallClock => "restarts",
    /// The embedded store counts retention by a wall clock.
    RetentionByWallClock => "restarts",
    /// The embedded store answers a write before it is durable.
    AnsweredBeforeDurable => "restarts",
    /// Delete and its marker are written one after the other.
    MarkerApart => "cache",
    /// A cache counts its freshness from when the marker's read was answered.
    FreshFromAnswer => "cache",
    /// A cache serves what has expired.
    ServedPastExpiry => "cache",
}
