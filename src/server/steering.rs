//! Steering by CPU: a classic BPF program picks the listening socket of the shard on the CPU that
//! received the connection.
//!
//! The program is attached to the group that SO_REUSEPORT makes of the sockets (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5) and
//! returns the index of a socket in the group. Sockets get their indices in the order that they began to listen, which is the
//! order of the shards. While the server stops, the last socket takes the index of a socket that leaves. A connection then
//! reaches some shard that still listens, as it does by hash, and that shard serves it.

use super::Inherited;
use super::listener::PORT_PATIENCE;
use crate::engine::Steer;
use crate::failure::Failure;
use crate::listening;
use nix::libc::{sock_filter, sock_fprog};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::AttachReusePortCbpf;
use socket2::Socket;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Instructions of classic BPF (linux/bpf_common.h): BPF_LD | BPF_W | BPF_ABS, and so on.
const LOAD: u16 = 0x20;
const ADD: u16 = 0x04;
const MODULO: u16 = 0x94;
const JUMP: u16 = 0x05;
const JUMP_IF_ABOVE: u16 = 0x25;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const RETURN_ACCUMULATOR: u16 = 0x16;
/// The offset of the number of the CPU that runs the program, for LOAD: SKF_AD_OFF + SKF_AD_CPU (linux/filter.h).
const CURRENT_CPU: u32 = (-0x1000_i32 + 36).cast_unsigned();
/// The maximum length of a conditional jump, in instructions.
const CONDITIONAL_JUMP_MAX: usize = u8::MAX as usize;

/// A program that returns an index without a socket, so that the kernel chooses by hash.
const BY_HASH: sock_filter = sock_filter { code: RETURN, jt: 0, jf: 0, k: u32::MAX };

/// Makes the kernel hand connections to the shards' listeners in the requested way. `placement` has the CPU
/// of each shard.
///
/// # Errors
///
/// [`Failure::Environment`]: the shards share one inherited socket, or the kernel refuses the program.
pub(super) fn steer(
    steer: Steer,
    listeners: &[Socket],
    inherited: Inherited,
    placement: &[usize],
) -> Result<(), Failure> {
    match (steer, inherited) {
        // An inherited socket keeps the program of an earlier server. A socket without a group cannot have a program.
        (Steer::Hash, Inherited::First) => {
            let _ = attach(&listeners[0], &mut [BY_HASH]);
            return Ok(());
        }
        (Steer::Hash, _) => return Ok(()),
        (Steer::Cpu, _) if listeners.len() == 1 => return Ok(()),
        (Steer::Cpu, Inherited::No | Inherited::First) => {}
        (Steer::Cpu, Inherited::All) => {
            return Err(Failure::Environment(
                "--steer cpu needs a listening socket for each shard, and this user may add none to the socket \
                 of LISTEN_FDS, which another user has made: run the server as that user, let the server listen \
                 by itself, or pass --steer hash"
                    .into(),
            ));
        }
    }
    attach(&listeners[0], &mut program(placement)).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::OutOfMemory => "raise net.core.optmem_max, or pass --steer hash",
            _ => "pass --steer hash",
        };
        Failure::Environment(format!(
            "the kernel refuses the program of --steer cpu: {advice} ({error})"
        ))
    })
}

