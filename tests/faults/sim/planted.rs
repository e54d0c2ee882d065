//! Bugs planted on purpose, one at a time: a simulation that does not find them proves nothing. They
//! stand where a shell calls the pure parts or the store, as they would in the real ones.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumIter)]
pub(crate) enum Bug {
    AckBeforePersist,
    AnswerBeforeFsync,
    CursorPastGap,
    AppendTwice,
    ForwarderForgetsOnSend,
    ResumeFromTheEnd,
    WrongTenant,
    OldSessionKeepsLease,
    CreditIgnored,
    LostWakeUp,
    AttemptBeforeItsTime,
    AttemptAfterDeadline,
    ExpiresByAJumpedClock,
    TurnWaitsForTheClock,
    RetryAfterSent,
    RetryAfterUndercut,
    ReleaseBreaksHold,
    BackoffOvershoots,
    BackoffUndercut,
    HandoffAgainAndAgain,
    AttemptNumberStartsOver,
    DoubleClaim,
    WindowIgnored,
    RateIgnored,
    SlotNeverGivenBack,
    BreakerNeverProbes,
    RetriesWhatIsRejected,
    GivesUpOnTimeouts,
    SentWithoutAnAnswer,
    BodyTrimmed,
    RepeatedHeadersMerged,
    ReplayReusesTheDelivery,
    CountsDrift,
    /// The disk's own: only the real store can show it.
    SyncForgotten,
}
