# shellcheck shell=bash
# The part that the checks share. Each begins with: source "$(dirname "$0")/lib.sh"
#
# It goes to the root of the repository and makes a temporary directory, $work. When the check ends, or gets SIGINT or SIGTERM,
# everything that it started is stopped and the directory is removed.

# A script that a shell starts in the background ignores SIGINT, and so would everything that it
# starts. Tests and servers need the default disposition.
if [ -n "$(trap -p INT QUIT)" ]; then
    exec env --default-signal=INT,QUIT "$BASH" "$0" "$@"
fi
set -euo pipefail
check=$(realpath "$0")
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
check=${check#"$PWD"/}

work=$(mktemp -d)
started=()
bounded_pid=''
# The program that `build` makes.
# shellcheck disable=SC2034 # used by the checks
ringtally=${CARGO_TARGET_DIR:-target}/release/ringtally

# fail REASON: ends the check.
fail() {
    echo "$check: $1" >&2
    exit 1
}

# Reports whether this is the runner of .github/workflows/ci.yml.
on_runner() {
    [ "${CI:-}" = true ] && [ "${GITHUB_ACTIONS:-}" = true ]
}

# skip REASON: ends the check without a result. On the runner that is a failure: a check that is
# skipped there checks nothing anywhere.
skip() {
    if on_runner; then fail "cannot run: $1"; fi
    echo "$check: SKIPPED, nothing was checked: $1"
    exit 0
}

# install_packages PACKAGE...: installs from the distribution, as root, or with sudo on the runner.
install_packages() {
    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        on_runner || return 1
        as_root=(sudo -n)
    fi
    command -v apt-get >/dev/null || return 1
    if ! {
        "${as_root[@]}" timeout --kill-after=10 300 apt-get update -qq &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive timeout --kill-after=10 900 \
                apt-get install -qq -y --no-install-recommends "$@"
    } >"$work/install.log" 2>&1; then
        tail -n 5 "$work/install.log" >&2
        return 1
    fi
}

# missing TOOL[=PACKAGE]...: prints the packages of the tools that are not installed.
missing() {
    local tool
    for tool in "$@"; do
        command -v "${tool%%=*}" >/dev/null || echo "${tool#*=}"
    done
}

# need TOOL[=PACKAGE]...: installs what is missing; skips the check if that is not possible.
need() {
    local packages
    mapfile -t packages < <(missing "$@" | sort -u)
    [ "${#packages[@]}" = 0 ] || install_packages "${packages[@]}" || skip "install ${packages[*]}"
}

# The programs that `cargo_tool` and `python_tool` install.
tools=$PWD/target/tools

# cargo_tool NAME VERSION [FLAG...]: installs a program from crates.io once, without optimization, which takes
# half the time to build, or with $tool_profile=release. Skips the check if that is not possible. Sets $tool to its path.
cargo_tool() {
    local name=$1 version=$2 profile=${tool_profile:-dev}
    local root=$tools/$1-$2-$profile
    shift 2
    tool=$root/bin/$name
    [ ! -x "$tool" ] || return 0
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$tools/build" bounded 900 cargo install --quiet --profile "$profile" \
        --locked --root "$root" "$@" "$name@$version" || skip "$name $version cannot be installed from crates.io"
    rm -rf "$tools/build"
}

# python_tool PACKAGE==VERSION...: installs programs from PyPI. Skips the check if that is not possible. They are
# in $tools/python/bin.
python_tool() {
    need python3
    python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv || skip "install python3-venv"
    if [ ! -x "$tools/python/bin/pip" ]; then
        bounded 120 python3 -m venv "$tools/python" || skip "python3 -m venv does not work here"
    fi
    bounded 300 "$tools/python/bin/pip" install --quiet --disable-pip-version-check "$@" ||
        skip "$* cannot be installed from PyPI"
}

# bounded SECONDS COMMAND...: runs a command that must end within this time. It runs in the background so that a signal to the
# check does not have to wait for it.
bounded() {
    local seconds=$1 status=0
    shift
    env --default-signal=INT,QUIT timeout --kill-after=10 "$seconds" "$@" <&0 &
    bounded_pid=$!
    wait "$bounded_pid" || status=$?
    bounded_pid=''
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        echo "$check: stopped after $seconds s: $*" >&2
    fi
    return "$status"
}

build() {
    bounded 1500 cargo build --quiet --release || fail "the program does not build"
}

# Prints the CPUs that this process may use, one per line.
allowed_cpus() {
    taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' |
        awk -F- '{ for (cpu = $1; cpu <= ($2 == "" ? $1 : $2); cpu++) print cpu }'
}

# start LOG COMMAND...: runs a command until the check ends. Its standard error goes to LOG and its
# standard output to LOG.out. Sets $pid.
start() {
    local log=$1
    shift
    # An earlier command's output must not be mistaken for this command's.
    : >"$log"
    env --default-signal=INT,QUIT "$@" </dev/null >"$log.out" 2>"$log" &
    pid=$!
    started+=("$pid")
}

# serve LOG FLAG...: starts a server and waits until it is ready. Sets $pid and $url.
serve() {
    local log=$1
    shift
    start "$log" "$ringtally" serve --port 0 "$@"
    for _ in $(seq 100); do
        url=$(sed -n 's|.*listening on \(http://[^ ]*\) .*|\1|p' "$log")
        [ -z "$url" ] || return 0
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    fail "the server did not start: $(tail -n 5 "$log")"
}

# stop PID: ends a process that `start` started, unless it has ended: somebody else's process may have its number by then.
stop() {
    local running
    running=$(jobs -rp)
    [[ $'\n'$running$'\n' == *$'\n'"$1"$'\n'* ]] || return 0
    kill "$1" 2>/dev/null || return 0
    if ! timeout 15 tail --pid="$1" -s 0.1 -f /dev/null; then
        echo "$check: process $1 did not end within 15 s of SIGTERM, and was killed" >&2
        kill -KILL "$1" 2>/dev/null || true
    fi
    wait "$1" 2>/dev/null || true
}

# A check that has more to undo defines `undo`.
clean_up() {
    local pid
    [ -z "$bounded_pid" ] || stop "$bounded_pid"
    for pid in "${started[@]}"; do stop "$pid"; done
    if declare -F undo >/dev/null; then undo; fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM
