//! Events on this node's `Node`: what an operator should see in `kubectl describe node`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::time;

use super::{MANAGER, Mine, bytes};
use crate::access::Client;
use crate::backoff::Backoff;
use crate::objects::Metadata;

/// Events that wait to be told. When it is full the newest is dropped.
const WAITING: usize = 64;

/// Events that are remembered, so that the next of the same kind is counted with it.
const REMEMBERED: usize = 32;

/// Between two writes.
const PAUSE: Duration = Duration::from_secs(1);

/// Where events of objects without a namespace are.
const EVENTS: &str = "/api/v1/namespaces/default/events";

/// What an operator should see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// How bad it is.
    pub severity: Severity,
    /// One word in CamelCase, for programs.
    pub reason: String,
    /// A sentence, for people.
    pub message: String,
}

/// How bad an [`Event`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It is as it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

/// What waits, and what was told.
#[derive(Debug, Default)]
pub(super) struct Events {
    waiting: VecDeque<Event>,
    told: VecDeque<Told>,
}

/// An event that was told.
#[derive(Debug, Clone)]
struct Told {
    event: Event,
    /// The name of its object.
    name: String,
    count: u32,
}

/// What an answer is looked at for.
#[derive(Deserialize)]
struct Answer {
    metadata: Metadata,
}

impl Events {
    /// Whether there was room.
    pub(super) fn push(&mut self, event: Event) -> bool {
        let room = self.waiting.len() < WAITING;
        if room {
            self.waiting.push_back(event);
        }
        room
    }

    /// The first that waits, with all that are the same.
    fn next(&mut self) -> Option<(Event, u32)> {
        let event = self.waiting.pop_front()?;
        let before = self.waiting.len();
        self.waiting.retain(|other| *other != event);
        let same = before - self.waiting.len();
        Some((event, 1 + u32::try_from(same).unwrap_or(u32::MAX - 1)))
    }

    fn told(&self, event: &Event) -> Option<Told> {
        self.told.iter().find(|told| told.event == *event).cloned()
    }

    fn remember(&mut self, told: Told) {
        self.told.retain(|other| other.event != told.event);
        self.told.push_front(told);
        self.told.truncate(REMEMBERED);
    }
}

/// Tells what waits, one by one, for ever.
pub(super) async fn tell(client: Client, mine: Arc<Mine>) {
    let mut backoff = Backoff::default();
    let mut wanted = mine.wanted.subscribe();
    loop {
        let Some((event, count)) = mine.events().next() else {
            mine.more_events.notified().await;
            continue;
        };
        // An event is of a Node, by its uid.
        let uid = match wanted.wait_for(Option::is_some).await {
            Ok(want) => want
                .as_ref()
                .map(|want| want.uid.clone())
                .unwrap_or_default(),
            Err(_) => return,
        };
        loop {
            let told = mine.events().told(&event);
            match write(&client, mine.node.as_str(), &uid, &event, count, told).await {
                Ok(told) => {
                    backoff.reset();
                    mine.events().remember(told);
                    break;
                }
                // It was kept for an hour and is gone.
                Err(failure)
                    if failure.code() == Some(404) && mine.events().told(&event).is_some() =>
                {
                    mine.events().told.retain(|told| told.event != event);
                }
                Err(failure) if failure.is_of_a_moment() => {
                    backoff.wait(failure.retry_after()).await;
                }
                Err(_) => {
                    mine.report().events_dropped += 1;
                    break;
                }
            }
        }
        time::sleep(PAUSE).await;
    }
}

/// Makes an event, or counts one that there is.
async fn write(
    client: &Client,
    node: &str,
    uid: &str,
    event: &Event,
    count: u32,
    told: Option<Told>,
) -> Result<Told, crate::access::Failure> {
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string();
    if let Some(told) = told {
        let count = told.count.saturating_add(count);
        let change = bytes(&json!({"count": count, "lastTimestamp": now}));
        let uri = format!("{EVENTS}/{}", told.name);
        let merge = "application/merge-patch+json";
        let _: Answer = client.send(Method::PATCH, &uri, merge, change).await?;
        return Ok(Told { count, ..told });
    }
    let object = bytes(&json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": format!("{node}."), "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
        "type": match event.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        },
        "reason": event.reason,
        "message": event.message,
        "source": {"component": MANAGER, "host": node},
        "reportingComponent": MANAGER,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": count,
    }));
    let made: Answer = client
        .send(Method::POST, EVENTS, "application/json", object)
        .await?;
    Ok(Told {
        event: event.clone(),
        name: made.metadata.name,
        count,
    })
}
