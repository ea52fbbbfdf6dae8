//! The errors that completions have for results.

use rustix::io::Errno;

/// A receive that has ended on a connection that has not.
pub(super) const NOT_THE_END: &[Errno] =
    &[Errno::NOBUFS, Errno::CANCELED, Errno::AGAIN, Errno::INTR, Errno::NOMEM];

/// Whether a completion's result is one of these errors.
pub(super) fn is_one_of(result: i32, errors: &[Errno]) -> bool {
    errors.iter().any(|error| result == -error.raw_os_error())
}
