//! The loop's one step: look, plan, change, look again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;
use warren_config::{Fence, HostConfig};

use crate::ahead::{Ahead, AnyRule, ahead};
use crate::conflicts::{self, Conflict};
use crate::connection::KernelError;
use crate::observe::{Kernel, Nftables, Observed, Surroundings};
use crate::owned::{self, Claim, Owned, StateError};
use crate::plan::{self, Change, Occupied, Ways, occupied, plan};
use crate::route::{self, Link, Rule};
use crate::watch::{Interest, Pace, Watcher};

/// After so many rounds of planning what still differs waits for the next event.
const ROUNDS: usize = 4;
/// The host is looked at this often without an event: one that was missed is made good.
const UNASKED: Duration = Duration::from_secs(30);
/// More changes at once than these are one line in the log.
const CHANGES_IN_LOG: usize = 64;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where the real resolvers are when the first file names systemd-resolved on the loopback.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// Makes the host match a configuration, and keeps it so.
///
/// The caller's loop: [`Self::converge`], then wait for [`Self::changed`] or for a new
/// configuration, and again. The TUN is opened by the caller; while there is none the rest of the
/// host is made to match, and [`Report::link`] says so.
pub struct Host {
    kernel: Kernel,
    watcher: Watcher,
    pace: Pace,
    directory: PathBuf,
    owned: Owned,
    /// What is waited for, as of the last look.
    interest: Interest,
    /// Something has changed since the last look.
    stale: bool,
    /// The last look found a fight over the host; said once.
    contested: bool,
    /// The host as the last look left it, if all was as it should be.
    standing: Option<Standing>,
}

/// A host on which all is as it should be.
struct Standing {
    ways: Ways,
    fence: Fence,
}

/// What kernel features to do without, as if they were not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// No nftables: only the rules and blackholes.
    pub without_nftables: bool,
    /// No `fib` expression in nftables.
    pub without_way_back: bool,
    /// No ownership of nftables tables.
    pub without_exclusive: bool,
    /// No translation of addresses.
    pub without_masquerade: bool,
    /// No rules about ports.
    pub without_ports_in_rules: bool,
}

/// What came of one [`Host::converge`].
#[derive(Debug)]
pub struct Report {
    /// The tunnel's interface.
    pub link: LinkState,
    /// Whether rules and blackholes all stand, and no rule of others takes packets past them.
    pub rules_stand: bool,
    /// The rules of others that may take packets past ours.
    pub ahead: Vec<Ahead>,
    /// Whether the nftables table stands.
    pub table_stands: bool,
    /// Whether this host's own packets get the tunnel's address where that was asked for.
    pub masquerades: bool,
    /// What nftables can do here.
    pub nftables: Nftables,
    /// What was changed.
    pub changed: Vec<Change>,
    /// What the kernel refused, and why.
    pub refused: Vec<(Change, KernelError)>,
    /// Why the fence file is not what it should be: after a reboot the fence would be another.
    pub unsaved: Option<StateError>,
    /// Whether another program changes things as often as they are put back.
    pub contested: bool,
    /// Packets that the fence has dropped since the table was last put in place, by counter.
    pub drops: BTreeMap<String, u64>,
}

/// The state of the tunnel's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// There is none; open it.
    Missing,
    /// The name is taken by something that is not a TUN.
    NotATun,
    /// It is there, but not up.
    Down(u32),
    /// It is there and up; its index.
    Up(u32),
}

/// Why the host was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The configuration cannot work on any host.
    #[error("{}", list(.0))]
    Conflicts(Vec<Conflict>),
    /// Names that the configuration takes are somebody else's.
    #[error("{}", list(.0))]
    Occupied(Vec<Occupied>),
    /// A file of the state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Netlink itself.
    #[error("netlink: {0}")]
    Kernel(KernelError),
    /// The kernel refused a change without which the rest is worth nothing.
    #[error("could not {change}: {error}")]
    Refused {
        /// Which.
        change: Box<Change>,
        /// Why.
        error: KernelError,
    },
    /// Somebody puts back what is removed.
    #[error("what is removed comes back: stop the daemon first")]
    Returns,
    /// There is no fence file.
    #[error("there is no fence file in {}: nothing was ever set up from there", .0.display())]
    NoFence(PathBuf),
}

