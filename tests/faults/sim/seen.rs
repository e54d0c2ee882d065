//! What a campaign has come across. A point that no seed reached was not tested, so a campaign that
//! misses one fails.

use std::ops::AddAssign;

use strum::EnumCount;

/// Something worth reaching: where a crash fell, a frame that arrived, a transition, a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumCount, strum::EnumIter)]
pub(crate) enum Point {
    CrashWithPostUnwritten,
    CrashWithPostUnanswered,
    CrashWithAckUnwritten,
    CrashWithEventsUnacked,
    CrashWithEventsUnpersisted,
    CrashWithAppendUnheard,
    CrashBeforeRequest,
    CrashAfterRequest,
    CrashWithVerdictUnwritten,
    CrashWithVerdictUnheard,
    CrashWithEndpointUnwritten,
    BegunOffline,
    CrashWithReplayUnwritten,
    CrashWhileIdle,
    FrameHello,
    FrameWelcome,
    FrameReplaced,
    FrameEvents,
    FrameAck,
    BreachGap,
    BreachOther,
    FrameLost,
    FrameDoubled,
    FramesSwapped,
    LinkCut,
    DialFailed,
    SilenceNoticed,
    CreditUsedUp,
    SentAtOnce,
    SentAfterFailures,
    Stalled,
    Held,
    HandedOver,
    DeadRejected,
    DeadDeadline,
    DeadAttempts,
    ExpiredWhileOffline,
    Offline,
    Failing,
    Online,
    Returned,
    RecalledBackoff,
    TriedWhileAway,
    ProbeRefused,
    ProbeClosed,
    ProbeOpen,
    SlotsFull,
    Paced,
    ReadFailed,
    AnswerDoubled,
    ChangeLost,
    StartedWithoutARead,
    StartedBesideARetry,
    AppendUnknown,
    AppendedAgain,
    WithdrawnWhileLoaded,
    WithdrawnInFlight,
    NotAsked,
    Unreadable,
    FifoHole,
    Paused,
    NodePaused,
    Reconfigured,
    Removed,
    StoppedInPeace,
    HurriedByAPerson,
    AnswerLost,
    TimedOut,
    Unreachable,
    ReplayBegun,
    ReplayHeld,
    OneOff,
    ReplaySent,
    Discarded,
    PassedOver,
    PassedOverHere,
    Routed,
    FirstInOrderTried,
    EventRemoved,
    BodyRemoved,
    ReceiptedRemoved,
    ReceiptedBodyRemoved,
    AppendedInParts,
    DuplicateAbsorbed,
    InUse,
    AgentPutBack,
    ForwarderPutBack,
    ForwarderPutBackWithMemory,
    AgentWentBack,
    ForwarderWentBack,
    WriteAbandoned,
    ClockForward,
    ClockBack,
    Slept,
    QueuedAheadOfTheClock,
}

/// How often each point was reached, and how much was done.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    points: [u64; Point::COUNT],
    pub(crate) lifetimes: u64,
    pub(crate) crashes: u64,
    pub(crate) steps: u64,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            points: [0; Point::COUNT],
            lifetimes: 0,
            crashes: 0,
            steps: 0,
        }
    }
}

impl Seen {
    pub(crate) fn note(&mut self, point: Point) {
        self.points[point as usize] += 1;
    }

    /// How often it was reached.
    pub(crate) fn times(&self, point: Point) -> u64 {
        self.points[point as usize]
    }
}

impl AddAssign<&Seen> for Seen {
    fn add_assign(&mut self, other: &Seen) {
        for (mine, theirs) in self.points.iter_mut().zip(&other.points) {
            *mine += theirs;
        }
        self.lifetimes += other.lifetimes;
        self.crashes += other.crashes;
        self.steps += other.steps;
    }
}
