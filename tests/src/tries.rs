//! Tries what somebody would try who has taken a running `aditd` over: in a process that has given
//! up its rights as the server does, with the rules of a real configuration. And a kernel on which a
//! process can give nothing up.

use std::{
    collections::BTreeMap,
    env, fs, io,
    net::{SocketAddr, TcpStream},
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use rustix::io::Errno;
use serde_json::{Map, Value};

/// The argument after which `aditd` is run as on [`old_kernel`].
pub(crate) const OLD_KERNEL: &str = "on-an-old-kernel";
/// An address of nobody (RFC 5737).
const STRANGE: &str = "192.0.2.1:443";

/// Does what the first argument of this process names; otherwise returns.
pub(crate) fn run_if_named() {
    let first = env::args_os().nth(1).unwrap_or_default();
    if first == "try-sandbox" {
        run(env::args_os().skip(2));
        std::process::exit(0);
    }
    if first == OLD_KERNEL {
        panic!("aditd does not run: {}", old_kernel(env::args_os().skip(2)));
    }
}

/// Becomes `aditd` with these arguments, as on a kernel that has neither Landlock nor seccomp.
fn old_kernel(args: impl Iterator<Item = std::ffi::OsString>) -> io::Error {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition,
        SeccompFilter, SeccompRule,
    };
    let refuse = |rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32| {
        let arch = env::consts::ARCH.try_into().expect("a known processor");
        let refused = SeccompAction::Errno(errno.unsigned_abs());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch);
        let program: BpfProgram = filter.expect("rules").try_into().expect("a program");
        seccompiler::apply_filter(&program).expect("this kernel has seccomp");
    };
    refuse(BTreeMap::from([(libc::SYS_landlock_create_ruleset, Vec::new())]), libc::ENOSYS);
    let sets = u64::from(libc::PR_SET_SECCOMP.unsigned_abs());
    let sets = SeccompCondition::new(0, Dword, SeccompCmpOp::Eq, sets).expect("a condition");
    let sets = SeccompRule::new(vec![sets]).expect("a rule");
    let both = [(libc::SYS_seccomp, Vec::new()), (libc::SYS_prctl, vec![sets])];
    refuse(BTreeMap::from(both), libc::EINVAL);
    let name = env::args_os().next().unwrap_or_default();
    Command::new("/proc/self/exe").arg0(name).args(args).exec()
}

/// Gives up the rights, tries, and prints as JSON what became of each attempt. The arguments: the
/// state, the configuration, a file and a socket of somebody else, the port of the upstream and
/// another port on which somebody listens.
///
/// # Panics
/// If the rights cannot be given up.
fn run(args: impl Iterator<Item = std::ffi::OsString>) {
    let args: Vec<_> = args.map(PathBuf::from).collect();
    let [state, config, secret, socket, own, strange] = &args[..] else { panic!("six arguments") };
    let port = |text: &PathBuf| text.to_string_lossy().parse::<u16>().expect("a port");
    let (own, strange) = (port(own), port(strange));
    let flags = server::Flags { state_dir: Some(state.clone()), config: Some(config.clone()) };
    let settings = server::Config::resolve(&flags, &server::ServeFlags::default());
    let settings = settings.unwrap_or_else(|e| panic!("{e}"));
    server::State::open_or_create(state).unwrap_or_else(|e| panic!("{e}"));
    let program = env::args_os().next().map(PathBuf::from).expect("a name");
    let parent = rustix::process::getppid().expect("a parent");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        server::enter_sandbox(&settings).await;
        let mut found = Map::new();
        let mut tried = |what: &str, result: io::Result<()>| {
            let result = result.map_or_else(|e| shown(&e), |()| "done".to_owned());
            found.insert(what.to_owned(), Value::String(result));
        };
        tried("write its state", fs::write(state.join("tried"), "x"));
        tried("read its configuration", fs::read(config).map(drop));
        tried("connect to its upstream", TcpStream::connect(("127.0.0.1", own)).map(drop));
        tried("read /etc/passwd", fs::read("/etc/passwd").map(drop));
        tried("read /etc/resolv.conf", fs::read("/etc/resolv.conf").map(drop));
        tried("write where temporary files are", fs::write(env::temp_dir().join("adit-x"), "x"));
        tried("list the root", fs::read_dir("/").map(drop));
        tried("read another file", fs::read(secret).map(drop));
        tried("write another file", fs::write(secret, "x"));
        tried("write its configuration", fs::write(config, "x"));
        tried("connect to a strange port", TcpStream::connect(("127.0.0.1", strange)).map(drop));
        let strange: SocketAddr = STRANGE.parse().expect("an address");
        let connected = TcpStream::connect_timeout(&strange, Duration::from_secs(5));
        tried("connect to a strange address", connected.map(drop));
        tried("listen on a port", std::net::TcpListener::bind("127.0.0.1:0").map(drop));
        let unix = std::os::unix::net::UnixStream::connect(socket);
        tried("connect to a Unix socket", unix.map(drop));
        // IPPROTO_MPTCP: Landlock sees no connection of it.
        let mptcp = socket2::Protocol::from(262);
        let mptcp = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, Some(mptcp));
        tried("make a socket of MPTCP", mptcp.map(drop));
        // On a kernel with SCTP, this type alone makes a socket of it.
        let sctp = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::SEQPACKET, None);
        tried("make a socket of SCTP", sctp.map(drop));
        let dccp = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::from(6), None);
        tried("make a socket of DCCP", dccp.map(drop));
        let netlink = socket2::Type::DGRAM;
        let netlink = socket2::Socket::new(socket2::Domain::from(libc::AF_NETLINK), netlink, None);
        tried("ask for its addresses", netlink.map(drop));
        tried("make a pair of Unix datagram sockets", UnixDatagram::pair().map(drop));
        let packets = (socket2::Domain::UNIX, socket2::Type::SEQPACKET);
        let packets = socket2::Socket::pair(packets.0, packets.1, None);
        tried("make a pair that sends only to itself", packets.map(drop));
        let dumpable = rustix::process::DumpableBehavior::Dumpable;
        let dumpable = rustix::process::set_dumpable_behavior(dumpable);
        tried("let others look at its memory", dumpable.map_err(io::Error::from));
        let own = state.join("aditd");
        tried("write a program into its state", fs::write(&own, "#!/bin/sh\n"));
        let run = server::try_to_be_replaced_by(&own).await;
        tried("have that program run", refused(run, "aditd can write there"));
        let by_proc = format!("/proc/{}/root{}", std::process::id(), program.display());
        let by_proc = server::try_to_be_replaced_by(by_proc.as_ref()).await;
        tried("have a program run by its link in /proc", refused(by_proc, "`/proc`"));
        tried("run a program", Command::new("/bin/true").status().map(drop));
        let signal = rustix::process::test_kill_process(parent);
        tried("signal another process", signal.map_err(io::Error::from));
        let own_namespace = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
        tried("make a namespace", own_namespace.map_err(io::Error::from));
        // What one thread has given up, those have given up that it begins.
        let thread = std::thread::spawn(|| fs::read("/etc/passwd").map(drop));
        tried("read /etc/passwd in another thread", thread.join().expect("it ends"));
        println!("{}", Value::Object(found));
    });
}

/// An error of the broker has no number.
fn refused(result: io::Result<()>, why: &str) -> io::Result<()> {
    result.map_err(|e| if e.to_string().contains(why) { io::Error::other("refused") } else { e })
}

fn shown(e: &io::Error) -> String {
    match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS) => "EACCES".to_owned(),
        Some(Errno::PERM) => "EPERM".to_owned(),
        _ => e.to_string(),
    }
}
