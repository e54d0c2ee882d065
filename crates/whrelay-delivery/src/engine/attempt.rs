//! One attempt: the event is loaded, tried once, and the verdict recorded.

use std::time::Instant;

use whrelay_core::delivery::{Asked, Attempt, DeadReason, Delivery, DeliveryKey, Signature, Step};
use whrelay_core::event::Event;
use whrelay_core::limits;
use whrelay_core::outcome::Outcome;
use whrelay_core::retry::{DeliveryHistory, Jitter, decide};
use whrelay_store::{SignatureClaim, StoreError, persist};

use super::{Engine, Finished, Notice};
use crate::destination::Settings;
use crate::http::{Client, Reply};
use crate::repair::{Repair, repair};
use crate::signatures::Attested;

/// What is told of a delivery whose time is up.
const EXPIRED: &str = "the deadline has passed: not tried again";
/// What is told of an event that is not delivered for its signature.
const UNVERIFIED: &str = "its signature does not verify: not delivered (--unverified dead)";

impl Engine {
    pub(super) async fn attempt(&self, key: DeliveryKey) -> Result<Finished, StoreError> {
        let loaded = match self.load(key) {
            Ok(loaded) => loaded,
            Err(error @ StoreError::Broken(_)) => return Err(error),
            Err(StoreError::Damaged(what)) => return self.fetch_again(key, &what).await,
            Err(
                StoreError::Full | StoreError::Bound | StoreError::Share | StoreError::Reopening,
            ) => {
                tokio::time::sleep(limits::REOPEN_EVERY).await;
                return Ok(Finished::untried(key));
            }
        };
        let Some((delivery, event)) = loaded else {
            persist(|| self.store.forget(key)).await?;
            return Ok(Finished::untried(key));
        };
        let settings = self.settings();
        let asked = match delivery.step(self.clock.moment().certain) {
            Step::Expire => {
                let expired = (DeadReason::Deadline, EXPIRED);
                let given_up = self.give_up(&settings, (&delivery, &event), expired, None);
                given_up.await?;
                None
            }
            Step::Attempt(history) => {
                let attempt = self.try_once(&settings, (&delivery, &event), history);
                Some((attempt.await?, settings))
            }
        };
        Ok(Finished { key, asked })
    }

    /// What to deliver; `None` where nothing waits under this key.
    fn load(&self, key: DeliveryKey) -> Result<Option<(Delivery, Event)>, StoreError> {
        let delivery = self.store.delivery(key)?;
        if delivery.as_ref().is_some_and(|d| d.state.is_finished()) {
            return Ok(None);
        }
        let event = self.store.event_at(&self.settings().bucket, key.seq)?;
        match (delivery, event) {
            (Some(delivery), Some(event)) if event.removed_body.is_none() => {
                Ok(Some((delivery, event)))
            }
            (None, None) => Ok(None),
            (Some(_), Some(_) | None) | (None, Some(_)) => {
                // They are written in one transaction, so only damage takes one and leaves one; and what
                // waits keeps its body.
                Err(StoreError::Damaged(format!("event {}", key.seq.0)))
            }
        }
    }

    async fn try_once(
        &self,
        settings: &Settings,
        (delivery, event): (&Delivery, &Event),
        history: DeliveryHistory,
    ) -> Result<Outcome, StoreError> {
        let number = history.attempts;
        let client = &settings.client;
        let (input, url) = (settings.input.as_deref(), client.seen_url(event));
        let (signatures, now) = (&settings.signatures, self.clock.moment());
        let attested = signatures.for_attempt(&self.store, event, (input, &url), now);
        let Attested {
            signed,
            note,
            claim,
        } = match attested.await? {
            Ok(attested) => attested,
            Err(refused) => {
                let unverified = (DeadReason::Rejected, UNVERIFIED);
                self.give_up(settings, (delivery, event), unverified, Some(refused))
                    .await?;
                return Ok(Outcome::Unsendable);
            }
        };
        let (at, started) = (self.clock.now(), Instant::now());
        let timeout = settings.options.timeout;
        let reply = client
            .send(event, delivery, number, signed.as_ref(), timeout)
            .await;
        let duration = started.elapsed();
        let now = self.clock.moment();
        let policy = &settings.options.policy;
        let verdict = decide(policy, history, &reply.outcome, now, Jitter(rand::random()));
        let Reply {
            outcome,
            status,
            error,
            answer_headers,
            answer,
        } = reply;
        let Asked {
            target,
            url,
            method,
        } = asked(client, event);
        let attempt = Attempt {
            key: delivery.key,
            delivery: delivery.id,
            event: delivery.event,
            destination: delivery.destination,
            target,
            url,
            method,
            number,
            at,
            duration,
            status,
            error,
            answer_headers,
            answer,
            signature: note,
            replay: delivery.replay,
            phase: delivery.phase,
            verdict,
        };
        self.record(settings, attempt, claim).await?;
        Ok(outcome)
    }

    /// Gives up a delivery without an attempt.
    async fn give_up(
        &self,
        settings: &Settings,
        (delivery, event): (&Delivery, &Event),
        (reason, why): (DeadReason, &str),
        signature: Option<Signature>,
    ) -> Result<(), StoreError> {
        let (now, asked) = (self.clock.now(), asked(&settings.client, event));
        let given_up = Attempt {
            signature,
            ..Attempt::given_up(delivery, asked, now, reason, why)
        };
        self.record(settings, given_up, None).await
    }

    async fn record(
        &self,
        settings: &Settings,
        attempt: Attempt,
        claim: Option<SignatureClaim>,
    ) -> Result<(), StoreError> {
        match claim {
            Some(claim) => persist(|| self.store.record_signed(attempt.clone(), claim)).await?,
            None => persist(|| self.store.record(attempt.clone())).await?,
        }
        (self.notify)(settings, Notice::Attempt(Box::new(attempt)));
        Ok(())
    }

    /// Asks for a damaged event once more, and puts it in its place; it is dead only if nobody has it.
    async fn fetch_again(&self, key: DeliveryKey, what: &str) -> Result<Finished, StoreError> {
        let delivery = match self.store.delivery(key) {
            Ok(Some(delivery)) => delivery,
            // The store is being reopened; the delivery stays due.
            Err(error) if error.is_retryable() => return Ok(Finished::untried(key)),
            Ok(None) | Err(_) => return self.quarantine(key, what).await,
        };
        let is_over = self.clock.moment().certain > delivery.deadline_at;
        let settings = self.settings();
        let bucket = &settings.bucket;
        match repair((self.fetch)(delivery.event).await, delivery.event, is_over) {
            Repair::Restore(event) => {
                persist(|| self.store.restore_event(bucket, key.seq, (*event).clone())).await?;
                (self.notify)(&settings, Notice::Fetched(key));
            }
            Repair::GiveUp => return self.quarantine(key, what).await,
            Repair::AskAgain => {
                let later = self.clock.now().after(limits::FETCH_AGAIN);
                persist(|| self.store.postpone(key, later)).await?;
            }
        }
        Ok(Finished::untried(key))
    }

    async fn quarantine(&self, key: DeliveryKey, what: &str) -> Result<Finished, StoreError> {
        tracing::error!(%what, "set aside");
        let (now, settings) = (self.clock.now(), self.settings());
        persist(|| self.store.quarantine(&settings.bucket, key, now)).await?;
        (self.notify)(&settings, Notice::Quarantined(key));
        Ok(Finished::untried(key))
    }
}

fn asked(client: &Client, event: &Event) -> Asked {
    Asked {
        target: client.target().to_string(),
        url: client.url(event),
        method: event.request.method.clone(),
    }
}
