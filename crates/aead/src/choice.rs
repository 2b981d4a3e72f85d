//! What an operator may ask for by name.

use std::error::Error;
use std::fmt;

use crate::Implementation;

/// What is to seal and open packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Choice {
    /// The fastest that the processor has
    #[default]
    Auto,
    /// One packet at a time, by the library
    Library,
    /// Many at a time by AVX2, even where the library is faster
    Avx2,
    /// Many at a time by AVX-512, even where the library is faster
    Avx512,
}

/// A [`Choice`] that cannot be had, since the processor lacks instructions that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lacking {
    /// [`Implementation::name`].
    name: &'static str,
}

/// Has every key of this program made by what is chosen. For the start, before there are keys and
/// while no other thread is in the way of the clock: [`Choice::Auto`] takes the time to find out.
///
/// # Errors
///
/// If the processor lacks what is chosen; then nothing is decided.
///
/// # Panics
///
/// If it was decided otherwise before.
pub fn choose(choice: Choice) -> Result<(), Lacking> {
    let named = |name| Implementation::named(name).ok_or(Lacking { name });
    let implementation = match choice {
        Choice::Auto => Implementation::current(),
        Choice::Library => Implementation::LIBRARY,
        Choice::Avx2 => named("avx2")?,
        Choice::Avx512 => named("avx512")?,
    };
    implementation.decide();
    Ok(())
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name } = self;
        write!(
            f,
            "this processor lacks what --aead {name} needs; --aead auto takes the fastest that it has"
        )
    }
}

impl Error for Lacking {}

#[cfg(test)]
mod tests {
    use super::{Choice, Lacking, choose};
    use crate::Implementation;

    #[test]
    fn what_the_processor_lacks_is_refused_with_a_way_out() {
        for (choice, name) in [(Choice::Avx2, "avx2"), (Choice::Avx512, "avx512")] {
            // What it has would be decided for all tests of this program.
            if Implementation::all().all(|implementation| implementation.name() != name) {
                assert_eq!(choose(choice), Err(Lacking { name }));
            }
        }
        let said = Lacking { name: "avx512" }.to_string();
        assert!(said.contains("--aead avx512"), "{said}");
        assert!(said.contains("--aead auto"), "{said}");
    }
}
