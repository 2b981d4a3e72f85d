//! Where threads meet: the primitives of the standard library, or with `--cfg shuttle` those that
//! let a test try many orders of the threads' steps (`tests/simulation/tests/races.rs`).
//!
//! The descriptors' side of the engine uses the standard library's directly.

#[cfg(not(shuttle))]
mod real {
    pub(crate) use arc_swap::ArcSwap;
    pub(crate) use std::sync::{
        Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
    };
}

#[cfg(shuttle)]
mod real {
    use std::sync::Arc;

    pub(crate) use shuttle::sync::{
        Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
    };

    /// What `arc_swap` promises, by a lock that shuttle knows.
    pub(crate) struct ArcSwap<T>(Mutex<Arc<T>>);

    impl<T> ArcSwap<T> {
        pub(crate) fn from_pointee(value: T) -> Self {
            Self(Mutex::new(Arc::new(value)))
        }

        pub(crate) fn load(&self) -> Arc<T> {
            Arc::clone(&self.0.lock().expect("nobody panics while holding it"))
        }

        pub(crate) fn load_full(&self) -> Arc<T> {
            self.load()
        }

        pub(crate) fn store(&self, value: Arc<T>) {
            // The old value is dropped when the lock is free again.
            let _old = std::mem::replace(
                &mut *self.0.lock().expect("nobody panics while holding it"),
                value,
            );
        }
    }
}

pub(crate) use real::*;
