//! What an agent's engine hears, and what is known outside once it has heard it. It must not know
//! what the engine does about it.

use whrelay_core::queue::Offset;
use whrelay_core::queue::QueuePage;
use whrelay_engine::limits::LOAD_PATIENCE;
use whrelay_engine::{Input, Load, Now, ProbeResult, Settings, Token};

use super::ledger::{Recorded, Verdicts, Violation};
use super::planted::{self, Bug};
use super::seen::Point;
use super::shell::{LATE, News, Told};
use super::vault::Vault;
use super::world::World;

impl<V: Vault> World<V> {
    /// The engine hears something, and now and then the same once more.
    pub(crate) fn hear(&mut self, n: usize, t: usize) -> Verdicts {
        let doubles = self.chance.permille(30);
        let at = self.time + self.chance.below(LATE);
        let now = self.engine_now(n);
        let (Some(process), Some(now)) = (&mut self.agents[n].process, now) else {
            return Ok(());
        };
        let told = process.shell.told.swap_remove(t);
        if doubles {
            self.seen.note(Point::AnswerDoubled);
            let news = told.news.clone();
            process.shell.told.push(Told { news, at });
        }
        self.detail(&told.news);
        let Some(input) = self.input_of(n, told.news, &now)? else {
            return Ok(());
        };
        if let Input::LoadFailed { .. } = input
            && self.planted == Some(Bug::StartsAgainAfterAFailedRead)
        {
            self.start_again(n)?;
        }
        if let Some(process) = &mut self.agents[n].process {
            process.shell.engine.handle(input, now);
            process.shell.is_woken = true;
        }
        Ok(())
    }

    /// What news means to the engine, where it is to hear of it.
    fn input_of(&mut self, n: usize, news: News, now: &Now) -> Result<Option<Input>, Violation> {
        let planted = self.planted;
        Ok(match news {
            News::Plain(Input::Added {
                destination,
                delivery,
                at,
            }) => {
                let bent = planted::bent_added(planted, (delivery, at), now.moment.now);
                bent.map(|(delivery, at)| Input::Added {
                    destination,
                    delivery,
                    at,
                })
            }
            News::Plain(input) => self.note_input(n, &input, now).then_some(input),
            News::Configured(target) => {
                self.configure(n, target, now);
                None
            }
            News::Paused => {
                let node = &mut self.agents[n];
                let is_paused = node.is_paused;
                if let Some(process) = &mut node.process {
                    process.shell.is_paused = is_paused;
                }
                let is_told = is_paused && planted != Some(Bug::NodePauseIgnored);
                Some(Input::Pause(is_told))
            }
            News::Loaded {
                load,
                page,
                applied,
            } => Some(self.page_of(n, &load, (page, applied), now)),
            News::Appended {
                token,
                at,
                recorded,
            } => {
                if planted::drops_answer(planted, &recorded.attempt) {
                    return Ok(None);
                }
                self.note_record(n, (token, at), &recorded, now)?;
                Some(Input::Appended { token, at })
            }
            News::Probed {
                destination,
                result,
                is_true,
            } => {
                if result == ProbeResult::Open && is_true {
                    self.ledger.lives((n, destination), now.moment.now);
                }
                Some(Input::Probed {
                    destination,
                    result,
                })
            }
        })
    }

    /// Notes what an engine hears. Says whether it does.
    fn note_input(&mut self, n: usize, input: &Input, now: &Now) -> bool {
        let Some(process) = &mut self.agents[n].process else {
            return false;
        };
        let (shell, now) = (&mut process.shell, now.moment.now);
        if let Input::Applied { upto: applied } | Input::DueDestinations { applied, .. } = input {
            shell.applied(*applied, now);
        }
        if let Input::Finished { token, .. } = input {
            shell.finished(*token, now);
        }
        let stops = matches!(input, Input::Stop);
        shell.is_stopping |= stops;
        !(stops && self.planted == Some(Bug::StopIgnored))
    }

    /// A page of a queue. An answer that comes too late counts as lost.
    fn page_of(
        &mut self,
        n: usize,
        load: &Load,
        (page, applied): (QueuePage, Offset),
        now: &Now,
    ) -> Input {
        let asked_at = load.query.expired_by;
        if now.moment.certain.since(asked_at) < LOAD_PATIENCE {
            self.show(n, load, &page);
        }
        Input::Loaded {
            destination: load.destination,
            token: load.token,
            page: planted::bent_page(self.planted, page, &load.query),
            applied,
        }
    }

    /// An engine hears that a record is on disk.
    fn note_record(
        &mut self,
        n: usize,
        (token, at): (Token, Offset),
        recorded: &Recorded,
        now: &Now,
    ) -> Verdicts {
        if let Some(process) = &mut self.agents[n].process {
            let key = recorded.before.key;
            process.shell.note_record(key, at, now.moment.now);
        }
        self.on_disk(n, token, recorded)
    }

    /// The engine hears how a destination is configured now.
    pub(crate) fn configure(&mut self, n: usize, target: usize, now: &Now) {
        let planted = self.planted;
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return;
        };
        let (id, _) = node.targets[target];
        let shell = &mut process.shell;
        shell.shown.remove(&id);
        let configured = &node.configured[target];
        let settings = (!configured.is_removed).then(|| {
            let stored = node.vault.endpoint(id);
            let known = shell.known.get(&id);
            // What the engine knows of the endpoint is newer than what is stored.
            let known = known.map(|known| (known.endpoint, known.back_since));
            let (endpoint, back_since) = known.unwrap_or(stored);
            Settings {
                endpoint,
                back_since,
                ..configured.settings.clone()
            }
        });
        let told = settings.clone();
        let told = told.map(|settings| planted::bent_settings(planted, settings, now));
        let rate = |settings: Option<&Settings>| settings.map(|settings| settings.rate);
        if rate(settings.as_ref()) != rate(shell.known.get(&id)) {
            self.ledger.forget_pace((n, id));
        }
        match settings {
            Some(settings) => shell.known.insert(id, settings),
            None => shell.known.remove(&id),
        };
        if told.is_none() && planted == Some(Bug::RemovalIgnored) {
            return;
        }
        let input = Input::Destination { id, settings: told };
        shell.engine.handle(input, *now);
        shell.is_woken = true;
    }
}
