//! Host names to addresses, by the system's resolver, without waiting for it.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};

use tokio::sync::mpsc;
use warren_mesh::HostName;

/// Names that are asked for at a time. The system's resolver cannot be called off, and each name
/// takes a thread until it gives up.
const AT_A_TIME: usize = 16;

/// Asks for names, each at most once at a time.
pub(crate) struct Resolver {
    /// How a name becomes addresses.
    resolve: fn(&HostName) -> io::Result<BTreeSet<IpAddr>>,
    asked: BTreeSet<HostName>,
    /// Those whose turn comes when an answer does; as many as the mesh has names.
    waiting: VecDeque<HostName>,
    answer: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
}

/// What became of a name.
pub(crate) struct Answer {
    /// The name.
    pub(crate) name: HostName,
    /// Its addresses.
    pub(crate) addresses: io::Result<BTreeSet<IpAddr>>,
}

impl Resolver {
    /// Has asked for nothing yet.
    pub(crate) fn new() -> Self {
        Self::with(by_the_system)
    }

    fn with(resolve: fn(&HostName) -> io::Result<BTreeSet<IpAddr>>) -> Self {
        // Bounded by `AT_A_TIME`.
        let (answer, answers) = mpsc::unbounded_channel();
        Self {
            resolve,
            asked: BTreeSet::new(),
            waiting: VecDeque::new(),
            answer,
            answers,
        }
    }

    /// Asks for a name, now or when others have been answered. Does nothing while it is being asked
    /// for: whoever needs it asks again.
    pub(crate) fn ask(&mut self, name: &HostName) {
        if !self.asked.contains(name) && !self.waiting.contains(name) {
            self.waiting.push_back(name.clone());
            self.go_on();
        }
    }

    /// The next answer. Dropping the future loses nothing.
    pub(crate) async fn answered(&mut self) -> Answer {
        loop {
            // There is always a sender: our own.
            if let Some(answer) = self.answers.recv().await {
                self.asked.remove(&answer.name);
                self.go_on();
                return answer;
            }
        }
    }

    /// Asks for as many as may be asked for at a time.
    fn go_on(&mut self) {
        while self.asked.len() < AT_A_TIME
            && let Some(name) = self.waiting.pop_front()
        {
            let (asked, resolve, answer) = (name.clone(), self.resolve, self.answer.clone());
            let ask = move || {
                let addresses = resolve(&name);
                // Nobody listens when the daemon ends.
                let _unheard = answer.send(Answer { name, addresses });
            };
            let spawned = std::thread::Builder::new()
                .name("warren-resolve".to_owned())
                .spawn(ask);
            match spawned {
                Ok(_) => {
                    self.asked.insert(asked);
                }
                Err(error) => tracing::warn!(%error, "no thread to resolve a host name with"),
            }
        }
    }
}

fn by_the_system(name: &HostName) -> io::Result<BTreeSet<IpAddr>> {
    let found = (name.as_str(), 0).to_socket_addrs()?;
    Ok(found.map(|at| at.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_lead_nowhere_do_not_keep_the_others_from_being_asked_for() {
        let mut resolver = Resolver::with(|_| Err(io::ErrorKind::NotFound.into()));
        let names: BTreeSet<HostName> = (0..3 * AT_A_TIME)
            .map(|number| format!("n{number}.example.org").parse().expect("a name"))
            .collect();
        for name in names.iter().chain(&names) {
            resolver.ask(name);
        }
        let mut answered = BTreeSet::new();
        for _ in &names {
            let Answer { name, addresses } = resolver.answered().await;
            assert!(addresses.is_err());
            assert!(answered.insert(name), "each is asked for once");
        }
        assert_eq!(answered, names);
        assert!(resolver.asked.is_empty() && resolver.waiting.is_empty());
    }
}
