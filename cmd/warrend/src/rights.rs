//! Whether this process may do what a daemon does.

use anyhow::bail;
use rustix::thread::{CapabilitySet, capabilities};

/// One sentence instead of one for each thing that the kernel would refuse.
pub(crate) fn check() -> anyhow::Result<()> {
    match capabilities(None) {
        Ok(sets) if !sets.effective.contains(CapabilitySet::NET_ADMIN) => {
            bail!(
                "no permission to change interfaces, routes and rules; it takes root or CAP_NET_ADMIN"
            )
        }
        // A kernel that does not tell is one to try.
        Ok(_) | Err(_) => Ok(()),
    }
}
