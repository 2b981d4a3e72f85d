//! One resource: listed, watched from there on, and listed anew when the server cannot go on.
//!
//! 1. [`Follower::check_cluster`]: is this still the cluster that it was? After a restart there may be
//!    another behind the address, whose versions mean nothing here.
//! 2. [`Follower::list`]: as a stream of events where the server does that, else page by page. What it
//!    gives replaces everything in one step.
//! 3. Events, until the server ends the watch, which it does after some minutes, or is lost; then the
//!    next watch begins at the last version heard of, bookmarks included.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{self, Instant};

use super::Shared;
use super::kinds::Kind;
use crate::access::{Client, Failure, Lines, OBJECTS_MAX, too_many};
use crate::backoff::{Backoff, jittered, spread};
use crate::objects::{List, Metadata, NamespaceObject};

/// How long a watch may be silent. A server sends a bookmark about once a minute; one that has sent
/// none for this long is gone, whatever the connection says.
const SILENCE: Duration = Duration::from_secs(150);

/// How long a stream of a list may be silent before its end.
const STREAM_SILENCE: Duration = Duration::from_secs(20);

/// How long a watch is asked to last, less a third by chance, so that the watches of many nodes end at
/// different times.
const WATCH: Duration = Duration::from_secs(580);

/// For how long a server that streams no lists is not asked for one again.
const NO_STREAMS: Duration = Duration::from_secs(3600);

/// Objects in a page of a list.
const PAGE: usize = 500;

/// A watch that ends sooner than this was no use, and the next one waits.
const SHORT: Duration = Duration::from_secs(1);

/// Within this a watch that had lasted is taken up again after a failure: what ends one ends those of
/// all nodes at once, and their lists may follow.
const SPREAD: Duration = Duration::from_secs(2);

/// A version that is too old leads to a list at once, and to the next one no sooner than after this.
const EXPIRED_AGAIN: Duration = Duration::from_secs(30);

/// The annotation of the bookmark at the end of a list that is streamed.
const LIST_END: &str = "k8s.io/initial-events-end";

/// Follows a resource for ever.
pub(super) async fn follow<K: Kind>(_: K, client: Client, shared: Arc<Shared>) {
    let mut follower = Follower::<K> {
        client,
        shared,
        cluster: None,
        resume: None,
        streams_from: None,
        paged: true,
        watching_since: None,
        _kind: PhantomData,
    };
    let mut backoff = Backoff::default();
    let mut last_expired = None;
    loop {
        let ended = follower.session().await;
        // Lists count for nothing here: one that is cut off again and again is not asked for at once.
        let since = follower.watching_since.take();
        let lasted = since.is_some_and(|since| since.elapsed() >= SHORT);
        if lasted {
            backoff.reset();
        }
        let Err(failure) = ended else {
            if !lasted {
                backoff.wait(None).await;
            }
            continue;
        };
        follower.shared.failed(K::NAME, &failure);
        let mut expired = false;
        if failure.code() == Some(410) {
            // The version is too old, or a list took longer than its pages are kept for.
            follower.paged = follower.resume.take().is_some();
            // The server is there again, and only a list is missing; but not over and over.
            let again = last_expired.is_some_and(|at: Instant| at.elapsed() < EXPIRED_AGAIN);
            expired = follower.paged && !again;
            last_expired = Some(Instant::now());
        }
        if (lasted || expired) && failure.retry_after().is_none() {
            time::sleep(spread(SPREAD)).await;
        } else {
            backoff.wait(failure.retry_after()).await;
        }
    }
}

struct Follower<K> {
    client: Client,
    shared: Arc<Shared>,
    /// The uid of the cluster that `resume` is of.
    cluster: Option<String>,
    /// The version up to which everything is known.
    resume: Option<String>,
    /// Before this no list is asked for as a stream.
    streams_from: Option<Instant>,
    /// Whether lists are asked for in pages.
    paged: bool,
    /// When the watch began that goes on.
    watching_since: Option<Instant>,
    _kind: PhantomData<K>,
}

/// An event of a watch.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// All that a bookmark has.
#[derive(Deserialize)]
struct Bookmark {
    metadata: Metadata,
}

/// A list as it arrives.
struct Arriving<K: Kind> {
    items: BTreeMap<String, K::Item>,
    own: Option<K::Object>,
}

impl<K: Kind> Follower<K> {
    async fn session(&mut self) -> Result<(), Failure> {
        self.check_cluster().await?;
        let streamed = match &self.resume {
            Some(_) => None,
            None => self.list().await?,
        };
        let mut lines = match streamed {
            Some(lines) => lines,
            None => {
                let version = self.resume.as_deref().unwrap_or_default();
                let uri = watch_uri::<K>(&format!("resourceVersion={version}"));
                self.client.watch(&uri).await?
            }
        };
        self.watching_since = Some(Instant::now());
        self.shared.heard(K::NAME);
        while let Some(line) = lines.next(SILENCE).await? {
            self.event(&line)?;
            self.shared.heard(K::NAME);
        }
        Ok(())
    }

