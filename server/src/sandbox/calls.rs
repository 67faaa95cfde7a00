//! seccomp: the system calls that a server never makes, and that help who has taken it over. A list
//! of what is denied, not of what is allowed: the next libc or kernel may need calls that nobody has
//! thought of, and a server that fails in the field is no gain. The unit of systemd has such a list
//! besides, which systemd keeps up to date. A denied call fails with EPERM.

use std::collections::BTreeMap;

use proto::failure::in_one_line;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// Whether the program can be made for this processor.
const IS_KNOWN: bool =
    cfg!(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"));

/// Calls that are denied whatever their arguments are.
const DENIED: &[i64] = &[
    // Other programs: the broker starts the one that replaces this.
    libc::SYS_execve,
    libc::SYS_execveat,
    // The memory and the files of other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    // Files without their paths.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    // Parts of the kernel with many faults in the past, which are not used here.
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_vmsplice,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_mbind,
    libc::SYS_remap_file_pages,
    libc::SYS_personality,
    // The machine as a whole.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Other users.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
];

#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] = &[
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

/// Every flag of clone(2) for a namespace of its own.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Gives these calls up, for this thread and those that it begins later. Returns how many filters are
/// in force: none on a processor that is not known.
///
/// # Errors
/// If the kernel refuses, in words.
pub(super) fn give_up() -> Result<u8, String> {
    if !IS_KNOWN {
        return Ok(0);
    }
    let failed =
        |e: &(dyn std::error::Error + 'static)| format!("seccomp failed: {}", in_one_line(e));
    let mut count = 0;
    for program in programs().map_err(|e| failed(&e))? {
        seccompiler::apply_filter(&program).map_err(|e| failed(&e))?;
        count += 1;
    }
    Ok(count)
}

fn programs() -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let program = |rules, error: i32| -> Result<BpfProgram, _> {
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(error as u32), arch)?
            .try_into()
    };
    // glibc and musl go on with clone(2), whose flags can be read.
    let clone = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let mut all = vec![program(clone, libc::ENOSYS)?, program(rules()?, libc::EPERM)?];
    if cfg!(target_arch = "x86_64") {
        all.push(no_x32());
    }
    Ok(all)
}

/// The same calls have other numbers in the x32 ABI, which counts as the same architecture: from bit
/// 30 on.
fn no_x32() -> BpfProgram {
    const LOAD_NUMBER: sock_filter = sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    const IF_X32: sock_filter = sock_filter { code: 0x35, jt: 0, jf: 1, k: 0x4000_0000 };
    let end = |k| sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let deny = u32::from(SeccompAction::Errno(libc::EPERM as u32));
    vec![LOAD_NUMBER, IF_X32, end(deny), end(SeccompAction::Allow.into())]
}

/// The bits of a socket's type that are no flags (`SOCK_TYPE_MASK` of Linux).
const SOCKET_TYPE: u64 = 0xf;

/// Every type of socket except these.
fn types_without(allowed: &[i32]) -> impl Iterator<Item = i32> {
    (0..=SOCKET_TYPE as i32).filter(|other| !allowed.contains(other))
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let when = |conditions: &[(u8, SeccompCmpOp, i32)]| {
        let conditions = conditions.iter().map(|(argument, op, value)| {
            SeccompCondition::new(*argument, Dword, op.clone(), u64::from(*value as u32))
        });
        SeccompRule::new(conditions.collect::<Result<_, _>>()?)
    };
    let mut rules: BTreeMap<i64, Vec<_>> =
        DENIED.iter().chain(DENIED_HERE).map(|call| (*call, Vec::new())).collect();
    let has = |argument, flag: i32| when(&[(argument, MaskedEq(u64::from(flag as u32)), flag)]);
    rules.insert(
        libc::SYS_clone,
        NAMESPACES.iter().map(|flag| has(0, *flag)).collect::<Result<_, _>>()?,
    );
    // Sockets of IPv4 and IPv6, and what tells this machine's addresses; TCP and UDP. A service at a
    // Unix socket is connected to by the broker. Landlock does not know MPTCP, SCTP and DCCP; the
    // type SOCK_SEQPACKET alone, without a protocol, makes a socket of SCTP.
    let mut sockets = vec![
        when(&[(0, Ne, libc::AF_INET), (0, Ne, libc::AF_INET6), (0, Ne, libc::AF_NETLINK)])?,
        when(&[(2, Ne, 0), (2, Ne, libc::IPPROTO_TCP), (2, Ne, libc::IPPROTO_UDP)])?,
    ];
    for other in types_without(&[libc::SOCK_STREAM, libc::SOCK_DGRAM]) {
        sockets.push(when(&[(0, Ne, libc::AF_NETLINK), (1, MaskedEq(SOCKET_TYPE), other)])?);
    }
    rules.insert(libc::SYS_socket, sockets);
    // A pair of SOCK_DGRAM (or SOCK_RAW, which is the same there) sends to any Unix socket, not only
    // to its other end.
    let pairs = types_without(&[libc::SOCK_STREAM, libc::SOCK_SEQPACKET]);
    let pairs = pairs.map(|other| when(&[(1, MaskedEq(SOCKET_TYPE), other)]));
    rules.insert(libc::SYS_socketpair, pairs.collect::<Result<_, _>>()?);
    // Other processes of this user may look at this one's memory, files and directory if it says so.
    rules.insert(libc::SYS_prctl, vec![when(&[(0, Eq, libc::PR_SET_DUMPABLE), (1, Ne, 0)])?]);
    // TCP Fast Open connects without a connect(2) that Landlock sees.
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        rules.insert(call, vec![has(flags, libc::MSG_FASTOPEN)?]);
    }
    // Memory that is written and run.
    let written_and_run = libc::PROT_WRITE | libc::PROT_EXEC;
    rules.insert(libc::SYS_mmap, vec![has(2, written_and_run)?]);
    for call in [libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        rules.insert(call, vec![has(2, libc::PROT_EXEC)?]);
    }
    // What is typed into a terminal of somebody else.
    rules.insert(
        libc::SYS_ioctl,
        [0x5412, 0x541c]
            .into_iter()
            .map(|order| when(&[(1, Eq, order)]))
            .collect::<Result<_, _>>()?,
    );
    Ok(rules)
}
