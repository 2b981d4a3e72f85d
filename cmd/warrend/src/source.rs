//! Where a node learns of its mesh: what is the same of it for the control loop, whatever it is.

mod cluster;
mod file;

use std::sync::Arc;
use std::time::SystemTime;

use warren_config::WallTime;
use warren_mesh::{Plan, Problem, Step};
use warren_netlink::Host;
use warren_state::StateDir;

use self::cluster::ClusterSource;
use self::file::FileSource;
use crate::args::{Origin, Run};
use crate::status::Board;
use crate::tunnel::Tunnel;

/// Where this node learns of its mesh.
pub(crate) enum Source {
    /// One file describes all nodes.
    File(Box<FileSource>),
    /// Kubernetes describes them.
    Cluster(Box<ClusterSource>),
}

/// What this host should be.
pub(crate) enum Aim {
    /// A node of the mesh, so.
    Node(Box<Plan>),
    /// A host on which nothing of Warren is.
    Nothing,
}

/// What is to be done about what has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Todo {
    Nothing,
    /// Single nodes may have changed: [`Source::step`].
    Step,
    /// The plan may be another: [`Source::aim`].
    Plan,
    /// The same, although nothing is known to have changed.
    Check,
}

/// What single nodes that have changed make of the plan.
pub(crate) struct Stepped {
    pub(crate) step: Step,
    /// There is something to tell of.
    pub(crate) is_news: bool,
}

/// What a source may look at when something has happened.
pub(crate) struct Around<'a> {
    /// What carries the packets, if anything does.
    pub(crate) tunnel: Option<&'a Tunnel>,
    /// The plan that is posted is in force: nothing of it was refused.
    pub(crate) is_true: bool,
    /// What is posted for those who ask.
    pub(crate) board: &'a Board,
}

/// Something that a source waits for.
pub(crate) enum Event {
    File(file::Event),
    Cluster(cluster::Event),
}

impl Source {
    /// Learns of the mesh as the command line says.
    pub(crate) async fn new(args: &Run, state: &StateDir, host: &mut Host) -> anyhow::Result<Self> {
        let (node, state) = (args.node.clone(), state.clone());
        Ok(match &args.origin {
            Origin::File(path) => {
                let file = FileSource::new(path.clone(), node, state, host)?;
                Self::File(Box::new(file))
            }
            Origin::Kubernetes(access) => {
                let cluster = ClusterSource::new(access, node, state).await?;
                Self::Cluster(Box::new(cluster))
            }
        })
    }