/// Refuses an inherited socket if other sockets listen on its address, because they also have indices in its group. Sockets of
/// a server that has just ended may remain for a moment.
///
/// # Errors
///
/// [`Failure::Environment`] if connections must be steered and there are such sockets.
pub(super) fn check_inherited(
    steer: Steer,
    inherited: &Socket,
    shards: usize,
) -> Result<(), Failure> {
    let address = inherited.local_addr().ok().and_then(|address| address.as_socket());
    let Some(address) = address.filter(|_| steer == Steer::Cpu && shards > 1) else {
        return Ok(());
    };
    let patience = Instant::now() + PORT_PATIENCE;
    // Without /proc, the number is unknown.
    while listening_on(address).unwrap_or(1) > 1 {
        if Instant::now() >= patience {
            return Err(is_not_alone(address));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn is_not_alone(address: SocketAddr) -> Failure {
    Failure::Environment(format!(
        "other sockets listen on {address} too (ReusePort=), and --steer cpu needs those of this server to be \
         the only ones: stop what uses the others, or pass --steer hash"
    ))
}

/// Returns the number of sockets that listen on an address.
fn listening_on(address: SocketAddr) -> procfs::ProcResult<usize> {
    Ok(listening::sockets()?.iter().filter(|socket| socket.local_address == address).count())
}

/// Attaches a program to the group of a listening socket, replacing its current program.
fn attach(listener: &Socket, program: &mut [sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).expect("there are at most 4,096 instructions");
    let program = sock_fprog { len, filter: program.as_mut_ptr() };
    setsockopt(listener, AttachReusePortCbpf, &program).map_err(io::Error::from)
}

/// Consecutive CPUs, whose shards have consecutive indices.
#[derive(Clone, Copy, Debug)]
struct Run {
    first_cpu: u32,
    last_cpu: u32,
    /// The index of the first CPU's shard.
    place: u32,
}

/// One instruction, or a jump whose length is known only at the end.
#[derive(Clone, Copy)]
enum Step {
    Do(sock_filter),
    /// A jump to the steps for a CPU without a shard.
    GoToOther,
}

impl Step {
    fn plain(code: u16, k: u32) -> Step {
        Step::Do(sock_filter { code, jt: 0, jf: 0, k })
    }

    /// Returns a jump over `skipped` (at most [`CONDITIONAL_JUMP_MAX`]) instructions if the condition holds.
    fn skip_if(condition: u16, k: u32, skipped: usize) -> Step {
        let jt = u8::try_from(skipped).expect("a longer jump is not conditional");
        Step::Do(sock_filter { code: condition, jt, jf: 0, k })
    }
}

/// Returns the program for one shard on each of these CPUs, which must be in ascending order. The program returns the index of
/// the current CPU's shard or, on a CPU without a shard, the CPU's number modulo the number of shards.
///
/// The program is a binary search. Its size grows with the number of gaps between the CPUs: for 512 CPUs, each with a gap after
/// it, it has two thirds of the 4,096 instructions that the kernel allows.
fn program(placement: &[usize]) -> Vec<sock_filter> {
    assert!(placement.is_sorted_by(|cpu, next| cpu < next), "the command line makes it so");
    let runs = runs(placement);
    let first = runs.first().map_or(0, |run| run.first_cpu);
    let mut steps = vec![Step::plain(LOAD, CURRENT_CPU)];
    steps.extend([Step::skip_if(JUMP_IF_AT_LEAST, first, 1), Step::GoToOther]);
    steps.extend(search(&runs));
    let other_at = steps.len();
    steps.push(Step::plain(MODULO, number(placement.len().max(1))));
    steps.push(Step::plain(RETURN_ACCUMULATOR, 0));
    let resolved = steps.iter().enumerate().map(|(at, step)| match step {
        Step::Do(instruction) => *instruction,
        Step::GoToOther => sock_filter { code: JUMP, jt: 0, jf: 0, k: number(other_at - at - 1) },
    });
    resolved.collect()
}

/// Returns the steps that find the run of a CPU, which must not be below the first run.
fn search(runs: &[Run]) -> Vec<Step> {
    let middle = match runs {
        [] => return Vec::new(),
        [run] => return place_in(*run).to_vec(),
        _ => runs.len() / 2,
    };
    let (below, above) = runs.split_at(middle);
    let border = above[0].first_cpu;
    let below = search(below);
    let mut steps = match below.len() {
        len @ ..=CONDITIONAL_JUMP_MAX => vec![Step::skip_if(JUMP_IF_AT_LEAST, border, len)],
        // Below the border, the long jump is skipped.
        len => vec![
            Step::Do(sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: border }),
            Step::plain(JUMP, number(len)),
        ],
    };
    steps.extend(below);
    steps.extend(search(above));
    steps
}

/// Returns the steps that return the index of a CPU's shard. The CPU must not be below the first CPU of the run.
fn place_in(run: Run) -> [Step; 4] {
    [
        Step::skip_if(JUMP_IF_ABOVE, run.last_cpu, 2),
        // This adds modulo 2^32, because the index may be less than the CPU's number.
        Step::plain(ADD, run.place.wrapping_sub(run.first_cpu)),
        Step::plain(RETURN_ACCUMULATOR, 0),
        Step::GoToOther,
    ]
}

fn runs(placement: &[usize]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (place, cpu) in placement.iter().enumerate() {
        let (place, cpu) = (number(place), number(*cpu));
        match runs.last_mut() {
            Some(run) if cpu == run.last_cpu + 1 => run.last_cpu = cpu,
            _ => runs.push(Run { first_cpu: cpu, last_cpu: cpu, place }),
        }
    }
    runs
}

fn number(number: usize) -> u32 {
    u32::try_from(number).expect("there are at most 1,024 CPUs and shards, and 4,096 instructions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::SHARDS_MAX;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The maximum number of instructions that the kernel accepts (BPF_MAXINSNS).
    const INSTRUCTIONS_MAX: usize = 4096;

    /// Runs the program on a CPU and returns its result. Panics if the kernel would refuse the program.
    fn run(program: &[sock_filter], cpu: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let mut branch = |holds: bool| at += usize::from(if holds { jt } else { jf });
            match code {
                LOAD => {
                    assert_eq!(k.cast_signed(), -0x1000 + 36);
                    accumulator = cpu;
                }
                ADD => accumulator = accumulator.wrapping_add(k),
                MODULO => accumulator %= k,
                JUMP => at += k as usize,
                JUMP_IF_ABOVE => branch(accumulator > k),
                JUMP_IF_AT_LEAST => branch(accumulator >= k),
                RETURN => return k,
                RETURN_ACCUMULATOR => return accumulator,
                _ => panic!("{code:#x} is no instruction of this program"),
            }
        }
    }

    /// Runs the program for shards on these CPUs on every accepted CPU and on one beyond them.
    fn check(placement: &[usize]) {
        let program = program(placement);
        assert!(program.len() <= INSTRUCTIONS_MAX, "{} for {placement:?}", program.len());
        for cpu in 0..=1024 {
            let shard = placement.iter().position(|of_shard| *of_shard == cpu);
            let expected = shard.unwrap_or(cpu % placement.len());
            assert_eq!(run(&program, number(cpu)) as usize, expected, "CPU {cpu} of {placement:?}");
        }
    }

    #[test]
    fn a_cpu_gets_its_shard_and_one_without_a_shard_its_number_modulo_the_shards() {
        for count in [1, 2, 3, 64, 300, 1024] {
            check(&(0..count).collect::<Vec<_>>());
            // The other hyperthread of each core is left to other programs.
            check(&(0..count).map(|cpu| cpu * 2).filter(|cpu| *cpu < 1024).collect::<Vec<_>>());
        }
        check(&[1023]);
        check(&[4, 5, 6, 7, 12]);
        check(&(1..1024).step_by(2).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn any_set_of_cpus_is_steered(
            cpus in prop::collection::btree_set(0..=1023_usize, 1..=SHARDS_MAX),
        ) {
            check(&cpus.into_iter().collect::<Vec<_>>());
        }
    }

    fn group(count: usize) -> Vec<Socket> {
        super::super::listener::listen(SocketAddr::from(([127, 0, 0, 1], 0)), count).unwrap()
    }

    #[test]
    fn the_kernel_takes_the_longest_program_and_what_replaces_it() {
        let group = group(2);
        let scattered: Vec<usize> = (1..1024).step_by(2).collect();
        attach(&group[0], &mut program(&scattered)).unwrap();
        attach(&group[1], &mut program(&[0, 1])).unwrap();
        steer(Steer::Hash, &group, Inherited::First, &[0, 1]).unwrap();
    }

    /// Checks that the kernel delivers connections, without shards that accept them.
    #[test]
    fn the_sockets_of_a_group_have_the_places_of_their_shards() {
        let group = group(4);
        let address = group[0].local_addr().unwrap().as_socket().unwrap();
        for shard in 0..4 {
            // This program acts as if the shard were on every CPU.
            let place = sock_filter { code: RETURN, jt: 0, jf: 0, k: number(shard) };
            attach(&group[0], &mut [place]).unwrap();
            let clients: Vec<_> =
                (0..8).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            let accepted = |socket: &Socket| std::iter::from_fn(|| socket.accept().ok()).count();
            let by_shard: Vec<usize> = group.iter().map(accepted).collect();
            assert_eq!(by_shard[shard], clients.len(), "{shard}: {by_shard:?}");
        }
        steer(Steer::Hash, &group, Inherited::First, &[0, 1, 2, 3]).unwrap();
        let _clients: Vec<_> =
            (0..64).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let used: BTreeSet<usize> = (0..4).filter(|shard| group[*shard].accept().is_ok()).collect();
        assert!(used.len() > 1, "64 connections by hash, all to {used:?}");
    }

    #[test]
    fn the_kernel_runs_the_program_as_the_test_does() {
        let cpus = crate::topology::allowed_cpus();
        let unused = [1019, 1021, 1023];
        let used: Vec<usize> = cpus.iter().copied().take(unused.len()).collect();
        for placement in [&unused[..], &used] {
            let group = group(placement.len());
            let address = group[0].local_addr().unwrap().as_socket().unwrap();
            attach(&group[0], &mut program(placement)).unwrap();
            for cpu in cpus.iter().copied().filter(|cpu| !unused.contains(cpu)) {
                let connect = move || {
                    // Over loopback, the sender's CPU receives the connection.
                    assert!(crate::topology::pin_to(cpu));
                    std::net::TcpStream::connect(address).unwrap()
                };
                let _client = std::thread::spawn(connect).join().unwrap();
                let by_shard = group.iter().map(|socket| socket.accept().is_ok());
                let place = run(&program(placement), number(cpu)) as usize;
                assert_eq!(
                    by_shard.collect::<Vec<_>>().iter().position(|is_it| *is_it),
                    Some(place)
                );
            }
        }
    }

    #[test]
    fn an_inherited_socket_that_is_not_alone_is_refused_only_where_it_matters() {
        assert_eq!(check_inherited(Steer::Cpu, &group(1)[0], 2), Ok(()));
        let group = group(2);
        assert_eq!(check_inherited(Steer::Hash, &group[0], 2), Ok(()));
        assert_eq!(check_inherited(Steer::Cpu, &group[0], 1), Ok(()));
        let said = check_inherited(Steer::Cpu, &group[0], 2).unwrap_err();
        assert_eq!(said.exit_code(), 3);
        assert!(said.to_string().contains("pass --steer hash"), "{said}");
    }
}
