//! Host names to addresses, by the system's resolver, without waiting for it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};

use tokio::sync::mpsc;
use warren_mesh::HostName;

/// Names that are asked for at a time. The system's resolver cannot be called off, and each name
/// takes a thread until it gives up.
const AT_A_TIME: usize = 16;

/// Asks for names, each at most once at a time.
pub(crate) struct Resolver {
    asked: BTreeSet<HostName>,
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
        // Bounded by `AT_A_TIME`.
        let (answer, answers) = mpsc::unbounded_channel();
        Self {
            asked: BTreeSet::new(),
            answer,
            answers,
        }
    }

    /// Asks for a name. Does nothing while it, or too many others, are being asked for: whoever
    /// needs it asks again.
    pub(crate) fn ask(&mut self, name: &HostName) {
        if self.asked.len() >= AT_A_TIME || !self.asked.insert(name.clone()) {
            return;
        }
        let asked = name;
        let (name, answer) = (name.clone(), self.answer.clone());
        let ask = move || {
            let addresses = (name.as_str(), 0)
                .to_socket_addrs()
                .map(|found| found.map(|at| at.ip()).collect());
            // Nobody listens when the daemon ends.
            let _unheard = answer.send(Answer { name, addresses });
        };
        let spawned = std::thread::Builder::new()
            .name("warren-resolve".to_owned())
            .spawn(ask);
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to resolve a host name with");
            self.asked.remove(asked);
        }
    }

    /// The next answer. Dropping the future loses nothing.
    pub(crate) async fn answered(&mut self) -> Answer {
        loop {
            // There is always a sender: our own.
            if let Some(answer) = self.answers.recv().await {
                self.asked.remove(&answer.name);
                return answer;
            }
        }
    }
}
