//! The flags that say how deliveries are made: stored with each destination.

use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use whrelay_core::destination::{IN_FLIGHT, OptionKey, OptionSet};
use whrelay_core::duration;
use whrelay_core::order::Order;
use whrelay_core::outcome::RetryOn;
use whrelay_core::pace::Rate;
use whrelay_core::retry::Schedule;

/// How deliveries are made. What is given replaces what is stored of the destinations, what is not leaves it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Delivery (stored for each destination until it is given anew)")]
pub(crate) struct DeliveryArgs {
    /// Retry schedule: seconds (25 min), medium (16 h), long (30 d), or pauses such as 30s,5m,1h [default: medium]
    #[arg(long, env = "WHRELAY_SCHEDULE", value_parser = schedule)]
    schedule: Option<Schedule>,
    /// Time after which a delivery is given up; 0 for the schedule's own [default: 0]
    #[arg(long, env = "WHRELAY_DEADLINE", value_name = "DUR", value_parser = duration::parse)]
    deadline: Option<Duration>,
    /// Time from the first failure until retries become rare [default: 15m]
    #[arg(long, env = "WHRELAY_HANDOFF_AFTER", value_name = "DUR", value_parser = duration::parse)]
    handoff_after: Option<Duration>,
    /// Attempts after which a delivery is given up; 0 for no bound but the deadline [default: 0]
    #[arg(long, env = "WHRELAY_MAX_ATTEMPTS", value_name = "N")]
    max_attempts: Option<u32>,
    /// Answers that are tried again: transient (408, 425, 429, 5xx) or non-2xx [default: transient]
    #[arg(long, env = "WHRELAY_RETRY_ON", value_parser = retry_on())]
    retry_on: Option<RetryOn>,
    /// Time for one attempt; 0 for none, so that a breakpoint can wait [default: 30s]
    #[arg(long, env = "WHRELAY_TIMEOUT", value_name = "DUR", value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// Deliveries at once, for each destination: 1 to 1024 [default: 16]
    #[arg(long, env = "WHRELAY_MAX_IN_FLIGHT", value_name = "N", value_parser = max_in_flight)]
    max_in_flight: Option<usize>,
    /// Attempts in a second, minute or hour, for each destination: 10/s, 600/m, 100/h [default: no bound]
    #[arg(long, env = "WHRELAY_RATE", value_name = "N/UNIT")]
    rate: Option<Rate>,
    /// Order of deliveries, for each destination: arrival (a retry holds nobody up) or fifo (each waits until
    /// the one before it has ended) [default: arrival]
    #[arg(long, env = "WHRELAY_ORDER", value_parser = order())]
    order: Option<Order>,
    /// The options that a file sets: those of a single destination come before these.
    #[arg(skip)]
    pub(crate) from_file: Vec<OptionKey>,
}

impl DeliveryArgs {
    /// The options that were typed or set in the environment.
    pub(crate) fn typed(&self) -> OptionSet {
        let mut typed = self.all();
        self.from_file.iter().for_each(|key| typed.reset(*key));
        typed
    }

    /// The options that a file sets for all destinations.
    pub(crate) fn general(&self) -> OptionSet {
        let mut general = self.all();
        let others = OptionKey::ALL
            .into_iter()
            .filter(|key| !self.from_file.contains(key));
        others.for_each(|key| general.reset(key));
        general
    }

    fn all(&self) -> OptionSet {
        OptionSet {
            schedule: self.schedule.clone(),
            deadline: self.deadline,
            handoff_after: self.handoff_after,
            max_attempts: self.max_attempts,
            retry_on: self.retry_on,
            timeout: self.timeout,
            max_in_flight: self.max_in_flight,
            rate: self.rate,
            order: self.order,
        }
    }
}

pub(super) fn schedule(text: &str) -> Result<Schedule, String> {
    text.parse()
}

pub(super) fn max_in_flight(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| IN_FLIGHT.contains(count));
    let (least, most) = IN_FLIGHT.into_inner();
    count.ok_or_else(|| format!("write a number from {least} to {most}"))
}

pub(super) fn retry_on() -> impl TypedValueParser<Value = RetryOn> {
    let words = [RetryOn::Transient, RetryOn::NonSuccess].map(RetryOn::as_str);
    PossibleValuesParser::new(words).try_map(|word| word.parse::<RetryOn>())
}

pub(super) fn order() -> impl TypedValueParser<Value = Order> {
    let words = [Order::Arrival, Order::Fifo].map(Order::as_str);
    PossibleValuesParser::new(words).try_map(|word| word.parse::<Order>())
}
