//! Property lists of launchd, and the commands of launchctl(1).

use super::{IfFails, MADE, Manager, Service, Step};

/// The label of the service, which is the name of its file too.
pub(super) fn label(service: &Service) -> String {
    format!("dev.adit.{}", service.name)
}

/// Where its log is.
fn log(service: &Service) -> String {
    match service.manager {
        Manager::LaunchdSystem => format!("/Library/Logs/{}.log", service.name),
        _ => format!("{}/Library/Logs/{}.log", service.home, service.name),
    }
}

/// The domain in which it runs (launchctl(1), "domain-target").
fn domain(service: &Service) -> String {
    match service.manager {
        Manager::LaunchdSystem => "system".to_owned(),
        _ => format!("gui/{}", service.user.1),
    }
}

fn target(service: &Service) -> String {
    format!("{}/{}", domain(service), label(service))
}

/// The property list (launchd.plist(5)).
pub(super) fn plist(service: &Service) -> String {
    let words = std::iter::once(&service.path).chain(&service.args);
    let words: String =
        words.map(|word| format!("    <string>{}</string>\n", in_xml(word))).collect();
    let log = in_xml(&log(service));
    // Started again if it fails, and not if it was stopped in order; it may take as long to drain as
    // its own bound.
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!-- {MADE}: it is written anew each time. -->
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>{label}</string>
  <key>ProgramArguments</key>
  <array>
{words}  </array>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <dict>
    <key>SuccessfulExit</key>
    <false/>
  </dict>
  <key>ThrottleInterval</key>
  <integer>10</integer>
  <key>ExitTimeOut</key>
  <integer>60</integer>
  <key>ProcessType</key>
  <string>Interactive</string>
  <key>Umask</key>
  <integer>63</integer>
  <key>StandardOutPath</key>
  <string>{log}</string>
  <key>StandardErrorPath</key>
  <string>{log}</string>
</dict>
</plist>
"#,
        label = label(service),
    )
}

/// Text for XML. The characters that XML 1.0 cannot hold are in no path that a shell can type.
fn in_xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

pub(super) fn probe(service: &Service) -> Step {
    Step::new("launchctl", &["print", &domain(service)])
}

pub(super) fn start(service: &Service) -> Vec<Step> {
    let old = Step::new("launchctl", &["bootout", &target(service)]).if_fails(IfFails::GoOn);
    vec![old, Step::new("launchctl", &["bootstrap", &domain(service), &service.file()])]
}

pub(super) fn stop(service: &Service) -> Step {
    Step::new("launchctl", &["bootout", &target(service)])
}

pub(super) fn end(service: &Service) -> Vec<Step> {
    vec![Step::new("launchctl", &["bootout", &target(service)]).if_fails(IfFails::GoOn)]
}

pub(super) fn status(service: &Service) -> Step {
    Step::new("launchctl", &["print", &target(service)])
}

pub(super) fn logs(service: &Service, lines: u32, follow: bool) -> Step {
    let (lines, log) = (lines.to_string(), log(service));
    let mut args = vec!["-n", lines.as_str()];
    if follow {
        args.push("-F");
    }
    args.push(&log);
    Step::new("tail", &args)
}
