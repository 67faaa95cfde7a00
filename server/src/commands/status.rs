//! `aditd status`: prints the running server's state.

use std::{path::Path, time::Duration};

use common::machine::{
    control, json, process,
    report::{Failure, data, style},
};
use proto::{
    clock::shown,
    human::{self, count},
};

use crate::{
    documents::Live,
    https::{AcmeStatus, CertificateStatus},
    running::{self, Answer, QueueStatus, Request, ServerStatus, UserRequest, UserStatus},
    serve::started,
    state,
};

/// The column where values begin.
const INDENT: usize = 13;
/// How many waiting requests are listed.
const QUEUED_SHOWN: usize = 5;
/// How many users are listed, and how many running requests of each.
const USERS_SHOWN: usize = 10;
const REQUESTS_SHOWN: usize = 3;

/// Prints the running server's state.
pub(crate) async fn run(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let Some(status) = ask(dir).await? else {
        let what = format!("aditd is not running on the state in `{}`", dir.display());
        let start = format!("start it with `{}`", started::command(dir));
        return Err(state::not_there(what, start, dir));
    };
    if as_json {
        return json::answer(status);
    }
    let mut text = format!("Server       aditd {} (pid {})\n", status.version, status.pid);
    text += &format!("Listening    {} (UDP)\n", status.listening.join(", "));
    text += &format!("Advertised   {}\n", status.addresses.join(", "));
    text += &format!("Upstream     {}\n", status.upstream);
    for (i, service) in status.services.iter().skip(1).enumerate() {
        let name = if i == 0 { "Services" } else { "" };
        text += &format!("{name:<INDENT$}{} at {}\n", service.name, service.upstream);
    }
    let unencrypted = status.services.iter().filter_map(|service| service.unencrypted.as_ref());
    for (i, what) in unencrypted.enumerate() {
        text += &format!("{:<INDENT$}{what}\n", if i == 0 { "Warning" } else { "" });
    }
    let config =
        status.config.as_ref().map_or("none".to_owned(), |file| file.display().to_string());
    text += &format!("Config file  {config}\n");
    let networks: String = status.allow_from.iter().map(|network| format!(", {network}")).collect();
    text += &format!("Allow from   this machine{networks}\n");
    if let Some(https) = &status.https {
        let networks: String =
            https.allow_from.iter().map(|network| format!(", {network}")).collect();
        text += &format!(
            "HTTPS        {} (TCP), from this machine{networks}\n",
            https.listening.join(", ")
        );
        text += &format!("Certificate  {}\n", certificate(&https.certificate));
        let running: usize = https.callers.iter().map(|caller| caller.running).sum();
        text += &format!(
            "Keys         {} open, {} running\n",
            count(https.connections as u64, "connection"),
            count(running as u64, "request")
        );
        for caller in https.callers.iter().filter(|caller| caller.running > 0).take(QUEUED_SHOWN) {
            text += &format!(
                "             {} {}, {} running, from {}\n",
                caller.kind, caller.name, caller.running, caller.remote
            );
        }
    }
    if let Some(jwt) = &status.jwt {
        let where_else = if jwt.tunnel { ", which narrow in tunnels too" } else { "" };
        text += &format!("Tokens       of {}{where_else}\n", jwt.issuer);
        if let Some(why) = &jwt.failing {
            text += &format!("             its newest keys can't be fetched: {why}\n");
        }
    }
    if let Some(oidc) = &status.oidc {
        let life = human::time(std::time::Duration::from_secs(oidc.max_life));
        text += &format!("Sign-in      at {}, certificates for at most {life}\n", oidc.issuer);
        if let Some(why) = &oidc.failing {
            text += &format!("             {why}\n");
        }
    }
    text += &format!("Metrics      {}\n", status.metrics.as_deref().unwrap_or("none"));
    text += &format!("Audit log    {}\n", status.audit.dir.join(crate::audit::log::FILE).display());
    text += &format!("Sandbox      {}\n", status.sandbox.sentence());
    if let Some((receive, send)) = status.socket_buffers {
        let (receive, send) = (human::size(receive as u64), human::size(send as u64));
        text += &format!(
            "Buffers      {receive} for receiving, {send} for sending on each UDP socket\n"
        );
    }
    let kept = human::time(std::time::Duration::from_secs(status.idle_timeout));
    text += &format!(
        "Time-out     a silent device keeps its session for {kept}, or less if the device asks for less\n"
    );
    text += &format!(
        "Devices      {} connected, {} open",
        status.sessions.len(),
        count(status.sessions.iter().map(|s| s.streams as u64).sum::<u64>(), "stream")
    );
    if status.to_confirm > 0 {
        text += &format!(
            "\nTo confirm   {}, held back since the register was restored: `aditd device list`",
            count(status.to_confirm as u64, "device")
        );
    }
    for (i, line) in queue(&status.queue).into_iter().enumerate() {
        text += &format!("\n{:<INDENT$}{line}", if i == 0 { "Queue" } else { "" });
    }
    for (i, line) in users(&status.users, process::unix_now()).into_iter().enumerate() {
        text += &format!("\n{:<INDENT$}{line}", if i == 0 { "Users" } else { "" });
    }
    if !status.older.is_empty() {
        let pids: Vec<_> = status.older.iter().map(ToString::to_string).collect();
        text +=
            &format!("\nOlder        answers that began earlier run in pid {}", pids.join(", "));
    }
    if let Some(why) = &status.audit.failing {
        text += &format!("\nAudit        can't be written: {why}");
    }
    if status.audit.lost > 0 {
        text +=
            &format!("\nAudit        {} lost since the start", count(status.audit.lost, "line"));
    }
    data(text.lines().map(fitted).collect::<Vec<_>>().join("\n"))
}

