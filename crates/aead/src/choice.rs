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

/// Why what has this [`Implementation::name`] cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// The processor has no instructions for it.
    Lacking(&'static str),
    /// It is there, but its results are not the library's: a fault of the code or of the processor.
    Disagrees(&'static str),
}

/// Has every key of this program made by what is chosen. For the start, before there are keys and
/// while no other thread is in the way of the clock: [`Choice::Auto`] takes the time to find out, and
/// [`Implementation::distrusted`] then tells what it left out for its results.
///
/// # Errors
///
/// If what is chosen cannot be used; then nothing is decided.
///
/// # Panics
///
/// If it was decided otherwise before.
pub fn choose(choice: Choice) -> Result<(), Unusable> {
    let implementation = match choice {
        Choice::Auto => Implementation::current(),
        Choice::Library => Implementation::LIBRARY,
        Choice::Avx2 => Implementation::named("avx2")?,
        Choice::Avx512 => Implementation::named("avx512")?,
    };
    implementation.decide();
    Ok(())
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lacking(name) => write!(
                f,
                "this processor lacks what {name} needs; auto takes the fastest that it has"
            ),
            Self::Disagrees(name) => write!(
                f,
                "{name} computes something else than the library on this processor: please report it; \
                 auto leaves it out"
            ),
        }
    }
}

impl Error for Unusable {}

#[cfg(test)]
mod tests {
    use super::Unusable;

    #[test]
    fn what_cannot_be_used_is_refused_with_a_way_out() {
        for (refused, reason) in [
            (Unusable::Lacking("avx512"), "lacks what avx512 needs"),
            (
                Unusable::Disagrees("avx512"),
                "avx512 computes something else",
            ),
        ] {
            let said = refused.to_string();
            assert!(said.contains(reason), "{said}");
            assert!(said.contains("; auto "), "{said}");
        }
    }
}