    /// Starts from nothing if this is not the cluster that it was.
    async fn check_cluster(&mut self) -> Result<(), Failure> {
        let namespace: NamespaceObject =
            (self.client.get("/api/v1/namespaces/kube-system")).await?;
        let uid = Some(namespace.metadata.uid);
        if self.cluster != uid {
            self.resume = None;
            self.cluster.clone_from(&uid);
        }
        let mut store = self.shared.store();
        if store.view.cluster != uid {
            Arc::make_mut(&mut store.view).cluster = uid;
            drop(store);
            self.shared.tell();
        }
        Ok(())
    }

    /// Reads all there is. A list that came as a stream goes on as a watch.
    async fn list(&mut self) -> Result<Option<Lines>, Failure> {
        if self.streams_from.is_none_or(|from| Instant::now() >= from) {
            match self.stream().await {
                Ok(lines) => return Ok(Some(lines)),
                Err(failure) if streams_not(&failure) => {
                    self.streams_from = Some(Instant::now() + NO_STREAMS);
                }
                Err(failure) => return Err(failure),
            }
        }
        self.pages().await?;
        Ok(None)
    }

    async fn stream(&mut self) -> Result<Lines, Failure> {
        let uri = watch_uri::<K>("sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
        let mut lines = self.client.watch(&uri).await?;
        let mut arriving = Arriving::<K>::new();
        loop {
            let line = lines.next(STREAM_SILENCE).await?;
            let line = line.ok_or_else(|| {
                Failure::Unreachable("it ended a list before the list's end".to_owned())
            })?;
            let event: Event<'_> = parsed(&line)?;
            match event.kind {
                "ADDED" | "MODIFIED" => arriving.add(&self.shared, object(&event)?)?,
                "DELETED" => arriving.remove(&object(&event)?),
                "BOOKMARK" => {
                    let Metadata {
                        resource_version,
                        annotations,
                        ..
                    } = object::<Bookmark>(&event)?.metadata;
                    if annotations.get(LIST_END).is_some_and(|end| end == "true") {
                        self.arrived(arriving, resource_version);
                        return Ok(lines);
                    }
                }
                _ => return Err(Failure::of_event(&object(&event)?)),
            }
        }
    }

    async fn pages(&mut self) -> Result<(), Failure> {
        let mut arriving = Arriving::<K>::new();
        let mut next = String::new();
        loop {
            let mut uri = format!("{}?fieldSelector={}", K::PATH, K::FIELDS);
            if self.paged {
                uri.push_str(&format!("&limit={PAGE}"));
            }
            if !next.is_empty() {
                // It is in the alphabet of URLs.
                uri.push_str(&format!("&continue={next}"));
            }
            let page: List<K::Object> = self.client.list(&uri).await?;
            for object in page.items {
                arriving.add(&self.shared, object)?;
            }
            next = page.metadata.next;
            if next.is_empty() {
                self.arrived(arriving, page.metadata.resource_version);
                return Ok(());
            }
        }
    }

    /// A whole list has arrived: what is not in it is gone.
    fn arrived(&mut self, arriving: Arriving<K>, version: String) {
        let Arriving { items, own } = arriving;
        let mut store = self.shared.store();
        let changed = K::items(&store) != Some(&items);
        if changed {
            let before = K::slot(&mut store).replace(items);
            let after = K::items(&store).into_iter().flatten();
            let names = differing(&before.unwrap_or_default(), after);
            K::settle(&mut store, names.into_iter());
        }
        let own = self.shared.node.is_some() && K::own_seen(&mut store, own);
        drop(store);
        self.resume = Some(version);
        self.paged = true;
        self.shared.synced(K::NAME);
        self.told(changed, own);
    }

    fn event(&mut self, line: &[u8]) -> Result<(), Failure> {
        let event: Event<'_> = parsed(line)?;
        let version = match event.kind {
            "ADDED" | "MODIFIED" => self.put(object(&event)?)?,
            "DELETED" => self.remove(&object(&event)?),
            "BOOKMARK" => object::<Bookmark>(&event)?.metadata.resource_version,
            _ => return Err(Failure::of_event(&object(&event)?)),
        };
        if went_back(self.resume.as_deref(), &version) {
            // The server's data is older than what it said before: somebody restored a copy.
            return Err(Failure::Refused {
                code: 410,
                message: format!("version {version} came after a later one"),
                retry_after: None,
            });
        }
        self.resume = Some(version);
        Ok(())
    }

    /// Takes an object over; its version.
    fn put(&self, object: K::Object) -> Result<String, Failure> {
        let Metadata {
            name,
            resource_version,
            ..
        } = K::metadata(&object).clone();
        let item = K::read(&object);
        let mut store = self.shared.store();
        let items = K::items(&store);
        let before = items.and_then(|items| items.get(&name));
        if before.is_none() && items.is_some_and(|items| items.len() >= OBJECTS_MAX) {
            return Err(too_many(K::NAME));
        }
        let changed = before != Some(&item);
        if changed {
            let slot: &mut Option<BTreeMap<String, K::Item>> = K::slot(&mut store);
            slot.get_or_insert_default().insert(name.clone(), item);
            K::settle(&mut store, std::iter::once(name.clone()));
        }
        let own = self.shared.is_own(&name) && K::own_seen(&mut store, Some(object));
        drop(store);
        self.told(changed, own);
        Ok(resource_version)
    }

    /// Forgets an object; the version of its end.
    fn remove(&self, object: &K::Object) -> String {
        let Metadata {
            name,
            resource_version,
            ..
        } = K::metadata(object).clone();
        let mut store = self.shared.store();
        let changed = K::items(&store).is_some_and(|items| items.contains_key(&name));
        if changed {
            let slot: &mut Option<BTreeMap<String, K::Item>> = K::slot(&mut store);
            slot.get_or_insert_default().remove(&name);
            K::settle(&mut store, std::iter::once(name.clone()));
        }
        let own = self.shared.is_own(&name) && K::own_seen(&mut store, None);
        drop(store);
        self.told(changed, own);
        resource_version
    }

    fn told(&self, changed: bool, own: bool) {
        if changed {
            self.shared.tell();
        }
        if own {
            self.shared.own_changes.send_modify(|count| *count += 1);
        }
    }
}

impl<K: Kind> Arriving<K> {
    fn new() -> Self {
        Self {
            items: BTreeMap::new(),
            own: None,
        }
    }

