//! The errors that completions have as results.

use rustix::io::Errno;

/// The errors of a receive that has ended although the connection has not.
pub(super) const NOT_THE_END: &[Errno] =
    &[Errno::NOBUFS, Errno::CANCELED, Errno::AGAIN, Errno::INTR, Errno::NOMEM];

/// Reports whether a completion's result is any of these errors.
pub(super) fn is_one_of(result: i32, errors: &[Errno]) -> bool {
    errors.iter().any(|error| result == -error.raw_os_error())
}
