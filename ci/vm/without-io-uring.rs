//! `without-io-uring ERRNO COMMAND...`: runs a command under a seccomp profile that refuses io_uring with an error number, as
//! container runtimes do: 1 (EPERM) or 38 (ENOSYS). For `ci/kernels`.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// io_uring_setup, io_uring_enter and io_uring_register, on every architecture.
const IO_URING_CALLS: [i64; 3] = [425, 426, 427];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(errno), Some(command)) = (arguments.next(), arguments.next()) else {
        return Err("usage: without-io-uring ERRNO COMMAND...".into());
    };
    let filter = SeccompFilter::new(
        BTreeMap::from(IO_URING_CALLS.map(|call| (call, Vec::new()))),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.parse()?),
        std::env::consts::ARCH.try_into()?,
    )?;
    apply_filter(&BpfProgram::try_from(filter)?)?;
    Err(Command::new(command).args(arguments).exec().into())
}