impl From<KernelError> for HostError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}

impl From<std::io::Error> for HostError {
    fn from(error: std::io::Error) -> Self {
        Self::Kernel(error.into())
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl Host {
    /// The host as the state directory knows it. Hears of changes from now on.
    pub fn new(directory: &Path) -> Result<Self, HostError> {
        Self::with_options(directory, Options::default())
    }

    /// As [`Self::new`], doing without some features of the kernel.
    pub fn with_options(directory: &Path, options: Options) -> Result<Self, HostError> {
        let mut kernel = Kernel::open()?;
        kernel.features.way_back = !options.without_way_back;
        kernel.features.exclusive = !options.without_exclusive;
        kernel.features.masquerade = !options.without_masquerade;
        kernel.ports_in_rules = options.without_ports_in_rules.then_some(false);
        if options.without_nftables {
            kernel.netfilter = Err("switched off".to_owned());
        }
        let owned = Owned::load(directory)?;
        let own_port = Some(kernel.route.port());
        Ok(Self {
            kernel,
            watcher: Watcher::open()?,
            pace: Pace::default(),
            directory: directory.to_owned(),
            interest: Interest {
                claims: owned.claims.iter().cloned().collect(),
                own_port,
                ..Interest::default()
            },
            owned,
            stale: false,
            contested: false,
            standing: None,
        })
    }

    /// What is on record as ours.
    pub fn owned(&self) -> &Owned {
        &self.owned
    }

    /// Looks at the host without changing anything.
    pub fn observe(&mut self, config: &HostConfig) -> Result<Observed, HostError> {
        let current = Claim::of(config);
        let claims = self.owned.claims.iter().chain([&current]);
        Ok(self.kernel.observe(claims)?)
    }

    /// What must not fall into the mesh's prefixes, for [`conflicts::conflicts`].
    pub fn surroundings(&mut self, config: &HostConfig) -> Result<Surroundings, HostError> {
        // No file is no resolver.
        let mut resolv_conf = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        resolv_conf.push('\n');
        resolv_conf.push_str(&fs::read_to_string(RESOLVED_CONF).unwrap_or_default());
        let mut surroundings = self.kernel.surroundings(config, &resolv_conf)?;
        surroundings
            .resolvers
            .retain(|resolver| !resolver.is_loopback());
        // What another configuration called the tunnel is no part of what is around it.
        let ours = |interface: &String| {
            (self.owned.claims.iter()).any(|claim| claim.interface == *interface)
        };
        surroundings
            .addresses
            .retain(|_, interface| !ours(interface));
        surroundings.mtus.retain(|interface, _| !ours(interface));
        Ok(surroundings)
    }

    /// The interfaces of overlays, by which a CNI may carry its pods' traffic.
    pub fn overlays(&mut self) -> Result<BTreeSet<String>, HostError> {
        Ok(self.kernel.overlays()?)
    }

    /// What [`Self::converge`] would change now.
    pub fn preview(&mut self, config: &HostConfig) -> Result<Vec<Change>, HostError> {
        let observed = self.observe(config)?;
        Ok(plan(&observed, config, &self.owned))
    }

    /// Makes the host match. Changes nothing when it does already.
    ///
    /// What cannot be changed is reported and does not keep the rest from being changed.
    pub fn converge(&mut self, config: &HostConfig) -> Result<Report, HostError> {
        let faults = conflicts::faults(config);
        if !faults.is_empty() {
            return Err(HostError::Conflicts(faults));
        }
        let claim = Claim::of(config);
        self.stale = false;
        self.standing = None;
        let mut observed = self.observe(config)?;
        if !self.owned.claims.contains(&claim) {
            let occupied = occupied(&observed, config, &self.owned);
            if !occupied.is_empty() {
                return Err(HostError::Occupied(occupied));
            }
            self.owned.claims.insert(claim.clone());
            self.owned.save(&self.directory)?;
        }
        // A full disk is no reason to leave a hole; after a reboot it would be one, so it is said.
        let unsaved = owned::save_fence(&self.directory, config).err();

        let mut changed = Vec::new();
        let mut refused = Vec::new();
        for _ in 0..ROUNDS {
            let changes = plan(&observed, config, &self.owned);
            if changes.is_empty() {
                break;
            }
            refused = apply(&mut self.kernel, &changes);
            changed.extend(changes);
            observed = self.observe(config)?;
        }
        let rest = plan(&observed, config, &self.owned);
        if rest.is_empty() && self.owned.claims.len() > 1 {
            // Of the others nothing is left.
            self.owned.claims.retain(|other| *other == claim);
            self.owned.save(&self.directory)?;
        }

        self.standing = plan::tunnel(&observed, &claim.interface)
            .filter(|link| link.up && rest.is_empty())
            .map(|link| Standing {
                ways: Ways::of(&observed, config, link),
                fence: config.fence.clone(),
            });

        let now = Instant::now();
        self.pace.looked(now);
        if !changed.is_empty() {
            self.pace.repaired(now);
        }
        self.interest = self.interest_in(&observed, config);
        let contested = self.pace.is_contested(now);
        if contested && !self.contested {
            tracing::warn!(
                interface = claim.interface,
                "another program keeps changing what is ours; it is put back twice a second"
            );
        }
        self.contested = contested;
        let missing = plan::plan_fence(&observed, config);
        let ahead = ahead(&observed, config);
        let is_table =
            |change: &Change| matches!(change, Change::ReplaceTable(_) | Change::SucceedTable(..));
        let is_rule = |change: &Change| matches!(change, Change::AddRule(_) | Change::AddRoute(_));
        Ok(Report {
            link: link_state(&observed, &claim.interface),
            rules_stand: !missing.iter().any(is_rule) && ahead.is_empty(),
            ahead,
            table_stands: !missing.iter().any(is_table)
                && !matches!(observed.nftables, Nftables::Absent(_)),
            masquerades: plan::masquerades(&observed, config),
            drops: observed.drops(&claim),
            nftables: observed.nftables,
            changed,
            refused,
            unsaved,
            contested,
        })
    }

    /// Removes and adds routes into the tunnel where the last [`Self::converge`] has left all as it should be, and
    /// what is fenced stays the same. Does not look at the rest, so it costs these routes. What the kernel
    /// refused; `None`, and nothing is changed, where the whole is to be looked at instead.
    pub fn adjust(
        &mut self,
        removed: &BTreeSet<IpNet>,
        added: &BTreeSet<IpNet>,
    ) -> Option<Vec<(Change, KernelError)>> {
        let standing = self.standing.as_ref().filter(|_| !self.stale)?;
        if !conflicts::faults_of_routes(added, &standing.fence).is_empty() {
            return None;
        }
        let route = |prefix| standing.ways.route(prefix);
        let removals = removed.iter().filter_map(route).map(Change::RemoveRoute);
        let additions = added.iter().filter_map(route).map(Change::AddRoute);
        let changes: Vec<Change> = removals.chain(additions).collect();
        let refused = apply(&mut self.kernel, &changes);
        if !refused.is_empty() {
            self.standing = None;
        }
        Some(refused)
    }

    /// Waits until the host has changed in a way that [`Self::converge`] may care about.
    ///
    /// Returns early once in a while in case an event was missed, and late when another program
    /// keeps undoing what is put back. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Result<(), HostError> {
        if !self.stale {
            match tokio::time::timeout(UNASKED, self.watcher.changed(&self.interest)).await {
                Ok(result) => result?,
                Err(_) => return Ok(()),
            }
            self.stale = true;
        }
        let next = self.pace.next(Instant::now());
        tokio::time::sleep_until(next).await;
        // What came meanwhile is seen by the same look.
        self.watcher.forget()?;
        Ok(())
    }

    fn interest_in(&self, observed: &Observed, config: &HostConfig) -> Interest {
        let claims = &self.owned.claims;
        // What was too long to be read makes no difference whatever is in it.
        let read = observed
            .others
            .iter()
            .filter(|(_, routes)| routes.is_some());
        let ours = |link: &&Link| claims.iter().any(|claim| claim.interface == link.name);
        let names = (observed.order.iter())
            .flat_map(|rule| [&rule.from_interface, &rule.by_interface])
            .flatten();
        Interest {
            claims: claims.iter().cloned().collect(),
            tables: read.map(|((_, table), _)| *table).collect(),
            links: (observed.links.values().filter(ours))
                .map(|link| link.index)
                .collect(),
            names: names.cloned().collect(),
            own_port: Some(self.kernel.route.port()),
            behind: crate::fence::behind(config),
        }
    }

    /// Removes everything that is on record as ours, and nothing else, and then the record.
    pub fn uninstall(mut self) -> Result<Vec<Change>, HostError> {
        let mut changed = Vec::new();
        for _ in 0..ROUNDS {
            let observed = self.kernel.observe(self.owned.claims.iter())?;
            let changes = plan::plan_uninstall(&observed, &self.owned);
            if changes.is_empty() {
                owned::forget(&self.directory)?;
                return Ok(changed);
            }
            for change in changes {
                refused_is_an_error(apply(&mut self.kernel, std::slice::from_ref(&change)))?;
                changed.push(change);
            }
        }
        Err(HostError::Returns)
    }
}

/// Puts the fence up as the state directory has it: before the network, without a daemon.
///
/// Adds only. What stands already is left as it is.
pub fn load_fence(directory: &Path) -> Result<Vec<Change>, HostError> {
    let config = owned::load_fence(directory)?;
    let config = config.ok_or_else(|| HostError::NoFence(directory.to_owned()))?;
    let faults = conflicts::identity_faults(&config);
    if !faults.is_empty() {
        return Err(HostError::Conflicts(faults));
    }
    let claim = Claim::of(&config);
    let mut kernel = Kernel::open()?;
    let mut changed = Vec::new();
    let mut refused = Vec::new();
    // The second round does without what the kernel did not know in the first.
    for _ in 0..ROUNDS {
        let observed = kernel.observe([&claim].into_iter())?;
        let changes = plan::plan_fence(&observed, &config);
        if changes.is_empty() {
            return Ok(changed);
        }
        refused = apply(&mut kernel, &changes);
        changed.extend(changes);
    }
    refused_is_an_error(refused)?;
    Ok(changed)
}

fn refused_is_an_error(refused: Vec<(Change, KernelError)>) -> Result<(), HostError> {
    match refused.into_iter().next() {
        Some((change, error)) => Err(HostError::Refused {
            change: Box::new(change),
            error,
        }),
        None => Ok(()),
    }
}

fn link_state(observed: &Observed, interface: &str) -> LinkState {
    match (plan::tunnel(observed, interface), observed.link(interface)) {
        (Some(link), _) if link.up => LinkState::Up(link.index),
        (Some(link), _) => LinkState::Down(link.index),
        (None, Some(_)) => LinkState::NotATun,
        (None, None) => LinkState::Missing,
    }
}

/// Makes all changes in order, and says which the kernel refused.
fn apply(kernel: &mut Kernel, changes: &[Change]) -> Vec<(Change, KernelError)> {
    let mut refused = Vec::new();
    let are_few = changes.len() <= CHANGES_IN_LOG;
    if !are_few {
        tracing::info!(changes = changes.len(), "changing the host");
    }
    for change in changes {
        match kernel.make(change) {
            Ok(()) if are_few => tracing::info!(%change, "changed the host"),
            Ok(()) => tracing::debug!(%change, "changed the host"),
            Err(error) => {
                tracing::warn!(%change, %error, "the kernel refused");
                refused.push((change.clone(), error));
            }
        }
    }
    refused
}

impl Kernel {
    fn make(&mut self, change: &Change) -> Result<(), KernelError> {
        use libc::{EADDRNOTAVAIL, EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, ESRCH};

        // Somebody else may have done it meanwhile.
        let done: &[i32] = match change {
            Change::AddRule(_) => &[EEXIST],
            Change::RemoveTable(_)
            | Change::RemoveRule(_)
            | Change::RemoveRoute(_)
            | Change::RemoveAddress(_)
            | Change::RemoveLink(_) => &[ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL],
            _ => &[],
        };
        let result = match change {
            Change::ReplaceTable(table) => self.transaction(&table.replace()),
            Change::SucceedTable(table, remains) => {
                let [add, remove] = table.succeed(remains);
                let renewed = self
                    .transaction(&add)
                    .and_then(|()| self.transaction(&remove));
                renewed.or_else(|_| self.transaction(&table.replace()))
            }
            Change::AdoptTable(name) => self.transaction(&crate::nft::adopt(name)),
            Change::RemoveTable(name) => self.transaction(&crate::nft::remove(name)),
            Change::AddRule(rule) => self
                .knows_selectors(rule)
                .and_then(|()| self.route.request(&rule.add())),
            Change::RemoveRule(rule) => self.route.request(&rule.remove()),
            Change::AddRoute(route) => self.route.request(&route.add()),
            Change::RemoveRoute(route) => self.route.request(&route.remove()),
            Change::SetMtu(index, mtu) => self.route.request(&route::set_mtu(*index, *mtu)),
            Change::SetReversePathFilter(index, value) => self
                .route
                .request(&route::set_reverse_path_filter(*index, *value)),
            Change::SetNoLinkLocal(index) => self.route.request(&route::set_no_link_local(*index)),
            Change::AddAddress(address) => self.route.request(&address.add()),
            Change::RemoveAddress(address) => self.route.request(&address.remove()),
            Change::SetUp(index) => self.route.request(&route::set_up(*index)),
            Change::RemoveLink(index) => self.route.request(&route::remove_link(*index)),
        };
        match result {
            Err(error) if done.contains(&error.errno()) => Ok(()),
            Err(error) => {
                // Flags that the kernel does not know, or an expression: the next round does without.
                if matches!(change, Change::ReplaceTable(table) if table.name.family.is_some()) {
                    self.features.masquerade = false;
                } else if matches!(
                    change,
                    Change::ReplaceTable(_) | Change::SucceedTable(..) | Change::AdoptTable(_)
                ) {
                    match error.errno() {
                        EOPNOTSUPP | EINVAL if self.features.exclusive => {
                            self.features.exclusive = false;
                        }
                        ENOENT | EOPNOTSUPP => self.features.way_back = false,
                        _ => {}
                    }
                }
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// That the kernel knows all that a rule selects by. One that does not passes over the rest, and a rule
    /// for one port would be one for everything.
    fn knows_selectors(&mut self, rule: &Rule) -> Result<(), KernelError> {
        if rule.port.is_none() {
            return Ok(());
        }
        let known = match self.ports_in_rules {
            Some(known) => known,
            None => {
                self.route.request(&rule.try_out())?;
                let rules = self.route.dump(&route::dump_rules(rule.family));
                self.route.request(&rule.end_of_trial())?;
                let rules = rules?;
                let found = rules.iter().filter_map(|raw| AnyRule::parse(raw));
                let known = found.into_iter().any(|found| found.is_trial_of(rule));
                *self.ports_in_rules.insert(known)
            }
        };
        match known {
            true => Ok(()),
            false => Err(std::io::Error::other(
                "this kernel's rules know no ports, as Linux has since 4.17; steer by prefixes",
            )
            .into()),
        }
    }

    fn transaction(&mut self, messages: &[crate::wire::Message]) -> Result<(), KernelError> {
        match &mut self.netfilter {
            Ok(netfilter) => netfilter.transaction(messages),
            Err(reason) => Err(std::io::Error::other(reason.clone()).into()),
        }
    }
}
