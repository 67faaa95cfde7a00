//! What adit runs on a box: its scripts, the upload, and what their answers mean.

use common::machine::report::Failure;
use data_encoding::HEXLOWER;
use indicatif::{ProgressBar, ProgressStyle};
use proto::{
    bootstrap::{Found, Install, Lines, Replace, Service, series},
    crypto::fill_random,
    typed::quoted,
};

use super::program::Program;
use crate::ssh::{Remote, SshError, SshTarget};

const LOOK: &str = include_str!("look.sh");
const INSTALL: &str = concat!(include_str!("receive.sh"), include_str!("install.sh"));
const UPGRADE: &str = concat!(include_str!("receive.sh"), include_str!("upgrade.sh"));
const REMOVE: &str = include_str!("remove.sh");

/// How aditd was started.
pub(super) struct Started {
    pub(super) service: Service,
    /// Why it is no unit, if it was meant to be one.
    pub(super) why: Option<String>,
}

/// Looks at the box.
///
/// # Errors
/// If it runs no shell, or its answer is not understood.
pub(in crate::commands) async fn look(
    remote: &Remote,
    target: &SshTarget,
    wanted: Option<&str>,
    sha: &str,
) -> Result<Found, Failure> {
    let variables = [("wanted", wanted.unwrap_or_default()), ("sha", sha)];
    let answer = run(remote, target, "look at", &variables, LOOK).await?;
    Found::read(&answer).map_err(|e| not_understood(target, e))
}

/// Uploads the program into a temporary directory in `dir`, beside its own.
///
/// # Errors
/// If the file cannot be written there, with the box's own words.
pub(in crate::commands) async fn upload(
    remote: &Remote,
    target: &SshTarget,
    dir: &str,
    program: &Program,
) -> Result<(), Failure> {
    let bar = ProgressBar::new(program.binary.len).with_message("Uploading aditd");
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}")
    {
        bar.set_style(style);
    }
    let part = part(&program.binary.sha256);
    // The login shell reads this line, and it may be any shell: no character in it means something.
    let command =
        format!("sh -c 'umask 077; mkdir -p {dir}/bin/{part} && exec cat >{dir}/bin/{part}/aditd'");
    let passed = |bytes: usize| bar.set_position(bytes as u64);
    let end = remote.run(&command, &program.bytes, passed).await;
    bar.finish_and_clear();
    let failure = || {
        Failure::new(format!("cannot upload aditd to {target}"))
            .hint(format!("`{}` shows the disk there", target.by_hand_with("df -h")))
    };
    match end {
        Ok(end) if end.code == Some(0) => Ok(()),
        Ok(end) => {
            // It is of no use, and a full disk needs the space.
            let clean = format!("rm -rf {dir}/bin/{part}; rmdir {dir}/bin {dir}");
            let _ = remote.script(&clean).await;
            let said = if end.said.is_empty() { "the box does not say why" } else { &*end.said };
            Err(failure().source(format!("`cat` could not write `{dir}/bin/{part}/aditd`: {said}")))
        }
        Err(e) => Err(Failure::new(format!("cannot upload aditd to {target}"))
            .hint(e.hint(target))
            .source(e)),
    }
}

/// Checks what was uploaded, installs it, starts it, and waits until it answers.
///
/// # Errors
/// The step that failed, with the box's own words.
pub(super) async fn install(
    remote: &Remote,
    target: &SshTarget,
    install: &Install,
) -> Result<Started, Failure> {
    let len = install.upload.unwrap_or_default().to_string();
    let uploaded = install.upload.map(|_| part(&install.sha256)).unwrap_or_default();
    let (kind, linger) = match install.service {
        Service::System => ("system", false),
        Service::User { enable_linger } => ("user", enable_linger),
        Service::Process => ("process", false),
    };
    let answer = run(
        remote,
        target,
        "install aditd on",
        &[
            ("dir", &install.dir),
            ("state", &install.state),
            ("sha", &install.sha256),
            ("len", &len),
            ("part", &uploaded),
            ("series", series(&install.version)),
            ("kind", kind),
            ("linger", if linger { "yes" } else { "no" }),
            ("unit", &install.unit()),
            ("unit_file", &install.unit_file()),
            ("sysusers", install.sysusers()),
            ("start", &install.start_script()),
        ],
        INSTALL,
    )
    .await?;
    let lines = Lines(&answer);
    if let Some(step) = lines.first("failed") {
        let words = lines.first("words").unwrap_or("the box does not say why");
        return Err(failed(target, step, words));
    }
    let service = match lines.first("service") {
        Some("process") => Service::Process,
        Some(_) => install.service,
        None => return Err(not_understood(target, "it does not say how aditd was started")),
    };
    Ok(Started { service, why: lines.first("why").map(ToOwned::to_owned) })
}