/// The certificate of the HTTPS listener, in words.
fn certificate(certificate: &CertificateStatus) -> String {
    let until = certificate.until.map(process::day).unwrap_or_default();
    let names = certificate.names.join(", ");
    let (of, failing) = match (&certificate.file, &certificate.acme) {
        (Some(file), _) => {
            let failing = certificate.failing.as_ref();
            (file.clone(), failing.map(|why| format!("; the newest files can't be used: {why}")))
        }
        (None, Some(acme)) => {
            let of = if acme.issued { acme.directory.as_str() } else { "its own CA" };
            (format!("of {of}, for {names}"), Some(orders(acme)))
        }
        (None, None) => (format!("of its own CA, for {names}"), None),
    };
    format!("{of}, until {until}{}", failing.unwrap_or_default())
}

/// What became of the last order of a certificate, and when the next one is made.
fn orders(acme: &AcmeStatus) -> String {
    let next = acme.next.map(shown).unwrap_or_default();
    match (&acme.failing, &acme.cure) {
        (Some(why), Some(cure)) => format!(
            ". {} has issued none: {why}. Next order: {next}. {}: `{}`",
            acme.directory, cure.note, cure.command
        ),
        _ if acme.issued => format!(", renewal at {next}"),
        _ => format!(". It is being ordered from {}", acme.directory),
    }
}

/// A line of a name and a value that fits the terminal.
fn fitted(line: &str) -> String {
    match line.split_at_checked(INDENT) {
        Some((name, value)) => format!("{name}{}", human::wrapped(value, INDENT, style().width)),
        None => line.to_owned(),
    }
}

/// The queue in lines; none if no request ever waits.
fn queue(queue: &QueueStatus) -> Vec<String> {
    let Some(most) = queue.max_in_flight.or((!queue.waiting.is_empty()).then_some(queue.running))
    else {
        return Vec::new();
    };
    let waiting = match queue.waiting.len() {
        0 => "none waiting".to_owned(),
        n => format!("{n} waiting"),
    };
    let mut lines = vec![format!("{} of {most} running, {waiting}", queue.running)];
    lines.extend(queue.waiting.iter().take(QUEUED_SHOWN).map(|queued| {
        let device = queued.device.as_ref().map_or("a forgotten device", |name| name.as_str());
        let waited = human::time(Duration::from_secs_f64(queued.seconds.clamp(0.0, 1e9)));
        format!("{}. {device}, for {waited}", queued.position)
    }));
    match queue.waiting.len().saturating_sub(QUEUED_SHOWN) {
        0 => {}
        more => lines.push(format!("and {more} more")),
    }
    lines
}

/// Who runs something now or has used tokens today, in lines. `now` is Unix time.
fn users(users: &[UserStatus], now: i64) -> Vec<String> {
    let mut lines = Vec::new();
    for user in users.iter().take(USERS_SHOWN) {
        let name = match (&user.user, &user.device) {
            (Some(user), _) => user.to_string(),
            (None, Some(device)) => format!("{device} (without a user)"),
            (None, None) => continue,
        };
        let of = |limit: Option<u64>| limit.map_or(String::new(), |limit| format!(" of {limit}"));
        lines.push(format!(
            "{name}, {}{} running, {}{} tokens today",
            user.running,
            of(user.at_once.map(u64::from)),
            user.tokens,
            of(user.tokens_per_day),
        ));
        lines.extend(user.requests.iter().take(REQUESTS_SHOWN).map(|request| {
            let UserRequest { kind, device, service, method, path, .. } = request;
            let model = request.model.as_ref().map_or(String::new(), |model| format!(" {model}"));
            let seconds = u64::try_from(now - request.since).unwrap_or(0);
            let time = human::time(Duration::from_secs(seconds));
            format!("  {kind} {device}: {service}, {method} {path}{model}, for {time}")
        }));
        match user.requests.len().saturating_sub(REQUESTS_SHOWN) {
            0 => {}
            more => lines.push(format!("  and {} more", count(more as u64, "request"))),
        }
    }
    match users.len().saturating_sub(USERS_SHOWN) {
        0 => {}
        more => lines.push(format!("and {} more", count(more as u64, "user"))),
    }
    lines
}

/// What a running server knows of devices and keys; nothing if none runs.
pub(crate) async fn live(dir: &Path) -> Live {
    let Some(status) = ask(dir).await.ok().flatten() else { return Live::default() };
    let callers = status.https.into_iter().flat_map(|https| https.callers);
    Live {
        sessions: status.sessions.into_iter().map(|one| (one.device_id, one)).collect(),
        running: callers.map(|caller| (caller.id, caller.running)).collect(),
    }
}

/// The state of the running server; `None` if it does not run.
pub(crate) async fn ask(dir: &Path) -> Result<Option<ServerStatus>, Failure> {
    match control::ask(dir, &Request::Status).await? {
        Some(Answer::Status(status)) => Ok(Some(*status)),
        Some(_) => Err(running::of_another_version()),
        None => Ok(None),
    }
}