    /// Whether it may have something to say later though it has nothing now.
    pub(crate) fn may_come_later(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Cluster(_) => true,
        }
    }

    /// What this host should be, given what is around it now; or why nothing can be said of it.
    pub(crate) fn aim(&mut self, host: &mut Host) -> Result<Aim, String> {
        match self {
            Self::File(file) => Ok(Aim::Node(Box::new(file.plan(host)?))),
            Self::Cluster(cluster) => cluster.aim(host),
        }
    }

    /// A problem of the plan in a sentence that says where it comes from.
    pub(crate) fn sentence(&self, problem: &Problem) -> String {
        match self {
            Self::File(file) => file.sentence(problem),
            Self::Cluster(_) => problem.to_string(),
        }
    }

    /// What is wrong with a newer description, which is therefore not in force.
    pub(crate) fn refused(&self) -> &[String] {
        match self {
            Self::File(file) => file.refused(),
            Self::Cluster(cluster) => cluster.refused(),
        }
    }

    /// What this daemon has no right to, a sentence each.
    pub(crate) fn denied(&self) -> &[String] {
        match self {
            Self::File(_) => &[],
            Self::Cluster(cluster) => cluster.denied(),
        }
    }

    /// What else people should know, beyond what is refused and the plan's problems.
    pub(crate) fn complaints(&self) -> Vec<String> {
        match self {
            Self::File(_) => Vec::new(),
            Self::Cluster(cluster) => cluster.complaints(),
        }
    }

    /// The digest of what all nodes should have alike, where there is such a thing.
    pub(crate) fn digest(&self) -> Option<&str> {
        match self {
            Self::File(file) => Some(file.digest()),
            Self::Cluster(_) => None,
        }
    }

    /// The next thing that happens. Dropping the future loses nothing.
    pub(crate) async fn event(&mut self) -> Event {
        match self {
            Self::File(file) => Event::File(file.event().await),
            Self::Cluster(cluster) => Event::Cluster(cluster.event().await),
        }
    }

    /// Takes in what has happened.
    pub(crate) fn take(&mut self, event: Event, host: &mut Host, around: &Around<'_>) -> Todo {
        match (self, event) {
            (Self::File(file), Event::File(event)) => plan_if(file.take(event, host, around)),
            (Self::Cluster(cluster), Event::Cluster(event)) => cluster.take(&event, around),
            // Nobody waits for the events of another source.
            (Self::File(_), Event::Cluster(_)) | (Self::Cluster(_), Event::File(_)) => {
                Todo::Nothing
            }
        }
    }

    /// Looks at what nobody tells of.
    pub(crate) fn tick(&mut self, host: &mut Host, around: &Around<'_>) -> Todo {
        match self {
            Self::File(file) => plan_if(file.tick(host, around)),
            Self::Cluster(cluster) => cluster.tick(around),
        }
    }

    /// The daemon ends: what is only in memory is put on the disk.
    pub(crate) fn end(&mut self) {
        match self {
            Self::File(_) => {}
            Self::Cluster(cluster) => cluster.end(),
        }
    }

    /// Brings the plan in force in line with single nodes that have changed. `None` where all is to be
    /// planned anew.
    pub(crate) fn step(&mut self, plan: &mut Arc<Plan>) -> Option<Stepped> {
        match self {
            Self::File(_) => None,
            Self::Cluster(cluster) => cluster.step(plan),
        }
    }

    /// Whether the host around the tunnel is as it was when the plan was made.
    pub(crate) fn is_around(&self, host: &mut Host) -> bool {
        match self {
            // Its names may lead elsewhere from another network.
            Self::File(_) => false,
            Self::Cluster(cluster) => cluster.is_around(host),
        }
    }

    /// Somebody asks to look again.
    pub(crate) fn reload(&mut self, host: &mut Host) {
        match self {
            Self::File(file) => file.reload(host),
            // Its plan is made anew each time.
            Self::Cluster(_) => {}
        }
    }

    /// The plan is made true, as far as the host lets.
    pub(crate) fn realised(&mut self, plan: &Plan, around: &Around<'_>) {
        match self {
            Self::File(file) => file.realised(plan),
            Self::Cluster(cluster) => cluster.realised(plan, around),
        }
    }

    /// A step is made true.
    pub(crate) fn stepped(&mut self, plan: &Plan, around: &Around<'_>) {
        match self {
            Self::File(_) => {}
            Self::Cluster(cluster) => cluster.stepped(plan, around),
        }
    }

    /// Nothing can be said yet of what this host should be, and why.
    pub(crate) fn stalled(&mut self, sentence: &str, around: &Around<'_>) {
        match self {
            Self::File(_) => {}
            Self::Cluster(cluster) => cluster.stalled(sentence, around),
        }
    }

    /// Everything was taken away; or not, and why.
    pub(crate) fn removed(&mut self, around: &Around<'_>, failure: Option<&str>) {
        match self {
            Self::File(_) => {}
            Self::Cluster(cluster) => cluster.removed(around, failure),
        }
    }
}

fn plan_if(is_another: bool) -> Todo {
    match is_another {
        true => Todo::Plan,
        false => Todo::Nothing,
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the outermost loop")]
fn wall_time() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    WallTime(since.unwrap_or_default())
}