    fn add(&mut self, shared: &Shared, object: K::Object) -> Result<(), Failure> {
        let name = K::metadata(&object).name.clone();
        let own = shared.is_own(&name);
        self.items.insert(name, K::read(&object));
        if own {
            self.own = Some(object);
        }
        if self.items.len() > OBJECTS_MAX {
            return Err(too_many(K::NAME));
        }
        Ok(())
    }

    fn remove(&mut self, object: &K::Object) {
        self.items.remove(&K::metadata(object).name);
        // What is this node's own is told apart by name in `add`, which a later event repeats.
        self.own = self
            .own
            .take()
            .filter(|own| K::metadata(own).name != K::metadata(object).name);
    }
}

/// The names of what differs between two states.
fn differing<'a, T: PartialEq + 'a>(
    before: &BTreeMap<String, T>,
    after: impl Iterator<Item = (&'a String, &'a T)>,
) -> Vec<String> {
    let mut gone: BTreeMap<&String, &T> = before.iter().collect();
    let mut names = Vec::new();
    for (name, item) in after {
        if gone.remove(name) != Some(item) {
            names.push(name.clone());
        }
    }
    names.extend(gone.into_keys().cloned());
    names
}

fn watch_uri<K: Kind>(from: &str) -> String {
    let seconds = jittered(WATCH).as_secs();
    format!(
        "{}?watch=true&allowWatchBookmarks=true&fieldSelector={}&timeoutSeconds={seconds}&{from}",
        K::PATH,
        K::FIELDS,
    )
}

/// Whether a server says that it streams no lists: one that is too old (422 on 1.33), or one whose
/// etcd is (500, `RequestWatchProgress is disabled`), or one that sends no end.
fn streams_not(failure: &Failure) -> bool {
    match failure {
        Failure::Refused { code, .. } => !matches!(code, 401 | 403 | 404 | 410 | 429 | 503 | 504),
        Failure::Silent(_) => true,
        Failure::Unreachable(_) | Failure::Unreadable(_) => false,
    }
}

/// Whether the server's data became older. Versions are numbers since Kubernetes says so (1.35), and
/// always were; what is none tells nothing.
fn went_back(before: Option<&str>, now: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    let before = before.and_then(number);
    before
        .zip(number(now))
        .is_some_and(|(before, now)| now < before)
}

fn parsed<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(text).map_err(|error| Failure::Unreadable(error.to_string()))
}

fn object<T: serde::de::DeserializeOwned>(event: &Event<'_>) -> Result<T, Failure> {
    parsed(event.object.get().as_bytes())
}
