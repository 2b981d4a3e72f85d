//! Where a node learns of its mesh: what is the same of it for the control loop, whatever it is.

mod file;

use warren_mesh::{Plan, Problem};
use warren_netlink::Host;
use warren_state::StateDir;

use crate::args::Run;
use crate::status::Board;
use crate::tunnel::Tunnel;

use self::file::FileSource;

/// Where this node learns of its mesh.
pub(crate) enum Source {
    /// One file describes all nodes.
    File(Box<FileSource>),
}

/// What a source may look at when something has happened.
pub(crate) struct Around<'a> {
    /// What carries the packets, if anything does.
    pub(crate) tunnel: Option<&'a Tunnel>,
    /// What is posted for those who ask.
    pub(crate) board: &'a Board,
}

/// Something that a source waits for.
pub(crate) enum Event {
    File(file::Event),
}

impl Source {
    /// Learns of the mesh as the command line says.
    pub(crate) fn new(args: &Run, state: &StateDir, host: &mut Host) -> anyhow::Result<Self> {
        let (mesh, node) = (args.mesh.clone(), args.node.clone());
        let file = FileSource::new(mesh, node, state.clone(), host)?;
        Ok(Self::File(Box::new(file)))
    }

    /// What this node should be, given what is around it now; or why nothing can be said of it.
    pub(crate) fn plan(&mut self, host: &mut Host) -> Result<Plan, String> {
        match self {
            Self::File(file) => file.plan(host),
        }
    }

    /// A problem of the plan in a sentence that says where it comes from.
    pub(crate) fn sentence(&self, problem: &Problem) -> String {
        match self {
            Self::File(file) => file.sentence(problem),
        }
    }

    /// What is wrong with a newer description, which is therefore not in force.
    pub(crate) fn refused(&self) -> &[String] {
        match self {
            Self::File(file) => file.refused(),
        }
    }

    /// The digest of what all nodes should have alike, where there is such a thing.
    pub(crate) fn digest(&self) -> Option<&str> {
        match self {
            Self::File(file) => Some(file.digest()),
        }
    }

    /// The next thing that happens. Dropping the future loses nothing.
    pub(crate) async fn event(&mut self) -> Event {
        match self {
            Self::File(file) => Event::File(file.event().await),
        }
    }

    /// Takes in what has happened; whether the plan may be another now.
    pub(crate) fn take(&mut self, event: Event, host: &mut Host, around: &Around<'_>) -> bool {
        match (self, event) {
            (Self::File(file), Event::File(event)) => file.take(event, host, around),
        }
    }

    /// Looks at what nobody tells of; whether the plan may be another now.
    pub(crate) fn tick(&mut self, host: &mut Host, around: &Around<'_>) -> bool {
        match self {
            Self::File(file) => file.tick(host, around),
        }
    }

    /// Somebody asks to look again.
    pub(crate) fn reload(&mut self, host: &mut Host) {
        match self {
            Self::File(file) => file.reload(host),
        }
    }

    /// The plan is made true, as far as the host lets.
    pub(crate) fn realised(&mut self, plan: &Plan) {
        match self {
            Self::File(file) => file.realised(plan),
        }
    }
}
