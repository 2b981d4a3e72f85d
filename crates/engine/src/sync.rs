//! Where threads meet: the primitives of the standard library, or with `--cfg shuttle` those that
//! let a test try many orders of the threads' steps (`tests/simulation/tests/races.rs`).
//!
//! The descriptors' side of the engine uses the standard library's directly.

#[cfg(not(shuttle))]
mod real {
    use std::sync::LockResult;

    pub(crate) use arc_swap::ArcSwap;
    pub(crate) use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard, atomic};

    /// The standard library's, counted.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            count();
            self.0.lock()
        }
    }

    /// The standard library's, counted.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(std::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
            count();
            self.0.read()
        }

        pub(crate) fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
            count();
            self.0.write()
        }
    }

    #[cfg(debug_assertions)]
    thread_local! {
        static LOCKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    /// In a build that is not checked this is nothing.
    #[inline]
    fn count() {
        #[cfg(debug_assertions)]
        LOCKS.set(LOCKS.get() + 1);
    }

    /// How many of a router's locks this thread has taken so far, for the test that counts them.
    #[cfg(debug_assertions)]
    pub fn locks_taken() -> u64 {
        LOCKS.get()
    }
}

#[cfg(all(debug_assertions, not(shuttle)))]
pub use real::locks_taken;

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