/// Checks what was uploaded, and lets it replace the aditd that runs.
///
/// # Errors
/// The step that failed, and the box's own words. The aditd that runs goes on then.
pub(in crate::commands) async fn upgrade(
    remote: &Remote,
    target: &SshTarget,
    replace: &Replace,
) -> Result<(), Failure> {
    let len = replace.upload.unwrap_or_default().to_string();
    let uploaded = replace.upload.map(|_| part(&replace.sha256)).unwrap_or_default();
    let variables: &[(&str, &str)] = &[
        ("dir", &replace.dir),
        ("state", &replace.state),
        ("sha", &replace.sha256),
        ("len", &len),
        ("part", &uploaded),
        ("series", series(&replace.version)),
        ("kind", &replace.service),
    ];
    let answer = run(remote, target, "upgrade aditd on", variables, UPGRADE).await?;
    let lines = Lines(&answer);
    if let Some(step) = lines.first("failed") {
        let words = lines.first("words").unwrap_or("the box does not say why");
        return Err(failed(target, step, words));
    }
    match lines.first("replaced") {
        Some(_) => Ok(()),
        None => Err(not_understood(target, "it does not say whether aditd was replaced")),
    }
}

/// What was removed from a box.
pub(in crate::commands) struct RemovedThere {
    /// Whether adit has installed an aditd there.
    pub(in crate::commands) installed: bool,
    /// Whether the state was: no device is enrolled there any more.
    pub(in crate::commands) state: bool,
    /// The files and directories, and the line of the crontab.
    pub(in crate::commands) removed: Vec<String>,
    /// What is left, in words.
    pub(in crate::commands) left: Vec<String>,
}

/// Removes what was installed in `dir`, or in the usual directory.
///
/// # Errors
/// If the box runs no shell.
pub(in crate::commands) async fn remove(
    remote: &Remote,
    target: &SshTarget,
    dir: Option<&str>,
) -> Result<RemovedThere, Failure> {
    let answer =
        run(remote, target, "remove aditd from", &[("wanted", dir.unwrap_or_default())], REMOVE)
            .await?;
    let lines = Lines(&answer);
    let Some(installed) = lines.first("installed") else {
        return Err(not_understood(target, "it does not say whether aditd was removed"));
    };
    let all = |key| lines.all(key).map(ToOwned::to_owned).collect();
    Ok(RemovedThere {
        installed: installed == "yes",
        state: lines.first("state").is_some(),
        removed: all("removed"),
        left: all("left"),
    })
}

/// Runs a script with these variables.
async fn run(
    remote: &Remote,
    target: &SshTarget,
    step: &str,
    variables: &[(&str, &str)],
    script: &str,
) -> Result<String, Failure> {
    let variables: String =
        variables.iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect();
    let answer = remote.script(&format!("{variables}{script}")).await;
    answer.map_err(|e| {
        let hint = e.hint(target);
        Failure::new(format!("cannot {step} {target}")).source(e).hint(hint)
    })
}

/// The name of the temporary directory. It is the same in both scripts, and no other run has it.
fn part(sha256: &str) -> String {
    static RUN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let run = RUN.get_or_init(|| {
        let mut random = [0; 8];
        fill_random(&mut random);
        HEXLOWER.encode(&random)
    });
    format!("{}.{run}.part", sha256.get(..12).unwrap_or_default())
}

fn failed(target: &SshTarget, step: &str, words: &str) -> Failure {
    let again = "run the same command again";
    let failure = |what: &str| Failure::new(format!("{what} on {target}")).source(words.to_owned());
    match step {
        "check" => failure("the uploaded aditd is not whole").hint(again),
        "run" => failure("the uploaded aditd cannot be run").hint(
            "take an aditd that needs nothing of the box, a static one: `--server-binary FILE`",
        ),
        "version" => failure("the uploaded aditd is of another version than this adit")
            .hint("take the aditd that came with this adit: `--server-binary FILE`"),
        "replace" => {
            failure("the new aditd cannot replace the running one, which goes on as before")
                .hint(format!("its words name the cure; then {again}"))
        }
        "start" => failure("aditd does not start")
            .hint(format!("its words name the cure; then {again}"))
            .hint(format!("to undo what was done: `adit remove {}`", target.login())),
        _ => failure("aditd cannot be stored")
            .hint(format!("`{}` shows the disk there; then {again}", target.by_hand_with("df -h"))),
    }
}

/// The failure that there is no login.
pub(in crate::commands) fn no_login(target: &SshTarget, error: SshError) -> Failure {
    let hint = error.hint(target);
    Failure::new(format!("cannot log in at {target}")).source(error).hint(hint)
}

pub(super) fn not_understood(target: &SshTarget, why: impl ToString) -> Failure {
    Failure::new(format!("cannot understand the answer of {target}"))
        .source(why.to_string())
        .hint(format!("log in by hand and look: `{}`", target.by_hand()))
}
